"""`optim.kind=package.module:Class`: an optimizer from outside of vtx_scale.

What it keeps must be known before its first step, since a checkpoint is read into it, and must be
all that it keeps, since a resumed run would part from the undisturbed one in silence. So it says
what its state is, and each step is looked at.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Leaf
from vtx_scale.specs.imports import optimizer_class
from vtx_scale.specs.run import Optimizer

TAKEN = ("average", "buffer", "param")  # names that checkpoints have for other tensors
WRITTEN = ("lr", "params", "weight_decay")  # of a group, by the trainer or torch
HOLD = "no checkpoint would hold it, so keep it in the state of each parameter."


class Elsewhere(Protocol):
    """A torch.optim.Optimizer, opened as `Class(groups, lr=, betas=, eps=)` with the numbers of
    `optim`. `lr` and `weight_decay` stand in its groups before each step; gradients are clipped.

    elementwise: whether each number moves by its own gradient and state alone, as AdamW's do, and
    not by rows, norms or whole matrices. Without it the class is refused where parameters are cut.
    """

    elementwise: bool

    def initial_state(self, p: Tensor) -> dict[str, Tensor]:
        """What `state[p]` is before the first step: tensors in the shape of p, which a checkpoint
        holds as NAME/PARAMETER, and, where it counts its steps, "step", a tensor of shape (), which
        the trainer sets where a run goes on.

        p: this rank's part of a parameter; it may be empty, and of any shape where it is cut. Its
        values are not yet those that the run starts from.
        """


def opened(
    groups: list[dict[str, Any]], leaves: list[Leaf], spec: Optimizer
) -> torch.optim.Optimizer:
    """The user's optimizer with its state. Raises UserError where it is not as `Elsewhere` says,
    and from a step after which it keeps more.
    """
    key = f"optim.kind={spec.kind}"
    kind = optimizer_class(spec.kind, cut=any(leaf.cuts != () for leaf in leaves))
    try:
        found = kind(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
        states = {p: found.initial_state(p) for g in found.param_groups for p in g["params"]}
    except Exception as e:
        raise UserError(
            f"{key} cannot be opened as Class(groups, lr=, betas=, eps=): {type(e).__name__}: {e}"
        ) from e
    if not isinstance(found, torch.optim.Optimizer):
        raise UserError(f"{key} is no torch.optim.Optimizer: make it a subclass.")
    for p, state in states.items():
        for name, value in state.items():
            shape = () if name == "step" else tuple(p.shape)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                raise UserError(f"{key}: {name!r} of initial_state is no tensor of shape {shape}.")
            if name in TAKEN or not name.isidentifier():
                raise UserError(f"{key}: {name!r} of initial_state needs another name.")
        found.state[p] = {name: value.detach().clone() for name, value in state.items()}
    held = [(name, value) for group in found.param_groups for name, value in group.items()]
    for name, value in held:
        if name not in WRITTEN and isinstance(value, Tensor):
            raise UserError(f"{key} keeps the tensor {name!r} in its groups: {HOLD}")
    names = {p: {*state, "average"} for p, state in states.items()}
    kept = [{k: v for k, v in g.items() if k not in WRITTEN} for g in found.param_groups]

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for p, state in optimizer.state.items():
            if more := sorted(set(state) - names.get(p, set())):
                raise UserError(
                    f"{key} keeps {more[0]!r} of a parameter, which no checkpoint would hold: "
                    "return it from initial_state."
                )
        for group, before in zip(optimizer.param_groups, kept, strict=True):
            for name in sorted(set(group) - set(WRITTEN)):
                if name not in before or group[name] != before[name]:
                    raise UserError(f"{key} changes {name!r} of its groups: {HOLD}")

    found.register_step_post_hook(look)
    return found
