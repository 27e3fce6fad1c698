"""VirTex on COCO captions (Desai & Johnson 2021): 500,000 steps of 256;
`_smoke` runs the same code on toy shards.

As published, VOC07 mAP / ImageNet linear top-1: H512 88.4 / 51.8, H768 88.3 / 52.3, H1024
88.3 / 53.2, H2048 88.7 / 53.8; two to four layers 88.8 / 53.8, 88.7 / 53.9, 88.7 / 53.9; R50w2x
88.5 / 52.9, R101 88.7 / 52.1; forward captioning alone 88.6 / 50.8 (H2048). The vocabulary has
10,000 ids: make a tokenizer.json with `vtx data tokenizer --vocab 10000`.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System
from vtx_scale.specs.virtex import VirtexConfig


def _coco(size: str) -> Run:
    return Run(
        objective=VirtexConfig.size(size),
        data=Data(
            shards="required",
            tokenizer="tokenizer.json",
            crop=(0.2, 1.0),
            flip=0.5,
            bicubic=False,
            centre=0.875,
        ),
        optim=Optimizer(
            kind="lookahead", lr=1e-3, trunk_lr=0.2, betas=(0.9, 0.999), decay=1e-4, clip=10.0
        ),
        schedule=Schedule(kind="cosine", warmup=10_000),
        steps=500_000,
        global_batch=256,
        checkpoint=Checkpoint(every=2_000),
        system=System(workers=8),
        evaluate=(
            Evaluation(name="linear", every=20_000),
            Evaluation(name="captions", every=20_000),
        ),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    virtex = cast(VirtexConfig, big.objective)
    net = ResNetConfig(blocks=(1, 1, 1), kind="basic", resolution=32)
    return replace(
        big,
        objective=replace(virtex, net=net, width=64, context=24, vocab=258, beam=2),
        data=replace(big.data, shards="toy", tokenizer="bytes"),
        optim=replace(big.optim, lr=1e-2, trunk_lr=0.05),
        schedule=replace(big.schedule, warmup=2),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=tuple(Evaluation(name=e.name) for e in big.evaluate),
    )


def virtex_r50_h512() -> Run:
    """VirTex, ResNet-50 and one layer of 512."""
    return _coco("R50-L1-H512")


def virtex_r50_h512_smoke() -> Run:
    return _smoke(virtex_r50_h512())


def virtex_r50_h768() -> Run:
    """VirTex, ResNet-50 and one layer of 768."""
    return _coco("R50-L1-H768")


def virtex_r50_h768_smoke() -> Run:
    return _smoke(virtex_r50_h768())


def virtex_r50() -> Run:
    """VirTex, ResNet-50 and one layer of 1,024."""
    return _coco("R50-L1-H1024")


def virtex_r50_smoke() -> Run:
    """Twelve steps of a tiny VirTex on toy shards."""
    return _smoke(virtex_r50())


def virtex_r50_h2048() -> Run:
    """VirTex, ResNet-50 and one layer of 2,048: the best published."""
    return _coco("R50-L1-H2048")


def virtex_r50_h2048_smoke() -> Run:
    return _smoke(virtex_r50_h2048())


def virtex_r50_l4() -> Run:
    """VirTex, ResNet-50 and four layers of 1,024."""
    return _coco("R50-L4-H1024")


def virtex_r50_l4_smoke() -> Run:
    return _smoke(virtex_r50_l4())


def virtex_r101() -> Run:
    """VirTex, ResNet-101 and one layer of 1,024."""
    return _coco("R101-L1-H1024")


def virtex_r101_smoke() -> Run:
    return _smoke(virtex_r101())


def virtex_r50_h2048_forward() -> Run:
    """VirTex that writes captions forwards alone."""
    big = _coco("R50-L1-H2048")
    virtex = cast(VirtexConfig, big.objective)
    return replace(big, objective=replace(virtex, directions="forward"))


def virtex_r50_h2048_forward_smoke() -> Run:
    return _smoke(virtex_r50_h2048_forward())
