"""Small trainings on CIFAR-10 (Krizhevsky 2009) as tars:
minutes on one core, to see that an objective learns.

`benchmarks/learning.py` runs them beside the same network untrained and beside raw pixels;
docs/log.md says what came out. They have no smoke sizes: they are small. Networks start
xavier-uniform: at these widths 0.02 is too small a deviation.
"""

from dataclasses import replace
from typing import Any

from vtx_scale.specs.dino import Crops, DinoConfig
from vtx_scale.specs.igpt import IgptConfig, PixelGPTConfig
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System
from vtx_scale.specs.supervised import DistillConfig, MaskedConfig, SupervisedConfig
from vtx_scale.specs.vit import ViTConfig


def _net(**changes: Any) -> ViTConfig:
    return ViTConfig(
        **{
            "width": 128,
            "depth": 4,
            "mlp": 512,
            "heads": 4,
            "patch": 4,
            "resolution": 32,
            **changes,
        }
    )


def _run(
    objective: ObjectiveSpec, steps: int, evaluations: tuple[str, ...], lr: float = 1e-3
) -> Run:
    return Run(
        objective=objective,
        data=Data(shards="required", crop=(0.5, 1.0), flip=0.5),
        optim=Optimizer(lr=lr, decay=0.05, clip=1.0),
        schedule=Schedule(kind="cosine", warmup=100),
        steps=steps,
        global_batch=64,
        checkpoint=Checkpoint(every=500),
        system=System(workers=0),
        evaluate=tuple(Evaluation(name=name) for name in evaluations),
    )


def cifar10_vit() -> Run:
    """A ViT of patch 4 on CIFAR-10's labels."""
    return _run(
        SupervisedConfig(net=_net(classes=10), smoothing=0.1), 1_500, ("accuracy", "knn", "linear")
    )


def cifar10_masked() -> Run:
    """Masked patches on CIFAR-10, a ViT of patch 4."""
    run = _run(MaskedConfig(net=_net()), 1_000, ("loss", "knn", "linear"))
    return replace(run, optim=replace(run.optim, betas=(0.9, 0.95)))


def cifar10_teacher() -> Run:
    """A small ResNet on CIFAR-10's labels, the teacher of cifar10_deit."""
    net = ResNetConfig(blocks=(1, 1, 1), kind="basic", resolution=32, classes=10)
    return _run(
        SupervisedConfig(net=net, pixels="imagenet", smoothing=0.1), 1_500, ("accuracy",), lr=2e-3
    )


def cifar10_deit() -> Run:
    """A hybrid ViT with a distillation token on CIFAR-10;
    objective.teacher_from names the run of cifar10_teacher.
    """
    net = _net(classes=10, distilled=True, stem=(), patch=2)
    return _run(
        DistillConfig(
            net=net, teacher=ResNetConfig(blocks=(1, 1, 1), kind="basic", resolution=32, classes=10)
        ),
        1_500,
        ("accuracy",),
    )


def cifar10_deit_plain() -> Run:
    """The same student without a teacher."""
    net = _net(classes=10, stem=(), patch=2)
    return _run(SupervisedConfig(net=net, smoothing=0.1, pixels="imagenet"), 1_500, ("accuracy",))


def cifar10_igpt() -> Run:
    """iGPT on CIFAR-10 at 16 pixels; objective.palette names 128 colours of
    `vtx data palette --colours 128 --side 16`.
    """
    net = PixelGPTConfig(width=128, depth=6, heads=4, side=16, colours=128)
    run = _run(
        IgptConfig(net=net, palette="required", layer=6),
        1_300,
        ("loss", "linear", "completions"),
        lr=3e-3,
    )
    return replace(
        run,
        data=Data(shards="required", crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5, bicubic=False),
        optim=replace(run.optim, betas=(0.9, 0.95), decay=0.0),
        schedule=replace(run.schedule, warmup=60),
        global_batch=16,
    )


def cifar10_dino() -> Run:
    """DINO on CIFAR-10, a hybrid ViT."""
    crops = Crops(
        local_size=16,
        locals=2,
        global_scale=(0.4, 1.0),
        local_scale=(0.15, 0.5),
        jitter=(0.4, 0.4, 0.2, 0.05),
        grey=0.1,
        blur=(0.0, 0.0, 0.0),
        solarise=0.0,
    )
    dino = DinoConfig(
        net=_net(stem=(), patch=2),
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
    run = _run(dino, 2_500, ("knn", "linear"))
    return replace(
        run,
        data=Data(shards="required"),
        optim=replace(run.optim, clip=3.0, clip_each=True),
        evaluate=(Evaluation(name="knn", every=500), Evaluation(name="linear")),
    )
