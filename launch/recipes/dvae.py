"""DALL-E's discrete VAE (Ramesh et al. 2021, A.2): 256 pixels to 32 x 32 codes of 8,192;
`_smoke` runs it on toy shards.

Three million updates of 512 pictures on 64 GPUs. Half precision was the authors' but for the layers
next to the codes.
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.dvae import CodecConfig, DvaeConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, Schedule, System


def dvae_dalle() -> Run:
    """The discrete VAE of DALL-E, 98M parameters, three million steps."""
    return Run(
        objective=DvaeConfig(net=CodecConfig()),
        data=Data(shards="required", zoom=(288 / 256, 384 / 256), spread=1.0, flip=0.5),
        optim=Optimizer(lr=1e-4, decay=1e-4),
        schedule=Schedule(kind="cosine", floor=1.25e-6 / 1e-4, length=1_200_000),
        steps=3_000_000,
        global_batch=512,
        checkpoint=Checkpoint(every=2_000),
        system=System(workers=8),
        evaluate=(Evaluation(name="reconstruction", every=20_000),),
    )


def dvae_dalle_smoke() -> Run:
    """Twelve steps of a tiny discrete VAE on toy shards."""
    big = dvae_dalle()
    dvae = cast(DvaeConfig, big.objective)
    net = replace(dvae.net, width=16, groups=3, blocks=1, vocab=32, stem=16, resolution=32)
    return replace(
        big,
        objective=replace(dvae, net=net, kl_steps=4, temperature_steps=8, average=0.9),
        data=replace(big.data, shards="toy"),
        optim=replace(big.optim, lr=2e-3),
        schedule=replace(big.schedule, length=None),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=(Evaluation(name="reconstruction"),),
    )
