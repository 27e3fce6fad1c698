"""AdamW with parameter groups made from names: each trained parameter is in exactly one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtx_scale.specs.run import Optimizer


def groups(module: nn.Module, undecayed: Callable[[str, Tensor], bool], decay: float) -> list[dict]:
    """Two groups, decayed and not, in the order of the names; asserts that none is missed or taken twice."""
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    decayed = [(n, p) for n, p in trained if not undecayed(n, p)]
    rest = [(n, p) for n, p in trained if undecayed(n, p)]
    assert len(decayed) + len(rest) == len(trained) == len({id(p) for _, p in trained})
    made = [{"params": [p for _, p in part], "names": [n for n, _ in part], "weight_decay": wd}
            for part, wd in ((decayed, decay), (rest, 0.0)) if part]
    return made


def adamw(module: nn.Module, undecayed: Callable[[str, Tensor], bool], spec: Optimizer) -> torch.optim.AdamW:
    """The optimizer with its state made at once, so that a checkpoint can be read into it before the first step."""
    made = groups(module, undecayed, spec.decay)
    for group in made:
        group.pop("names")
    cuda = any(p.is_cuda for g in made for p in g["params"])
    optimizer = torch.optim.AdamW(made, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True if cuda else None,
                                  foreach=None if cuda else False)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device if cuda else "cpu"),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    return optimizer


def set_applied(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Tell every parameter how many steps were applied (one number for all: a skipped step skips all)."""
    for state in optimizer.state.values():
        state["step"].fill_(steps)
