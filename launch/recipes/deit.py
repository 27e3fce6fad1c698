"""DeiT on ImageNet-1k (Touvron et al. 2021), plain and distilled.

Top-1 as published: Ti 72.2 / 74.5, S 79.9 / 81.2, B 81.8 / 83.4, B at 384 px
82.9 / 85.2 % (plain / distilled).

A slot holds three views of one picture (repeated augmentation), so 342 slots are the paper's
batch of 1,024. The paper's teacher, RegNetY-16GF, is not among the backbones here:
`objective.teacher_from` names any run of this house or exported weights; a run folder says
its network itself.
"""

from dataclasses import replace
from typing import Any, cast

from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import (
    Augment,
    Checkpoint,
    Data,
    Evaluation,
    Init,
    Optimizer,
    Run,
    Schedule,
    System,
)
from vtx_scale.specs.supervised import DistillConfig, SupervisedConfig
from vtx_scale.specs.vit import ViTConfig

STEPS_OF_EPOCH = 1_281_167 // 1_024  # views count, as in the paper
AUGMENT = Augment(
    randaug_layers=2,
    randaug_magnitude=9,
    randaug_noise=0.5,
    randaug_increasing=True,
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
    repeats=3,
)

SMALL = {
    "width": 64,
    "depth": 2,
    "heads": 2,
    "mlp": 128,
    "patch": 8,
    "resolution": 32,
    "classes": 12,
}


def _run(objective: SupervisedConfig | DistillConfig) -> Run:
    return Run(
        objective=objective,
        data=Data(shards="required", crop=(0.08, 1.0), flip=0.5, centre=0.875, augment=AUGMENT),
        optim=Optimizer(lr=1e-3, decay=0.05),
        schedule=Schedule(kind="cosine", warmup=5 * STEPS_OF_EPOCH, floor=0.01),
        steps=300 * STEPS_OF_EPOCH,
        global_batch=342,
        checkpoint=Checkpoint(every=1_000),
        evaluate=(Evaluation(name="accuracy", every=10_000),),
        system=System(workers=8),
    )


def _plain(size: str) -> Run:
    net = ViTConfig.size(size, classes=1000, drop_path=0.1, init="truncated")
    return _run(SupervisedConfig(net=net, smoothing=0.1, pixels="imagenet"))


def _distilled(size: str) -> Run:
    net = ViTConfig.size(size, classes=1000, drop_path=0.1, init="truncated", distilled=True)
    return _run(DistillConfig(net=net, teacher=ResNetConfig.size("152", classes=1000)))


def _with(
    objective: SupervisedConfig | DistillConfig, **changes: Any
) -> SupervisedConfig | DistillConfig:
    """The objective with another network."""
    return replace(objective, net=replace(cast(ViTConfig, objective.net), **changes))


def _384(run: Run) -> Run:
    """30 epochs at 384 px from the 224 px run (`init.from`)."""
    objective = cast(SupervisedConfig | DistillConfig, run.objective)
    return replace(
        run,
        objective=_with(objective, resolution=384),
        optim=replace(run.optim, lr=1e-5, decay=1e-8),
        schedule=replace(run.schedule, floor=0.5),
        steps=30 * STEPS_OF_EPOCH,
        init=Init(from_="required"),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    small = _with(cast(SupervisedConfig, big.objective), **SMALL)
    return _tiny(big, small, before="deit_b16")


def _distilled_smoke(big: Run) -> Run:
    """The same with a teacher, a tiny one that is trained once in the cache."""
    objective = cast(DistillConfig, big.objective)
    teacher = ResNetConfig.size("18", blocks=(1, 1), resolution=32, classes=12)
    small = _with(replace(objective, teacher=teacher, teacher_from="smoke"), **SMALL)
    return _tiny(big, small, before="deit_b16_distilled")


def _tiny(big: Run, small: SupervisedConfig | DistillConfig, before: str) -> Run:
    return replace(
        big,
        objective=small,
        data=replace(big.data, shards="toy", augment=replace(AUGMENT, repeats=2)),
        schedule=replace(big.schedule, warmup=2 if big.schedule.warmup else 0),
        init=replace(big.init, from_=f"smoke:{before}" if big.init.from_ else ""),
        steps=12,
        global_batch=10,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=(Evaluation(name="accuracy"),),
    )


def deit_ti16() -> Run:
    """DeiT-Ti without a teacher, 300 epochs."""
    return _plain("Ti/16")


def deit_ti16_smoke() -> Run:
    return _smoke(deit_ti16())


def deit_s16() -> Run:
    """DeiT-S without a teacher, 300 epochs."""
    return _plain("S/16")


def deit_s16_smoke() -> Run:
    return _smoke(deit_s16())


def deit_b16() -> Run:
    """DeiT-B without a teacher, 300 epochs."""
    return _plain("B/16")


def deit_b16_smoke() -> Run:
    return _smoke(deit_b16())


def deit_b16_384() -> Run:
    """DeiT-B at 384 px, 30 epochs from the 224 px run."""
    return _384(deit_b16())


def deit_b16_384_smoke() -> Run:
    return _smoke(deit_b16_384())


def deit_ti16_distilled() -> Run:
    """DeiT-Ti with a distillation token, hard answers of objective.teacher_from, 300 epochs."""
    return _distilled("Ti/16")


def deit_ti16_distilled_smoke() -> Run:
    return _distilled_smoke(deit_ti16_distilled())


def deit_s16_distilled() -> Run:
    """DeiT-S with a distillation token, hard answers of objective.teacher_from, 300 epochs."""
    return _distilled("S/16")


def deit_s16_distilled_smoke() -> Run:
    return _distilled_smoke(deit_s16_distilled())


def deit_b16_distilled() -> Run:
    """DeiT-B with a distillation token, hard answers of objective.teacher_from, 300 epochs."""
    return _distilled("B/16")


def deit_b16_distilled_smoke() -> Run:
    return _distilled_smoke(deit_b16_distilled())


def deit_b16_distilled_384() -> Run:
    """DeiT-B with a distillation token at 384 px, 30 epochs from the 224 px run."""
    return _384(deit_b16_distilled())


def deit_b16_distilled_384_smoke() -> Run:
    return _distilled_smoke(deit_b16_distilled_384())
