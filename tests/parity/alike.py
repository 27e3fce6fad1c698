"""Random weights in which a mix-up shows, and what counts as the same."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """No tensor may be zero or one, no two positions alike:
    a name or an order that is mixed up must show.

    Running statistics too; products and convolutions keep the size of what they carry.
    """
    generator = torch.Generator().manual_seed(0)
    for name, t in module.state_dict().items():
        if not t.is_floating_point():
            continue
        noise = torch.randn(t.shape, generator=generator)
        if name.endswith("running_var"):
            t.copy_(1 + noise.square())
        elif "logit" in name:
            t.copy_(noise + 2)
        elif t.ndim == 1:
            t.copy_(noise * 0.3 + (("norm" in name or "bn" in name) and name.endswith("weight")))
        else:
            t.copy_(noise if "pos" in name else noise * t[0].numel() ** -0.5)
    return module


def close(a: Tensor, b: Tensor, name: str = "") -> None:
    """Within 1e-5 of the largest."""
    assert a.shape == b.shape, name
    assert (a - b).abs().max() <= 1e-5 * a.abs().max(), name


def all_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Features of images and of texts, and logits."""
    for name, a, b in zip(("image", "text", "logits"), ours, theirs, strict=True):
        close(a, b, name)


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])]
