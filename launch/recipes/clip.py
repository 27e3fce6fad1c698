"""CLIP (Radford et al. 2021) and OpenCLIP at the published sizes;
`_smoke` runs the same code on toy shards.

Zero-shot on ImageNet as published: RN50 59.6, RN101 62.2, RN50x4 65.8, RN50x16 70.5, RN50x64 73.6,
B/32 63.2, B/16 68.6, L/14 75.3, L/14@336 76.2 %; OpenCLIP H/14 78.0, g/14 76.6, bigG/14 80.1 %.
Cost as published: RN50x64 18 days on 592 V100; L/14 12 days on 256 V100; OpenCLIP H/14 on 824 A100.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.clip import ClipConfig, TextTowerConfig, image_tower
from vtx_scale.specs.resnet import ClipResNetConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System
from vtx_scale.specs.vit import ViTConfig


def _openai(size: str, lr: float) -> Run:
    return Run(
        objective=ClipConfig.size(size),
        data=Data(shards="required", crop=(0.9, 1.0), tokenizer="clip"),
        optim=Optimizer(lr=lr, betas=(0.9, 0.98), eps=1e-6, decay=0.2),
        schedule=Schedule(kind="cosine", warmup=2_000),
        steps=390_625,
        global_batch=32_768,  # 32 epochs of 400M pairs
        checkpoint=Checkpoint(every=1_000),
        evaluate=(Evaluation(name="zero_shot", every=5_000),),
        system=System(workers=8),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    clip = cast(ClipConfig, big.objective)
    return _small(
        big,
        replace(
            cast(ViTConfig, clip.image), width=64, depth=2, heads=2, mlp=128, patch=8, resolution=32
        ),
    )


def _resnet_smoke(big: Run) -> Run:
    """The same with a ResNet."""
    clip = cast(ClipConfig, big.objective)
    image = cast(ClipResNetConfig, clip.image)
    return _small(
        big, replace(image, blocks=(1, 1, 1, 1), stem=16, heads=8, resolution=64, embed=32)
    )


def _small(big: Run, image: ViTConfig | ClipResNetConfig) -> Run:
    clip = cast(ClipConfig, big.objective)
    text = replace(clip.text, width=32, depth=2, heads=2, context=64, vocab=258)
    return replace(
        big,
        objective=replace(clip, image=image, text=text, embed=32),
        data=replace(big.data, shards="toy", tokenizer="bytes"),
        optim=replace(big.optim, lr=1e-3),
        schedule=replace(big.schedule, warmup=2),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=(Evaluation(name="zero_shot"),),
    )


def clip_vit_b32() -> Run:
    """CLIP ViT-B/32, 151M parameters, 400M pairs."""
    return _openai("ViT-B/32", 5e-4)


def clip_vit_b32_smoke() -> Run:
    """Twelve steps of a tiny CLIP on toy shards."""
    return _smoke(clip_vit_b32())


def clip_vit_b16() -> Run:
    """CLIP ViT-B/16, 150M parameters, 400M pairs."""
    return _openai("ViT-B/16", 5e-4)


def clip_vit_b16_smoke() -> Run:
    return _smoke(clip_vit_b16())


def clip_vit_l14() -> Run:
    """CLIP ViT-L/14, 428M parameters, 400M pairs."""
    return _openai("ViT-L/14", 4e-4)


def clip_vit_l14_smoke() -> Run:
    return _smoke(clip_vit_l14())


def clip_vit_l14_336() -> Run:
    """CLIP ViT-L/14 at 336 px: one more epoch from the 224 px run (`init.from`)."""
    return replace(_openai("ViT-L/14@336", 2e-5), steps=12_207)  # one epoch of 400M pairs


def clip_vit_l14_336_smoke() -> Run:
    return _smoke(clip_vit_l14_336())


def clip_vit_h14() -> Run:
    """OpenCLIP ViT-H/14, 986M parameters, LAION-2B, 32B samples seen."""
    return replace(
        _openai("ViT-H/14", 5e-4),
        global_batch=79_104,
        steps=404_531,
        schedule=Schedule(kind="cosine", warmup=10_000),
    )


def clip_vit_h14_smoke() -> Run:
    return _smoke(clip_vit_h14())


def clip_vit_h14_bf16_moments() -> Run:
    """OpenCLIP ViT-H/14 with AdamW's moments in bfloat16: 4 bytes a parameter less."""
    run = clip_vit_h14()
    return replace(run, optim=replace(run.optim, moments="bfloat16"))


def clip_vit_h14_bf16_moments_smoke() -> Run:
    return _smoke(clip_vit_h14_bf16_moments())


def clip_vit_g14() -> Run:
    """OpenCLIP ViT-g/14, 1.37B parameters, LAION-2B, 12B samples seen;
    learning rate and warm-up are H/14's.
    """
    return replace(
        clip_vit_h14(), objective=ClipConfig.size("ViT-g/14"), global_batch=42_000, steps=285_714
    )


def clip_vit_g14_smoke() -> Run:
    return _smoke(clip_vit_g14())


def clip_vit_bigg14() -> Run:
    """OpenCLIP ViT-bigG/14, 2.54B parameters, LAION-2B, 32B samples seen;
    patches are not dropped here.
    """
    big = replace(
        _openai("ViT-bigG/14", 2e-3),
        global_batch=160_000,
        steps=200_000,
        schedule=Schedule(kind="cosine", warmup=13_000),
    )
    return replace(big, optim=replace(big.optim, betas=(0.9, 0.95)))


def clip_vit_bigg14_smoke() -> Run:
    return _smoke(clip_vit_bigg14())


def _resnet(size: str, lr: float) -> Run:
    big = _openai(size, lr)
    return replace(big, optim=replace(big.optim, betas=(0.9, 0.999), eps=1e-8))


def clip_rn50() -> Run:
    """CLIP ResNet-50, 102M parameters, 400M pairs."""
    return _resnet("RN50", 5e-4)


def clip_rn50_smoke() -> Run:
    """Twelve steps of a tiny CLIP with a ResNet on toy shards."""
    return _resnet_smoke(clip_rn50())


def clip_rn101() -> Run:
    """CLIP ResNet-101, 120M parameters, 400M pairs."""
    return _resnet("RN101", 5e-4)


def clip_rn101_smoke() -> Run:
    return _resnet_smoke(clip_rn101())


def clip_rn50x4() -> Run:
    """CLIP RN50x4, 178M parameters, 288 px, 400M pairs."""
    return _resnet("RN50x4", 5e-4)


def clip_rn50x4_smoke() -> Run:
    return _resnet_smoke(clip_rn50x4())


def clip_rn50x16() -> Run:
    """CLIP RN50x16, 291M parameters, 384 px, 400M pairs."""
    return _resnet("RN50x16", 4e-4)


def clip_rn50x16_smoke() -> Run:
    return _resnet_smoke(clip_rn50x16())


def clip_rn50x64() -> Run:
    """CLIP RN50x64, 623M parameters, 448 px, 400M pairs."""
    return _resnet("RN50x64", 3.6e-4)


def clip_rn50x64_smoke() -> Run:
    return _resnet_smoke(clip_rn50x64())


def clip_digits() -> Run:
    """A small CLIP on scikit-learn's handwritten digits: the demo, minutes on two cores."""
    image = image_tower("s/16", resolution=32, width=96, depth=4, heads=3, mlp=384, patch=8)
    text = TextTowerConfig(width=64, depth=2, heads=2, context=32, vocab=258)
    return Run(
        objective=ClipConfig(image=image, text=text, embed=64),
        data=Data(shards="required", crop=(0.8, 1.0), tokenizer="bytes"),
        optim=Optimizer(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.1, clip=1.0),
        schedule=Schedule(kind="cosine", warmup=20),
        steps=600,
        global_batch=64,
        system=System(workers=1),
        checkpoint=Checkpoint(every=20),
        evaluate=(Evaluation(name="zero_shot", every=200),),
    )
