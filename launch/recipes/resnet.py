"""ResNets on ImageNet-1k (He et al. 2016): the common recipe of 90 epochs.

Top-1 as published: R50 76.1, R101 77.4, R152 78.3 %.

Departs from the common recipe in two places: gains and biases are not decayed, and the rate falls
on a cosine.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System
from vtx_scale.specs.supervised import SupervisedConfig

EPOCH = 1_281_167


def _imagenet(size: str) -> Run:
    return Run(
        objective=SupervisedConfig(net=ResNetConfig.size(size, classes=1000), pixels="imagenet"),
        data=Data(shards="required", crop=(0.08, 1.0), flip=0.5, bicubic=False, centre=0.875),
        optim=Optimizer(kind="sgd", lr=0.4, betas=(0.9, 0.999), decay=1e-4),
        schedule=Schedule(kind="cosine", warmup=5 * EPOCH // 1_024),
        steps=90 * EPOCH // 1_024,
        global_batch=1_024,
        checkpoint=Checkpoint(every=1_000),
        evaluate=(Evaluation(name="accuracy", every=10_000),),
        system=System(workers=8),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    objective = cast(SupervisedConfig, big.objective)
    net = replace(cast(ResNetConfig, objective.net), blocks=(1, 1), resolution=32, classes=12)
    return replace(
        big,
        objective=replace(objective, net=net),
        data=replace(big.data, shards="toy"),
        optim=replace(big.optim, lr=0.05),
        schedule=replace(big.schedule, warmup=2),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=(Evaluation(name="accuracy"),),
    )


def resnet18_imagenet() -> Run:
    """ResNet-18 on ImageNet-1k, 90 epochs."""
    return _imagenet("18")


def resnet18_imagenet_smoke() -> Run:
    return _smoke(resnet18_imagenet())


def resnet34_imagenet() -> Run:
    """ResNet-34 on ImageNet-1k, 90 epochs."""
    return _imagenet("34")


def resnet34_imagenet_smoke() -> Run:
    return _smoke(resnet34_imagenet())


def resnet50_imagenet() -> Run:
    """ResNet-50 on ImageNet-1k, 90 epochs."""
    return _imagenet("50")


def resnet50_imagenet_smoke() -> Run:
    return _smoke(resnet50_imagenet())


def resnet101_imagenet() -> Run:
    """ResNet-101 on ImageNet-1k, 90 epochs."""
    return _imagenet("101")


def resnet101_imagenet_smoke() -> Run:
    return _smoke(resnet101_imagenet())


def resnet152_imagenet() -> Run:
    """ResNet-152 on ImageNet-1k, 90 epochs."""
    return _imagenet("152")


def resnet152_imagenet_smoke() -> Run:
    return _smoke(resnet152_imagenet())
