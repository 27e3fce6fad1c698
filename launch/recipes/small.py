"""Between smoke and published: some thousand pictures of one's own,
on one GPU in minutes or on a laptop's two cores in an hour or so (`docs/own_data.md`).

"small" is the training, between smoke and published, and not the size ViT-S: the networks are ViTs
of ViT-Ti's width, 192, with 4 blocks, at 64 pixels with 8 pixels a token. `vit_small` and
`dino_small` have one backbone on the root of a ResNet, so that one starts from the other
(`init.from=RUN init.head=new`): convolutions at the bottom are what small sets want (Hassani et al.
2021, "Escaping the Big Data Paradigm with Compact Transformers"; it is R+Ti/16 of Steiner et al.
2022 with a shorter body). `clip_small` has CLIP's own form, which transformers and open_clip take.

* `vit_small`: RandAugment and mixup at the light end of Steiner et al. 2022 (2 operations, mixup
  0.2), decay, smoothing 0.1 and drop path 0.1 of DeiT (Touvron et al. 2021), warm-up and cosine.
  Fine-tuned weights want a tenth of its rate or less (`optim.lr=1e-4`) and a third of its epochs.
* `dino_small`: Caron et al. 2021 with the settings of `cifar10_dino`, which were measured: batch
  norm in the head, few prototypes, a faster teacher (0.99), mild colours, no blur.
* `clip_small`: Radford et al. 2021's optimizer (0.9, 0.98, 1e-6, decay 0.2) at a rate for a small
  batch. Weights that were published are fine-tuned on captions at 1e-5, in batches of 512, without
  another loss (FLYP, Goyal et al. 2023): give `clip_vit_b32` these keys, not this recipe.

Rates and batches are those of `cifar10_*`, which were measured; epochs are what 5,000 pictures
allow in an hour of two cores (`benchmarks/own_data.py` scores all three). Networks but CLIP's start
xavier-uniform: at these widths 0.02 is too small a deviation.
"""

from dataclasses import replace
from typing import Any, cast

from vtx_scale.specs.clip import ClipConfig, TextTowerConfig, image_tower
from vtx_scale.specs.dino import Crops, DinoConfig
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import (
    Augment,
    Checkpoint,
    Data,
    Evaluation,
    Optimizer,
    Run,
    Schedule,
    System,
)
from vtx_scale.specs.supervised import SupervisedConfig
from vtx_scale.specs.vit import ViTConfig

TINY: dict[str, Any] = {"width": 64, "depth": 2, "heads": 2, "mlp": 128, "resolution": 32}


def _net(**changes: Any) -> ViTConfig:
    return ViTConfig(
        **{
            "width": 192,
            "depth": 4,
            "mlp": 768,
            "heads": 3,
            "stem": (),
            "patch": 2,
            "resolution": 64,
            **changes,
        }
    )


def _run(objective: ObjectiveSpec, epochs: float, evaluations: tuple[str, ...]) -> Run:
    """`evaluations`: the first one every 500 steps, all at the end."""
    return Run(
        objective=objective,
        data=Data(shards="required"),
        optim=Optimizer(lr=1e-3, decay=0.05, clip=1.0),
        schedule=Schedule(kind="cosine", warmup=100),
        epochs=epochs,
        global_batch=64,
        checkpoint=Checkpoint(every=500),
        evaluate=tuple(
            Evaluation(name=name, every=0 if k else 500) for k, name in enumerate(evaluations)
        ),
    )


def _smoke(run: Run, objective: ObjectiveSpec) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    return replace(
        run,
        objective=objective,
        data=replace(run.data, shards="toy"),
        schedule=replace(run.schedule, warmup=2),
        epochs=None,
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=tuple(Evaluation(name=e.name) for e in run.evaluate),
    )


def vit_small() -> Run:
    """Labels, from some thousand pictures: a small ViT at 64 px (not ViT-S), 100 epochs;
    objective.net.classes says how many classes.
    """
    run = _run(
        SupervisedConfig(net=_net(classes=10, drop_path=0.1), smoothing=0.1, pixels="imagenet"),
        100,
        ("accuracy",),
    )
    augment = Augment(randaug_layers=2, randaug_magnitude=9, mixup=0.2)
    return replace(run, data=replace(run.data, crop=(0.35, 1.0), flip=0.5, augment=augment))


def vit_small_smoke() -> Run:
    run = vit_small()
    supervised = cast(SupervisedConfig, run.objective)
    return _smoke(run, replace(supervised, net=_net(**TINY, classes=12)))


def dino_small() -> Run:
    """DINO, from some thousand pictures without labels: a small ViT at 64 px, 30 epochs."""
    crops = Crops(
        local_size=32,
        locals=2,
        global_scale=(0.4, 1.0),
        local_scale=(0.15, 0.5),
        jitter=(0.4, 0.4, 0.2, 0.05),
        grey=0.1,
        blur=(0.0, 0.0, 0.0),
        solarise=0.0,
    )
    dino = DinoConfig(
        net=_net(),
        crops=crops,
        prototypes=1_024,
        hidden=256,
        bottleneck=64,
        head_norm=True,
        frozen=50,
        momentum=0.99,
        last_blocks=1,
        patch_mean=True,
    )
    run = _run(dino, 30, ("knn", "linear"))
    return replace(run, optim=replace(run.optim, clip=3.0, clip_each=True))


def dino_small_smoke() -> Run:
    run = dino_small()
    dino = cast(DinoConfig, run.objective)
    tiny = replace(dino, net=_net(**TINY), prototypes=96, hidden=64, bottleneck=32, frozen=2)
    return _smoke(run, replace(tiny, crops=replace(dino.crops, local_size=16)))


def clip_small() -> Run:
    """CLIP, from some thousand pictures with captions: a small ViT at 64 px and 4 blocks of text
    over bytes, 60 epochs.
    """
    clip = ClipConfig(
        image=replace(image_tower("Ti/16"), depth=4, patch=8, resolution=64),
        text=TextTowerConfig(width=128, depth=4, heads=2, context=80, vocab=258),
        embed=128,
    )
    run = _run(clip, 60, ("retrieval",))
    return replace(
        run,
        data=replace(run.data, crop=(0.5, 1.0), tokenizer="bytes"),
        optim=Optimizer(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.2, clip=1.0),
        global_batch=128,
    )


def clip_small_smoke() -> Run:
    run = clip_small()
    clip = cast(ClipConfig, run.objective)
    text = replace(clip.text, width=32, depth=2, context=64)
    image = replace(cast(ViTConfig, clip.image), **TINY)
    return _smoke(run, replace(clip, image=image, text=text, embed=32))
