"""DALL-E (Ramesh et al. 2021) at its sizes: 430,000 updates of 1,024 pairs;
`_smoke` runs the same code on toy shards.

objective.codec_from names the run of the discrete VAE. MS-COCO, votes beside DF-GAN: realism
90.0 %. The rate falls by half at five plateaus that its authors chose by hand (train the run again
with another optim.lr and --fork); here it is constant after the warm-up. Gradients were clipped
during the warm-up alone, here always. The vocabulary has 16,384 ids: make a tokenizer.json with
`vtx data tokenizer --vocab 16384`.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.dalle import DalleConfig, TextToCodesConfig
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System


def _run(size: str) -> Run:
    data = Data(shards="required", tokenizer="tokenizer.json", zoom=(1.0, 288 / 256), spread=0.25)
    return Run(
        objective=DalleConfig(net=TextToCodesConfig.size(size), codec=CodecConfig()),
        data=data,
        optim=Optimizer(lr=4.5e-4, betas=(0.9, 0.96), decay=4.5e-2, clip=4.0),
        schedule=Schedule(kind="constant", warmup=5_000),
        steps=430_000,
        global_batch=1_024,
        checkpoint=Checkpoint(every=1_000),
        system=System(workers=8, recompute="full"),
        evaluate=(Evaluation(name="loss", every=10_000), Evaluation(name="samples", every=10_000)),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores.

    The codec is trained once in the cache.
    """
    dalle = cast(DalleConfig, big.objective)
    codec = replace(dalle.codec, width=16, groups=3, blocks=1, vocab=32, stem=16, resolution=32)
    net = replace(
        dalle.net, width=64, heads=2, depth=4, context=48, vocab=258, grid=8, codes=32, reach=2
    )
    return replace(
        big,
        objective=replace(dalle, net=net, codec=codec, codec_from="smoke"),
        data=replace(big.data, shards="toy", tokenizer="bytes"),
        optim=replace(big.optim, lr=2e-3),
        schedule=replace(big.schedule, warmup=2),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=tuple(Evaluation(name=e.name) for e in big.evaluate),
    )


def dalle_2b8() -> Run:
    """DALL-E with 2.8 billion parameters."""
    return _run("2.8B")


def dalle_2b8_smoke() -> Run:
    return _smoke(dalle_2b8())


def dalle_5b6() -> Run:
    """DALL-E with 5.6 billion parameters."""
    return _run("5.6B")


def dalle_5b6_smoke() -> Run:
    return _smoke(dalle_5b6())


def dalle_12b() -> Run:
    """DALL-E, 12 billion parameters."""
    return _run("12B")


def dalle_12b_smoke() -> Run:
    """Twelve steps of a tiny DALL-E on toy shards."""
    return _smoke(dalle_12b())
