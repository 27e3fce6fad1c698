"""Optimizers as users would bring them."""

import torch


class Again(torch.optim.AdamW):
    """The built-in one, by a user's door."""

    elementwise = True

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, lr=lr, betas=betas, eps=eps, foreach=False)

    def initial_state(self, p):
        zeros = torch.zeros_like(p)
        return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros}


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, without its own rates."""

    elementwise = True

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, {"lr": lr, "betas": betas})

    def initial_state(self, p):
        return {"momentum": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p]["momentum"]
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(torch.lerp(p.grad, momentum, one).sign_(), alpha=group["lr"])
                    momentum.lerp_(p.grad, 1 - two)


class Normed(Lion):
    """Of whole tensors alone, as it does not say."""

    elementwise = False


class Silent(torch.optim.SGD):
    """Does not say what it keeps."""


class Growing(Lion):
    """Keeps more from its first step on."""

    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["more"] = p.clone()


class Counting(Lion):
    """Counts in its groups."""

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, lr, betas, eps)
        for group in self.param_groups:
            group["count"] = 0

    def step(self, closure=None):
        super().step()
        self.param_groups[0]["count"] += 1


class Tensored(Lion):
    """A tensor in its groups."""

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, lr, betas, eps)
        self.param_groups[0]["size"] = torch.zeros(())


class Row(Lion):
    """State of another shape."""

    def initial_state(self, p):
        return {"row": p.new_zeros(3, 3, 3)}


class Param(Lion):
    """State by a name that is taken."""

    def initial_state(self, p):
        return {"param": torch.zeros_like(p)}


class Demanding(Lion):
    """Wants more than it is given."""

    def __init__(self, groups, lr, betas, eps, horizon):
        super().__init__(groups, lr, betas, eps)


def function(groups, lr, betas, eps):
    """No class."""


function.initial_state = lambda p: {}
