"""Lookahead (Zhang et al. 2019, arXiv:1907.08610) around SGD with momentum,
as VirTex was trained.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lookahead(torch.optim.SGD):
    """After every k-th step the weights go back to the slow ones and `alpha` of the way from there;
    SGD's momentum stays.

    Slow weights are state as any other, so that a run resumes between two of these steps.
    state["step"] counts them and is set by the trainer (`vtx_scale.trainer.optim.set_applied`).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float,
        k: int,
        alpha: float,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, foreach=foreach)
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        pairs: list[tuple[Tensor, dict[str, Any]]] = [
            (p, self.state[p])
            for g in self.param_groups
            for p in g["params"]
            if p.grad is not None  # one that rests does not count its steps
        ]
        for p, state in pairs:
            # values may have come from elsewhere since the optimizer was made
            if int(state["step"]) == 0:
                state["slow"].copy_(p)
        loss = super().step(closure)
        for p, state in pairs:
            state["step"] += 1
            if int(state["step"]) % self.k == 0:
                state["slow"].lerp_(p, self.alpha)
                p.copy_(state["slow"])
        return loss
