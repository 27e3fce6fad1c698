"""SigLIP (Zhai et al. 2023) at the published sizes; `_smoke` runs the same code on toy shards.

Zero-shot on ImageNet as published: B/16 76.2 (at 256 px 76.7, 384 78.6, 512 79.2), L/16@256 80.5,
@384 82.1, So400m/14@384 83.2 %. Trained on WebLI, 40 billion pairs; 5 billion more at a higher
resolution, at a hundredth of the rate and without decay. The vocabulary has 32,000 ids: make a
tokenizer.json with `vtx data tokenizer`.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System
from vtx_scale.specs.siglip import SiglipConfig


def _webli(size: str) -> Run:
    return Run(
        objective=SiglipConfig.size(size),
        data=Data(shards="required", tokenizer="tokenizer.json"),
        optim=Optimizer(kind="adafactor", lr=1e-3, betas=(0.9, 0.95), decay=0.1, clip=1.0),
        schedule=Schedule(kind="cosine", warmup=10_000),
        steps=1_220_703,
        global_batch=32_768,  # 40 billion pairs
        checkpoint=Checkpoint(every=2_000),
        evaluate=(Evaluation(name="zero_shot", every=10_000),),
        system=System(workers=8),
    )


def _larger(size: str) -> Run:
    """5 billion pairs at a higher resolution."""
    big = _webli(size)
    return replace(big, steps=152_588, optim=replace(big.optim, lr=1e-5, decay=0.0))


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    siglip = cast(SiglipConfig, big.objective)
    image = replace(siglip.image, width=64, depth=2, heads=2, mlp=128, patch=8, resolution=32)
    text = replace(
        siglip.text, width=64, depth=2, heads=2, mlp=128, context=64, vocab=258, embed=64
    )
    return replace(
        big,
        objective=replace(siglip, image=image, text=text),
        data=replace(big.data, shards="toy", tokenizer="bytes"),
        optim=replace(big.optim, lr=1e-3),
        schedule=replace(big.schedule, warmup=2),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=(Evaluation(name="zero_shot"),),
    )


def siglip_vit_b16() -> Run:
    """SigLIP ViT-B/16, 203M parameters, 40B pairs."""
    return _webli("B/16")


def siglip_vit_b16_smoke() -> Run:
    """Twelve steps of a tiny SigLIP on toy shards."""
    return _smoke(siglip_vit_b16())


def siglip_vit_l16_256() -> Run:
    """SigLIP ViT-L/16 at 256 px, 652M parameters, 40B pairs."""
    return _webli("L/16@256")


def siglip_vit_l16_256_smoke() -> Run:
    return _smoke(siglip_vit_l16_256())


def siglip_so400m14() -> Run:
    """SigLIP So400m/14 at 224 px, 877M parameters, 40B pairs of 16 tokens."""
    return _webli("So400m/14")


def siglip_so400m14_smoke() -> Run:
    return _smoke(siglip_so400m14())


def siglip_vit_b16_384() -> Run:
    """SigLIP ViT-B/16 at 384 px: 5B more pairs from the 224 px run (`init.from`)."""
    return _larger("B/16@384")


def siglip_vit_b16_384_smoke() -> Run:
    return _smoke(siglip_vit_b16_384())


def siglip_vit_l16_384() -> Run:
    """SigLIP ViT-L/16 at 384 px: 5B more pairs from the 256 px run (`init.from`)."""
    return _larger("L/16@384")


def siglip_vit_l16_384_smoke() -> Run:
    return _smoke(siglip_vit_l16_384())


def siglip_so400m14_384() -> Run:
    """SigLIP So400m/14 at 384 px: 5B more pairs from a 224 px run with
    objective.text.context=64 (`init.from`).
    """
    return _larger("So400m/14@384")


def siglip_so400m14_384_smoke() -> Run:
    return _smoke(siglip_so400m14_384())
