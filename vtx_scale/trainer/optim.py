"""Optimizers over leaves, with groups by their rules."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vtx_scale.distributed.sharding import Leaf
from vtx_scale.specs.run import Optimizer
from vtx_scale.trainer.adafactor import Adafactor
from vtx_scale.trainer.elsewhere import opened
from vtx_scale.trainer.lookahead import Lookahead
from vtx_scale.trainer.moments import RoundedAdamW, Rounding
from vtx_scale.trainer.muon import MuonAdamW, is_matrix


def groups(leaves: Iterable[Leaf], muon: bool = False) -> list[dict[str, Any]]:
    """Groups of kind "body", "head" and "undecayed", of the trunk or not, of one `lr_scale` each;
    none is empty. Each trained leaf is in exactly one. muon: matrices of hidden layers have groups
    of their own, with `matrix` true.
    """
    kinds = [(kind, trunk) for trunk in (False, True) for kind in ("body", "head", "undecayed")]
    grouped: dict[tuple[str, bool, float, bool], list[Tensor]] = {
        (*kind, 1.0, False): [] for kind in kinds
    }
    for leaf in leaves:
        if leaf.trained:
            rule = leaf.rule
            kind = (
                "undecayed"
                if not rule.decays(len(leaf.shape))
                else "head"
                if rule.group == "head"
                else "body"
            )
            key = (kind, rule.group == "trunk", rule.lr_scale, muon and is_matrix(leaf))
            grouped.setdefault(key, []).append(leaf.tensor)
    return [
        {"kind": kind, "trunk": trunk, "lr_scale": scale, "matrix": matrix, "params": part}
        for (kind, trunk, scale, matrix), part in grouped.items()
        if part
    ]


def set_rates(
    optimizer: torch.optim.Optimizer, spec: Optimizer, rate: float, step: int, steps: int
) -> None:
    """The learning rate and weight decay of a step."""
    decay = spec.decay_at(step, steps)
    for group in optimizer.param_groups:
        own = (
            rate if spec.trunk_lr is None or not group["trunk"] else rate * spec.trunk_lr / spec.lr
        )
        group["lr"] = own * group["lr_scale"]
        group["weight_decay"] = {"body": decay, "undecayed": 0.0}.get(
            group["kind"], decay if spec.head_decay is None else spec.head_decay
        )


def optimizer_of(leaves: Iterable[Leaf], spec: Optimizer, seed: int = 0) -> torch.optim.Optimizer:
    """The optimizer with its state, keyed by `Leaf.tensor`, there at once, so that a checkpoint can
    be read into it before the first step.

    seed: the run's, for moments that are rounded by chance. Raises UserError for an optimizer that
    needs rows and columns, or whole matrices, where leaves are not such, and for one from elsewhere
    that is not as `vtx_scale.trainer.elsewhere` says.
    """
    leaves = list(leaves)
    grouped = groups(leaves, muon=spec.kind == "muon")
    cuda = any(p.is_cuda for g in grouped for p in g["params"])
    each = None if cuda else False  # many tensors at once only where that is faster
    optimizer: torch.optim.Optimizer
    if spec.kind == "adafactor":
        optimizer = Adafactor(grouped, leaves, spec.lr, betas=spec.betas)
    elif spec.kind == "sgd":
        optimizer = torch.optim.SGD(grouped, lr=spec.lr, momentum=spec.betas[0], foreach=each)
        for p in parameters(optimizer):
            optimizer.state[p] = {"momentum_buffer": zeros_like(p)}
    elif spec.kind == "lookahead":
        optimizer = Lookahead(
            grouped, spec.lr, spec.betas[0], spec.lookahead, spec.lookahead_share, foreach=each
        )
        for p in parameters(optimizer):
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32),
                "momentum_buffer": zeros_like(p),
                "slow": p.detach().clone(memory_format=torch.preserve_format),
            }
    elif spec.elsewhere:
        optimizer = opened(grouped, leaves, spec)
    else:
        rounding = Rounding(leaves, seed) if spec.moments == "bfloat16" else None
        plain = [dict(group) for group in grouped if not group["matrix"]]
        if spec.kind == "muon":
            rest = adamw_of(plain, spec, cuda, rounding) if plain else None
            optimizer = MuonAdamW(grouped, leaves, rest, rounding)
        else:
            optimizer = adamw_of(plain, spec, cuda, rounding)
    if spec.average:  # see `vtx_scale.trainer.average`
        for p in parameters(optimizer):
            optimizer.state[p]["average"] = p.detach().clone(memory_format=torch.preserve_format)
    set_rates(optimizer, spec, spec.lr, 0, 1)
    return optimizer


def adamw_of(
    grouped: list[dict[str, Any]], spec: Optimizer, cuda: bool, rounding: Rounding | None
) -> torch.optim.Optimizer:
    """AdamW with its state; rounding: of moments in bfloat16."""
    optimizer: torch.optim.Optimizer
    each = None if cuda else False
    shared: dict[str, Any] = {"lr": spec.lr, "betas": spec.betas, "eps": spec.eps}
    if rounding is None:
        optimizer = torch.optim.AdamW(grouped, fused=True if cuda else None, foreach=each, **shared)
    else:
        optimizer = RoundedAdamW(grouped, rounding, **shared)
    for p in parameters(optimizer):
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device if cuda else "cpu"),
            "exp_avg": zeros_like(p, rounding),
            "exp_avg_sq": zeros_like(p, rounding),
        }
    return optimizer


def zeros_like(p: Tensor, rounding: Rounding | None = None) -> Tensor:
    """A moment of a leaf."""
    kind = torch.bfloat16 if rounding is not None else p.dtype
    return torch.zeros_like(p, dtype=kind, memory_format=torch.preserve_format)


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_applied(
    optimizer: torch.optim.Optimizer, steps: int, late: Iterable[Tensor] = (), missed: int = 0
) -> None:
    """Tell every parameter how many steps were applied to it;
    `late` ones were frozen for `missed` of them.
    """
    behind = {id(p) for p in late}
    for p, state in optimizer.state.items():
        if "step" in state:
            state["step"].fill_(steps - missed if id(p) in behind else steps)
