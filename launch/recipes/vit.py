"""ViT, supervised: JFT, ImageNet-21k and ImageNet-1k; masked patches;
fine-tuning (Dosovitskiy et al. 2021, Zhai et al. 2022).

ImageNet top-1 after fine-tuning at 384 px, as published: from JFT-300M B/32 80.73, B/16 84.15, L/32
84.37, L/16 87.12 (14 epochs), H/14 88.08; from ImageNet-21k B/16 83.97, L/16 85.15, H/14 85.13;
G/14 from JFT-3B 90.45 %.
The learning rates and decays are the papers' in torch's meaning of decay. JFT is not public:
`data.shards` names any set whose `cls` members hold one or several class numbers.
"""

from dataclasses import replace
from typing import cast

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
from vtx_scale.specs.supervised import MaskedConfig, SupervisedConfig
from vtx_scale.specs.vit import ViTConfig

JFT_300M, JFT_3B, IMAGENET_21K = 18_291, 29_593, 21_843  # classes
EPOCH = {"jft": 303_000_000, "21k": 14_197_122, "1k": 1_281_167}  # pictures

INCEPTION = Data(shards="required", crop=(0.05, 1.0), flip=0.5, bicubic=False, centre=0.875)


def _run(
    objective: SupervisedConfig | MaskedConfig,
    optim: Optimizer,
    schedule: Schedule,
    steps: int,
    batch: int = 4_096,
    data: Data = INCEPTION,
    evaluations: tuple[str, ...] = ("accuracy",),
) -> Run:
    return Run(
        objective=objective,
        data=data,
        optim=optim,
        schedule=schedule,
        steps=steps,
        global_batch=batch,
        checkpoint=Checkpoint(every=1_000),
        system=System(workers=8),
        evaluate=tuple(Evaluation(name=name, every=10_000) for name in evaluations),
    )


def _jft_smoke(big: Run) -> Run:
    """The same, of at most two labels a sample."""
    small = _smoke(big)
    supervised = cast(SupervisedConfig, small.objective)
    return replace(small, objective=replace(supervised, labels=min(2, supervised.labels)))


def _smoke(big: Run, classes: int = 12) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    objective = cast(SupervisedConfig | MaskedConfig, big.objective)
    net = cast(ViTConfig, objective.net)
    patch = 8 if net.stem is None else 1
    net = replace(
        net,
        width=64,
        depth=2,
        heads=2,
        mlp=128,
        patch=patch,
        resolution=48 if big.init.from_ else 32,
        classes=classes if net.classes else 0,
        stem=(1, 1) if net.stem else net.stem,
    )
    small = replace(objective, net=net)
    schedule = replace(
        big.schedule, warmup=min(2, big.schedule.warmup), cooldown=min(4, big.schedule.cooldown)
    )
    init = replace(big.init, from_="smoke:vit_b16_jft" if big.init.from_ else "")
    return replace(
        big,
        objective=small,
        data=replace(big.data, shards="toy"),
        optim=replace(big.optim, lr=1e-3),
        schedule=schedule,
        init=init,
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=tuple(Evaluation(name=e.name) for e in big.evaluate),
    )


def _jft(size: str, lr: float, epochs: int) -> Run:
    """The paper's pre-training on JFT-300M: sigmoid losses, linear decay,
    no clipping, no dropout.
    """
    net = ViTConfig.size(size, classes=JFT_300M, representation=True)
    return _run(
        SupervisedConfig(net=net, loss="sigmoid", labels=16, head_bias=-10.0),
        Optimizer(lr=lr, decay=0.1),
        Schedule(kind="linear", warmup=10_000),
        EPOCH["jft"] * epochs // 4_096,
    )


def vit_b32_jft() -> Run:
    """ViT-B/32 on JFT-300M, 7 epochs."""
    return _jft("B/32", 8e-4, 7)


def vit_b32_jft_smoke() -> Run:
    return _jft_smoke(vit_b32_jft())


def vit_b16_jft() -> Run:
    """ViT-B/16 on JFT-300M, 7 epochs."""
    return _jft("B/16", 8e-4, 7)


def vit_b16_jft_smoke() -> Run:
    return _jft_smoke(vit_b16_jft())


def vit_l32_jft() -> Run:
    """ViT-L/32 on JFT-300M, 7 epochs."""
    return _jft("L/32", 6e-4, 7)


def vit_l32_jft_smoke() -> Run:
    return _jft_smoke(vit_l32_jft())


def vit_l16_jft() -> Run:
    """ViT-L/16 on JFT-300M, 14 epochs."""
    return _jft("L/16", 4e-4, 14)


def vit_l16_jft_smoke() -> Run:
    return _jft_smoke(vit_l16_jft())


def vit_h14_jft() -> Run:
    """ViT-H/14 on JFT-300M, 14 epochs."""
    return _jft("H/14", 3e-4, 14)


def vit_h14_jft_smoke() -> Run:
    return _jft_smoke(vit_h14_jft())


def vit_r50_b16_jft() -> Run:
    """The hybrid R50+ViT-B/16 on JFT-300M, 7 epochs."""
    return _jft("R50+B/16", 8e-4, 7)


def vit_r50_b16_jft_smoke() -> Run:
    return _jft_smoke(vit_r50_b16_jft())


def vit_r50_l16_jft() -> Run:
    """The hybrid R50+ViT-L/16 on JFT-300M, 7 epochs."""
    return _jft("R50+L/16", 4e-4, 7)


def vit_r50_l16_jft_smoke() -> Run:
    return _jft_smoke(vit_r50_l16_jft())


def _jft3b(size: str) -> Run:
    """A million steps of 16,384; attention pooling, Adafactor,
    reciprocal square root with a cool-down, a heavy head decay.
    """
    net = ViTConfig.size(size, classes=JFT_3B, pool="map", class_token=False)
    optim = Optimizer(
        kind="adafactor", lr=8e-4, betas=(0.9, 0.999), decay=0.03, head_decay=3.0, clip=1.0
    )
    return _run(
        SupervisedConfig(net=net, loss="sigmoid", labels=16, head_bias=-10.0),
        optim,
        Schedule(kind="rsqrt", warmup=10_000, timescale=10_000, cooldown=50_000),
        1_000_000,
        16_384,
    )


def vit_g14_jft3b() -> Run:
    """ViT-g/14 on JFT-3B, a billion parameters, Adafactor."""
    return _jft3b("g/14")


def vit_g14_jft3b_smoke() -> Run:
    return _jft_smoke(vit_g14_jft3b())


def vit_bigg14_jft3b() -> Run:
    """ViT-G/14 on JFT-3B, 1.8 billion parameters, Adafactor; rates are g/14's."""
    return _jft3b("G/14")


def vit_bigg14_jft3b_smoke() -> Run:
    return _jft_smoke(vit_bigg14_jft3b())


def vit_e14_jft3b() -> Run:
    """ViT-e/14 on JFT-3B, 3.9 billion parameters; rates are g/14's,
    the published ones are not known here.
    """
    return _jft3b("e/14")


def vit_e14_jft3b_smoke() -> Run:
    return _jft_smoke(vit_e14_jft3b())


def _imagenet21k(size: str, epochs: int) -> Run:
    net = ViTConfig.size(size, classes=IMAGENET_21K, dropout=0.1)
    return _run(
        SupervisedConfig(net=net),
        Optimizer(lr=1e-3, decay=0.03),
        Schedule(kind="linear", warmup=10_000),
        EPOCH["21k"] * epochs // 4_096,
    )


def vit_b16_imagenet21k() -> Run:
    """ViT-B/16 on ImageNet-21k, 90 epochs."""
    return _imagenet21k("B/16", 90)


def vit_b16_imagenet21k_smoke() -> Run:
    return _smoke(vit_b16_imagenet21k())


def vit_l16_imagenet21k() -> Run:
    """ViT-L/16 on ImageNet-21k, 30 epochs."""
    return _imagenet21k("L/16", 30)


def vit_l16_imagenet21k_smoke() -> Run:
    return _smoke(vit_l16_imagenet21k())


def _imagenet(size: str) -> Run:
    net = ViTConfig.size(size, classes=1000, dropout=0.1)
    return _run(
        SupervisedConfig(net=net),
        Optimizer(lr=3e-3, decay=0.3, clip=1.0),
        Schedule(kind="cosine", warmup=10_000),
        EPOCH["1k"] * 300 // 4_096,
    )


def vit_b16_imagenet() -> Run:
    """ViT-B/16 on ImageNet-1k, 300 epochs."""
    return _imagenet("B/16")


def vit_b16_imagenet_smoke() -> Run:
    return _smoke(vit_b16_imagenet())


def vit_l16_imagenet() -> Run:
    """ViT-L/16 on ImageNet-1k, 300 epochs."""
    return _imagenet("L/16")


def vit_l16_imagenet_smoke() -> Run:
    return _smoke(vit_l16_imagenet())


def vit_s16_imagenet() -> Run:
    """ViT-S/16 on ImageNet-1k, 90 epochs: the better plain baseline (Beyer et al. 2022),
    76.5 % as published.
    """
    net = ViTConfig.size(
        "S/16",
        classes=1000,
        pool="gap",
        class_token=False,
        position_kind="sincos2d",
        representation=True,
    )
    augment = Augment(
        randaug_layers=2, randaug_magnitude=10, randaug_noise=0, randaug_increasing=False, mixup=0.2
    )
    return _run(
        SupervisedConfig(net=net),
        Optimizer(lr=1e-3, decay=0.1, clip=1.0),
        Schedule(kind="cosine", warmup=10_000),
        EPOCH["1k"] * 90 // 1_024,
        1_024,
        replace(INCEPTION, augment=augment),
    )


def vit_s16_imagenet_smoke() -> Run:
    return _smoke(vit_s16_imagenet())


def vit_s16_imagenet_muon() -> Run:
    """ViT-S/16 on ImageNet-1k by Muon, at AdamW's rate and decay; not as published."""
    run = vit_s16_imagenet()
    return replace(run, optim=replace(run.optim, kind="muon"))


def vit_s16_imagenet_muon_smoke() -> Run:
    return _smoke(vit_s16_imagenet_muon())


def _finetune(size: str, resolution: int) -> Run:
    """ImageNet-1k at a higher resolution from a pre-trained run (`init.from`):
    SGD without decay, a new classifier.

    Departs from the authors, who squash a picture to 448 x 448 before they cut 384 out: here its
    short side is 448.
    """
    net = ViTConfig.size(size, classes=1000, resolution=resolution)
    zoom = 448 / 384
    data = Data(shards="required", zoom=(zoom, zoom), flip=0.5, bicubic=False, centre=1 / zoom)
    run = _run(
        SupervisedConfig(net=net),
        Optimizer(kind="sgd", lr=0.03, betas=(0.9, 0.999), clip=1.0),
        Schedule(kind="cosine", warmup=500),
        20_000,
        512,
        data,
    )
    return replace(run, init=Init(from_="required", head="new"))


def vit_b16_finetune384() -> Run:
    """ViT-B/16 to ImageNet-1k at 384 px; init.from names the pre-trained run."""
    return _finetune("B/16", 384)


def vit_b16_finetune384_smoke() -> Run:
    return _smoke(vit_b16_finetune384())


def vit_l16_finetune384() -> Run:
    """ViT-L/16 to ImageNet-1k at 384 px; init.from names the pre-trained run."""
    return _finetune("L/16", 384)


def vit_l16_finetune384_smoke() -> Run:
    return _smoke(vit_l16_finetune384())


def vit_b16_masked() -> Run:
    """ViT-B/16, masked patches on JFT-300M, a million steps; fine-tuned 79.9 % as published.

    The decay is JFT's own.
    """
    return _run(
        MaskedConfig(net=ViTConfig.size("B/16")),
        Optimizer(lr=2e-4, decay=0.1),
        Schedule(kind="cosine", warmup=10_000),
        1_000_000,
        evaluations=("loss", "knn", "linear"),
    )


def vit_b16_masked_smoke() -> Run:
    return _smoke(vit_b16_masked())
