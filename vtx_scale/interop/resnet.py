"""ResNet to and from timm and torchvision, which share their names: the tables, export, import.

A batch norm there also counts batches, a number that nothing here or there depends on: 0 goes out,
none comes in.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import PixelForm, read_foreign, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.objectives.pixels import STATISTICS
from vtx_scale.specs.resnet import ResNetConfig

COUNT = "num_batches_tracked"
MEAN, STD = STATISTICS["imagenet"]


def batch_norm(ours: str, theirs: str) -> list[Line]:
    """The four tensors of a batch norm."""
    return [Line(f"{ours}.{x}", f"{theirs}.{x}") for x in ("{p}", "running_mean", "running_var")]


BLOCK = [
    *[
        line
        for k in "123"
        for line in (Line(f"conv{k}.weight", f"conv{k}.weight"), *batch_norm(f"norm{k}", f"bn{k}"))
    ],
    Line("shortcut.weight", "downsample.0.weight"),
    *batch_norm("norm_shortcut", "downsample.1"),
]
STAGES = [
    line for k in range(4) for line in under(f"stages.{k}.{{n}}.", f"layer{k + 1}.{{n}}.", BLOCK)
]
TABLE = [
    Line("conv.weight", "conv1.weight"),
    *batch_norm("norm", "bn1"),
    *STAGES,
    Line("head.{p}", "fc.{p}"),
]


def with_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors with the counts that their batch norms have."""
    tail = "running_mean"
    counts = {
        k.removesuffix(tail) + COUNT: torch.zeros((), dtype=torch.int64)
        for k in state
        if k.endswith(tail)
    }
    return {**state, **counts}


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `with_counts`. Raises UserError for norms that are no batch norms."""
    for name in state:
        norm = name.removesuffix(".weight")
        ours = norm != name and norm.rpartition(".")[2].startswith("bn")
        if ours and f"{norm}.running_mean" not in state:
            raise UserError(
                f"The weights have {name} and no {norm}.running_mean: a ResNet here has batch "
                "norms, give weights of one."
            )
    return {k: v for k, v in state.items() if not k.endswith(COUNT)}


def timm_config(
    spec: ResNetConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    centre: float,
    bicubic: bool,
) -> dict[str, Any]:
    """config.json for timm's smallest ResNet of the same kind, whose size is then said anew."""
    args: dict[str, Any] = {"layers": list(spec.blocks)}
    if spec.wide != 1:
        args["base_width"] = 64 * spec.wide
    side = [3, spec.resolution, spec.resolution]
    return {
        "config.json": {
            "architecture": "resnet18" if spec.kind == "basic" else "resnet50",
            "num_classes": spec.classes,
            "num_features": spec.width,
            "model_args": args,
            "pretrained_cfg": {
                "input_size": side,
                "interpolation": "bicubic" if bicubic else "bilinear",
                "crop_pct": centre,
                "crop_mode": "center",
                "mean": mean,
                "std": std,
                "num_classes": spec.classes,
                "first_conv": "conv1",
                "classifier": "fc",
            },
        }
    }


def export_resnet(
    spec: ResNetConfig,
    state: dict[str, Tensor],
    to: str,
    out: Path,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    centre: float = 0.875,
    bicubic: bool = True,
) -> list[Path]:
    """Write a ResNet's weights and running statistics where `to`, "timm" or "torchvision",
    opens them; the files.

    torchvision has no folders: the file holds what its `load_state_dict` takes. Raises UserError
    where the library cannot express the model or `out` is taken.
    """
    if to not in ("timm", "torchvision"):
        raise UserError(
            f"There is no export of a ResNet to {to!r}: give timm, torchvision or safetensors."
        )
    if len(spec.blocks) != 4 or (spec.kind == "basic" and spec.wide != 1):
        raise UserError(
            f"{to} has ResNets of four stages, and wide ones of bottlenecks alone: "
            f"this one has {spec.blocks}, {spec.kind}, {spec.wide} times as wide."
        )
    texts = timm_config(spec, mean, std, centre, bicubic) if to == "timm" else {}
    return write_folder(out, {"model.safetensors": with_counts(to_foreign(TABLE, state))}, texts)


def import_resnet(path: Path) -> dict[str, Tensor]:
    """Weights and running statistics under our names,
    from a folder or a safetensors file of timm or torchvision.
    """
    return from_foreign(TABLE, without_counts(read_foreign(path)))


def export_network(
    spec: ResNetConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_resnet` as `vtx_scale.interop.weights` calls it."""
    return export_resnet(
        spec, state, to, out, pixels.mean, pixels.std, pixels.centre, pixels.bicubic
    )


def import_network(path: Path, spec: ResNetConfig) -> dict[str, Tensor]:
    """Of ours, or of timm or torchvision."""
    state = read_foreign(path)
    return state if "conv.weight" in state else from_foreign(TABLE, without_counts(state))
