"""Forward pass and training step of each family beside timm, transformers and open_clip,
interleaved in one run.

    python benchmarks/models.py [--families resnet50 clip_rn50 ...] [--pairs 9] [--batch N]
                                [--device cpu] [--out benchmarks/results/models.json]

The same weights and inputs, float32, one thread, no compilation. "forward" is without gradient in
eval mode; "step" is forward, loss and backward in training mode, without optimizer, ours with
batch statistics over valid rows; "loss" is the end of the objective alone, forward and backward,
beside the library's. A ratio is ours / theirs, below 1 where ours is quicker: the median over
rounds in which each took its turn, and the 10th and 90th percentile. The bar is the quickest of
the others. Times are CPU time on the CPU, so that other work on the machine disturbs less, and
wall time on a GPU.
"""

import argparse
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests

from tests.parity.libraries import open_clip, timm, transformers
from vtx_scale.backbones.resnet import ResNet
from vtx_scale.backbones.vit import ViT
from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.slots import SlotContext, with_running_statistics
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.interop import export_clip, export_resnet, export_siglip, export_vit
from vtx_scale.interop.rename import Line, to_foreign, under
from vtx_scale.interop.siglip import HALF
from vtx_scale.interop.siglip import OPEN_CLIP as SIGLIP_OPEN_CLIP
from vtx_scale.interop.vit import TIMM
from vtx_scale.objectives import clip, siglip
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.supervised import Supervised
from vtx_scale.specs.clip import ClipConfig, TextTowerConfig, image_tower
from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.siglip import SiglipConfig, SiglipTextConfig
from vtx_scale.specs.supervised import SupervisedConfig
from vtx_scale.specs.vit import ViTConfig

OURS = "vtx-scale"
Outputs = tuple[Tensor, ...]


@dataclass
class Model:
    """module: what has parameters; run: its outputs, in the mode that the module is in; after:
    what a step ends with.
    """

    module: nn.Module
    run: Callable[[], Outputs]
    after: Callable[[], object] = lambda: None


@dataclass
class Family:
    """models: ours first. tolerance: how far outputs in eval mode may lie apart, of the largest."""

    models: dict[str, Model]
    batch: int
    tolerance: float = 1e-4
    kinds: tuple[str, ...] = ("forward", "step")


@torch.no_grad()
def filled(module: nn.Module) -> Any:
    """Values that keep the size of what they carry, none of them so small that
    arithmetic slows down.
    """
    generator = torch.Generator().manual_seed(0)
    for name, t in module.state_dict().items():
        if name.endswith("running_var"):
            t.fill_(1)
        elif "logit" in name:
            t.fill_(-10 if "bias" in name else math.log(10))
        elif t.ndim < 2:
            t.normal_(0, 0.02, generator=generator).add_("norm" in name and name.endswith("weight"))
        else:
            t.normal_(0, t[0].numel() ** -0.5, generator=generator)
    return module


def images(count: int, side: int, device: torch.device) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)


def tokens(count: int, context: int, vocab: int, device: torch.device) -> Tensor:
    """Texts of half the context, ended and filled up by the last id."""
    ids = torch.randint(1, vocab - 2, (count, context), generator=torch.Generator().manual_seed(2))
    ids[:, context // 2 :] = vocab - 1
    return ids.to(device)


def slots_of(count: int, device: torch.device) -> SlotContext:
    return SlotContext(
        torch.ones(count, dtype=torch.bool, device=device),
        torch.arange(count, device=device),
        step_key(0, 0, device),
        Ranks(),
    )


def network(module: Any, x: Tensor) -> Model:
    """One of ours: with rows in training, and what moves the running statistics after the step."""
    slots = slots_of(len(x), x.device)

    def run() -> Outputs:
        out = module(x, slots if module.training else None)
        return tuple(out) if out.ndim == 3 else (out,)

    return Model(
        module, run, lambda: [m.update_statistics() for m in with_running_statistics(module)]
    )


def opened(
    write: Callable[[Path], object], read: Callable[[str], nn.Module], device: torch.device
) -> Any:
    """A model of another library by its own loading code, from what we export."""
    with tempfile.TemporaryDirectory(prefix="vtx-bench-") as folder:
        write(Path(folder))
        return read(folder).to(device)


def local(library: Any, **changes: object) -> Callable[[str], nn.Module]:
    return lambda folder: library.create_model(f"local-dir:{folder}", **changes)


def vits(
    spec: ViTConfig,
    device: torch.device,
    batch: int,
    side: int = 0,
    libraries: Iterable[str] = ("timm", "transformers"),
    **changes: object,
) -> dict[str, Model]:
    ours = filled(ViT(spec)).to(device)
    x = images(batch, side or spec.resolution, device)
    models = {OURS: network(ours, x)}

    def export(to: str) -> Callable[[Path], object]:
        return lambda folder: export_vit(spec, ours.state_dict(), to, folder, HALF, HALF)

    if "timm" in libraries:
        theirs = opened(export("timm"), local(timm, pretrained=True, **changes), device)

        def run() -> Outputs:
            if spec.distilled:
                theirs.set_distilled_training(theirs.training)
            out = theirs(x)
            return out if isinstance(out, tuple) else (out,)

        models["timm"] = Model(theirs, run)
    if "transformers" in libraries:
        kind = (
            transformers.DeiTForImageClassificationWithTeacher
            if spec.distilled
            else transformers.ViTForImageClassification
        )
        other = opened(export("transformers"), kind.from_pretrained, device)

        def run_other() -> Outputs:
            out = other(x)
            return (
                (out.cls_logits, out.distillation_logits)
                if spec.distilled and other.training
                else (out.logits,)
            )

        models["transformers"] = Model(other, run_other)
    return models


def vit_s16(device: torch.device, batch: int) -> Family:
    batch = batch or 4
    return Family(vits(ViTConfig.size("S/16", classes=1000), device, batch), batch)


def deit_s16(device: torch.device, batch: int) -> Family:
    batch = batch or 4
    return Family(vits(ViTConfig.size("S/16", classes=1000, distilled=True), device, batch), batch)


def dino_224(device: torch.device, batch: int) -> Family:
    batch = batch or 4
    return Family(
        vits(ViTConfig.size("S/16"), device, batch, 224, ["timm"], dynamic_img_size=True), batch
    )


def dino_96(device: torch.device, batch: int) -> Family:
    """Positions are resampled on the way: ours as DINO's own code does,
    timm's a little otherwise.
    """
    batch = batch or 8
    return Family(
        vits(ViTConfig.size("S/16"), device, batch, 96, ["timm"], dynamic_img_size=True), batch, 1.0
    )


def resnet50(device: torch.device, batch: int) -> Family:
    batch = batch or 4
    spec = ResNetConfig.size("50", classes=1000)
    ours = filled(ResNet(spec)).to(device)
    x = images(batch, spec.resolution, device)
    theirs = opened(
        lambda f: export_resnet(spec, ours.state_dict(), "timm", f),
        local(timm, pretrained=True),
        device,
    )
    return Family({OURS: network(ours, x), "timm": Model(theirs, lambda: (theirs(x),))}, batch)


HYBRID = [
    *under(
        "stem.",
        "patch_embed.backbone.",
        [
            *[Line(f"{x}.{{p}}", f"stem.{x}.{{p}}") for x in ("conv", "norm")],
            *[
                line
                for k in range(4)
                for line in under(
                    f"stages.{k}.{{n}}.",
                    f"stages.{k}.blocks.{{n}}.",
                    [
                        *[
                            Line(f"{x}{i}.{{p}}", f"{x}{i}.{{p}}")
                            for i in "123"
                            for x in ("conv", "norm")
                        ],
                        Line("shortcut.weight", "downsample.conv.weight"),
                        Line("norm_shortcut.{p}", "downsample.norm.{p}"),
                    ],
                )
            ],
        ],
    ),
    *TIMM,
]


def hybrid(device: torch.device, batch: int) -> Family:
    """R26+S/32; timm's eps are others."""
    batch = batch or 4
    spec = ViTConfig.size("R26+S/32", classes=1000)
    ours = filled(ViT(spec)).to(device)
    x = images(batch, spec.resolution, device)
    theirs = timm.create_model("vit_small_r26_s32_224", num_classes=1000).to(device)
    theirs.load_state_dict(to_foreign(HYBRID, ours.state_dict()))
    return Family(
        {OURS: network(ours, x), "timm": Model(theirs, lambda: (theirs(x),))}, batch, 1e-2
    )


def clips(name: str, device: torch.device, batch: int) -> Family:
    spec = ClipConfig.size(name)
    ours = filled(clip.Clip(spec, Context())).to(device)
    x = images(batch, spec.image.resolution, device)
    words = tokens(batch, spec.text.context, spec.text.vocab, device)
    slots = slots_of(batch, device)

    def run() -> Outputs:
        if ours.image_proj is None:
            image = ours.image(x, slots if ours.training else None)
        else:
            image = ours.image(x) @ ours.image_proj
        return clip.unit(image), ours.encode_text(words)

    def export(to: str) -> Callable[[Path], object]:
        return lambda folder: export_clip(spec, ours.state_dict(), to, folder)

    other = opened(export("open_clip"), local(open_clip), device)
    models = {
        OURS: Model(
            ours, run, lambda: [m.update_statistics() for m in with_running_statistics(ours)]
        ),
        "open_clip": Model(
            other,
            lambda: (
                other.encode_image(x, normalize=True),
                other.encode_text(words, normalize=True),
            ),
        ),
    }
    if isinstance(spec.image, ViTConfig):
        hf = opened(export("transformers"), transformers.CLIPModel.from_pretrained, device)

        def run_hf() -> Outputs:
            out = hf(pixel_values=x, input_ids=words)
            return out.image_embeds, out.text_embeds

        models["transformers"] = Model(hf, run_hf)
    return Family(models, batch)


def clip_vit_b32(device: torch.device, batch: int) -> Family:
    return clips("ViT-B/32", device, batch or 2)


def clip_rn50(device: torch.device, batch: int) -> Family:
    return clips("RN50", device, batch or 2)


def siglip_b16(device: torch.device, batch: int) -> Family:
    """open_clip's has exact GELU in version 1; here it gets the published tanh,
    as the others have it.
    """
    batch = batch or 2
    spec = SiglipConfig.size("B/16")
    ours = filled(siglip.Siglip(spec, Context())).to(device)
    x = images(batch, spec.image.resolution, device)
    words = tokens(batch, spec.text.context, spec.text.vocab, device)
    hf = opened(
        lambda f: export_siglip(spec, ours.state_dict(), "transformers", f),
        transformers.SiglipModel.from_pretrained,
        device,
    )
    other: Any = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None).to(device)
    other.load_state_dict(to_foreign(SIGLIP_OPEN_CLIP, ours.state_dict()))
    for module in other.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"

    def run_hf() -> Outputs:
        out = hf(pixel_values=x, input_ids=words)
        return out.image_embeds, out.text_embeds

    return Family(
        {
            OURS: Model(ours, lambda: (siglip.unit(ours.image(x)), ours.encode_text(words))),
            "transformers": Model(hf, run_hf),
            "open_clip": Model(
                other,
                lambda: (
                    other.encode_image(x, normalize=True),
                    other.encode_text(words, normalize=True),
                ),
            ),
        },
        batch,
    )


def batch_of(device: torch.device, **data: Tensor) -> Batch:
    n = len(next(iter(data.values())))
    number = torch.arange(n, device=device)
    return Batch(
        data,
        torch.ones(n, dtype=torch.bool, device=device),
        number,
        torch.zeros_like(number),
        number,
    )


class Features(nn.Module):
    """What two towers would give."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image, self.text = (
            nn.Parameter(F.normalize(torch.randn(count, width, generator=generator), dim=-1))
            for _ in range(2)
        )
        self.scale, self.bias = (
            nn.Parameter(torch.tensor([math.log(10)])),
            nn.Parameter(torch.tensor([-10.0])),
        )


def pair_loss(
    objective: Any, theirs: Callable[[Features], Tensor], count: int, device: torch.device
) -> Family:
    """The end of an objective of two towers, whose towers answer at once."""
    ours, other = Features(count, 512).to(device), Features(count, 512).to(device)
    objective.encode_image = objective.encode_text = lambda x, slots=None: x
    objective.logit_scale = ours.scale
    if objective.logit_bias is not None:
        objective.logit_bias = ours.bias

    def run() -> Outputs:
        return (objective(batch_of(device, image=ours.image, tokens=ours.text))[0] / count,)

    return Family(
        {OURS: Model(ours, run), "open_clip": Model(other, lambda: (theirs(other),))},
        count,
        kinds=("loss",),
    )


def clip_loss(device: torch.device, batch: int) -> Family:
    spec = ClipConfig(
        image=image_tower("s/16", depth=1),
        text=TextTowerConfig(depth=1, width=64, heads=1, vocab=8),
    )
    loss = open_clip.ClipLoss()
    return pair_loss(
        clip.Clip(spec, Context()),
        lambda f: loss(f.image, f.text, f.scale.exp()),
        batch or 256,
        device,
    )


def siglip_loss(device: torch.device, batch: int) -> Family:
    spec = SiglipConfig(
        image=ViTConfig.size("S/16", pool="map", class_token=False, depth=1),
        text=SiglipTextConfig(width=64, depth=1, mlp=64, heads=1, vocab=8, embed=384),
    )
    loss = open_clip.loss.SigLipLoss()
    return pair_loss(
        siglip.Siglip(spec, Context()),
        lambda f: loss(f.image, f.text, f.scale.exp(), f.bias),
        batch or 256,
        device,
    )


class Answers(nn.Module):
    """A classifier that answers at once."""

    def __init__(self, count: int, classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(
            torch.randn(count, classes, generator=torch.Generator().manual_seed(4))
        )

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        return self.logits


def softmax_loss(device: torch.device, batch: int) -> Family:
    """The objective's also counts how many are right."""
    count = batch or 256
    net = ViTConfig.size("s/16", depth=1, classes=1000)
    objective = Supervised(SupervisedConfig(net=net, smoothing=0.1), Context())
    ours, other = Answers(count, 1000).to(device), Answers(count, 1000).to(device)
    objective.net = ours
    label = (torch.arange(count) * 37 % 1000).to(device)
    given = batch_of(
        device, image=torch.zeros(count, 1, 1, 3, dtype=torch.uint8, device=device), label=label
    )
    return Family(
        {
            OURS: Model(ours, lambda: (objective(given)[0] / count,)),
            "torch": Model(
                other, lambda: (F.cross_entropy(other.logits, label, label_smoothing=0.1),)
            ),
        },
        count,
        kinds=("loss",),
    )


FAMILIES: dict[str, Callable[[torch.device, int], Family]] = {
    f.__name__: f
    for f in (
        vit_s16,
        deit_s16,
        dino_224,
        dino_96,
        resnet50,
        hybrid,
        clip_vit_b32,
        clip_rn50,
        siglip_b16,
        clip_loss,
        siglip_loss,
        softmax_loss,
    )
}

NOTES = {  # "family kind": why ours is slower there
    "clip_loss loss": "masked slots are left out of rows and columns: about a millisecond a step",
    "siglip_loss loss": "masked slots are left out of rows and columns: "
    "less than a millisecond a step",
    "softmax_loss loss": "labels that are absent, masked slots and the accuracy: "
    "less than a millisecond a step",
}


def sync(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def step(model: Model) -> None:
    """The loss weighs all outputs differently, or is the output, where that is one number."""
    for p in model.module.parameters():
        p.grad = None
    total: Any = 0
    for y in model.run():
        weigh = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y) if y.numel() > 1 else 1
        total = total + (y * weigh).sum()
    total.backward()
    model.after()


@torch.no_grad()
def forward(model: Model) -> None:
    model.run()


@torch.no_grad()
def apart(models: dict[str, Model]) -> float:
    """The largest difference of an output of theirs from ours, of the largest of ours."""
    first, *others = ([*m.run()] for m in models.values())
    return max(
        float((a - b).abs().max() / a.abs().max())
        for other in others
        for a, b in zip(first, other, strict=True)
    )


def measured(family: Family, kind: str, pairs: int, device: torch.device) -> dict[str, Any]:
    work = forward if kind == "forward" else step
    names = list(family.models)
    for model in family.models.values():
        model.module.train(kind != "forward")
    began = sync(device)
    for name in names:  # warms caches and counts for nothing
        work(family.models[name])
    repeat = max(1, math.ceil(0.1 * len(names) / max(1e-6, sync(device) - began)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(pairs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = sync(device)
            for _ in range(repeat):
                work(family.models[name])
            times[name].append((sync(device) - began) / repeat)
            for p in family.models[name].module.parameters():
                p.grad = None
    row: dict[str, Any] = {
        "batch": family.batch,
        "ms": {n: round(statistics.median(t) * 1e3, 3) for n, t in times.items()},
    }
    ratios = {
        n: sorted(a / b for a, b in zip(times[OURS], times[n], strict=True)) for n in names[1:]
    }
    row["ratio"] = {n: spread(r) for n, r in ratios.items()}
    row["best"] = max(ratios, key=lambda n: row["ratio"][n]["median"])
    return row


def spread(ratios: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        place = share * (len(ratios) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ratios) - 1)
        return round(ratios[low] + (place - low) * (ratios[high] - ratios[low]), 4)

    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9)}


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    ask.add_argument("--pairs", type=int, default=9)
    ask.add_argument("--batch", type=int, default=0, help="instead of each family's own")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--out", default="benchmarks/results/models.json")
    args = ask.parse_args()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # that weights are not pretrained: they are ours
    torch.set_num_threads(1)
    device = torch.device(args.device)
    found: dict[str, dict[str, Any]] = {}
    print(
        f"{'family':<14}{'':<9}{'batch':>5}{'ours, ms':>11}  "
        f"{'quickest other, ms':<24}{'ratio':>7}   p10 to p90"
    )
    for name in args.families:
        family = FAMILIES[name](device, args.batch)
        for kind in family.kinds:
            if kind == "forward":
                for model in family.models.values():
                    model.module.eval()
            far = apart(family.models) if kind in ("forward", "loss") else 0.0
            if far > family.tolerance:
                raise SystemExit(
                    f"{name}: outputs lie {far:.1e} apart; this would compare different models."
                )
            row = measured(family, kind, args.pairs, device)
            if kind != "step":
                row["outputs_apart"] = float(f"{far:.1e}")
            if note := NOTES.get(f"{name} {kind}"):
                row["note"] = note
            found.setdefault(name, {})[kind] = row
            best, ratio = row["best"], row["ratio"][row["best"]]
            other = f"{row['ms'][best]:.2f} {best}"
            print(
                f"{name:<14}{kind:<9}{row['batch']:>5}{row['ms'][OURS]:>11.2f}  "
                f"{other:<24}{ratio['median']:>7.3f}   {ratio['p10']:.3f} to {ratio['p90']:.3f}"
                + (f"  ({note})" if note else ""),
                flush=True,
            )
        del family
    report = {
        "processor": processor(device),
        "device": str(device),
        "threads": 1,
        "pairs": args.pairs,
        "dtype": "float32",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "open_clip": open_clip.__version__,
        "families": found,
    }
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
