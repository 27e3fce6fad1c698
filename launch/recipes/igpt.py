"""iGPT (Chen et al. 2020) at the published sizes; `_smoke` runs the same code on toy shards.

Nats a pixel on ImageNet's test pictures at 32 px with the authors' palette: S 2.0895, M 2.0614, L
2.0466. Linear probes of the best layer: CIFAR-10 96.3 % (L), ImageNet S 41.9, M 54.5, L 60.3 (48
px: 65.2), XL 68.7 %; fine-tuned ImageNet 66.3 (72.6 at 48 px), CIFAR-10 99.0 %. The rates were
searched on a grid (.01, .003, .001, ...) and are not published: ours are from it. The authors'
palette is not built in: `vtx data palette` finds one, a file of theirs is taken too
(`objective.palette=FILE`).
"""

from dataclasses import replace
from typing import cast

from vtx_scale.specs.igpt import IgptConfig, PixelGPTConfig
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Init, Optimizer, Run, Schedule, System

EPOCH = 1_281_167 * 96 // 100  # ImageNet without the 4 % that are held out

# the short side is resized to 256 .. 384 pixels, and 224 of them are cut out anywhere
CROPS = Data(shards="required", zoom=(256 / 224, 384 / 224))


def _run(
    size: str, lr: float, batch: int = 128, steps: int = 1_000_000, causal: bool = True
) -> Run:
    objective = IgptConfig(net=PixelGPTConfig.size(size, causal=causal), palette="required")
    return Run(
        objective=objective,
        data=CROPS,
        optim=Optimizer(lr=lr, betas=(0.9, 0.95)),
        schedule=Schedule(kind="cosine", warmup=EPOCH // batch),
        steps=steps,
        global_batch=batch,
        checkpoint=Checkpoint(every=2_000),
        system=System(workers=8),
        evaluate=(
            Evaluation(name="loss", every=20_000),
            Evaluation(name="linear"),
            Evaluation(name="completions"),
        ),
    )


def _smoke(big: Run) -> Run:
    """The same code with smaller numbers; under a minute on two cores."""
    igpt = cast(IgptConfig, big.objective)
    classes = 12 if igpt.net.classes else 0
    net = replace(igpt.net, width=64, depth=2, heads=2, side=8, classes=classes)
    return replace(
        big,
        objective=replace(igpt, net=net, palette="cube"),
        data=replace(big.data, shards="toy"),
        optim=replace(big.optim, lr=3e-3),
        schedule=replace(big.schedule, warmup=min(2, big.schedule.warmup)),
        init=replace(big.init, from_="smoke:igpt_s" if big.init.from_ else ""),
        steps=12,
        global_batch=16,
        system=System(workers=1),
        checkpoint=Checkpoint(),
        evaluate=tuple(Evaluation(name=e.name) for e in big.evaluate),
    )


def igpt_s() -> Run:
    """iGPT-S, 76M parameters, 32 px, a million steps."""
    return _run("S", 3e-3)


def igpt_s_smoke() -> Run:
    """Twelve steps of a tiny iGPT on toy shards."""
    return _smoke(igpt_s())


def igpt_m() -> Run:
    """iGPT-M, 455M parameters, 32 px, a million steps."""
    return _run("M", 3e-3)


def igpt_m_smoke() -> Run:
    return _smoke(igpt_m())


def igpt_l() -> Run:
    """iGPT-L, 1.36 billion parameters, 32 px, a million steps."""
    return _run("L", 1e-3)


def igpt_l_smoke() -> Run:
    return _smoke(igpt_l())


def igpt_l48() -> Run:
    """iGPT-L at 48 px."""
    return _run("L@48", 1e-3)


def igpt_l48_smoke() -> Run:
    return _smoke(igpt_l48())


def igpt_xl() -> Run:
    """iGPT-XL, 6.8 billion parameters, 64 px, two million steps of 64;
    its heads are not published.
    """
    return _run("XL", 3e-4, batch=64, steps=2_000_000)


def igpt_xl_smoke() -> Run:
    return _smoke(igpt_xl())


def _bert(run: Run) -> Run:
    return replace(run, evaluate=run.evaluate[:2])


def igpt_s_bert() -> Run:
    """iGPT-S that guesses hidden pixels from all others (BERT)."""
    return _bert(_run("S", 3e-3, causal=False))


def igpt_s_bert_smoke() -> Run:
    return _smoke(igpt_s_bert())


def igpt_l_bert() -> Run:
    """iGPT-L that guesses hidden pixels from all others (BERT)."""
    return _bert(_run("L", 1e-3, causal=False))


def igpt_l_bert_smoke() -> Run:
    return _smoke(igpt_l_bert())


def _finetune(classes: int, steps: int) -> Run:
    run = _run("L", 1e-4)
    igpt = cast(IgptConfig, run.objective)
    return replace(
        run,
        objective=replace(igpt, net=replace(igpt.net, classes=classes)),
        steps=steps,
        schedule=Schedule(kind="constant"),
        init=Init(from_="required", head="new"),
        evaluate=(Evaluation(name="accuracy", every=5_000), Evaluation(name="loss")),
    )


def igpt_l_finetune() -> Run:
    """iGPT-L to ImageNet's labels and colours at once; init.from names the pre-trained run."""
    return _finetune(1000, 20 * EPOCH // 128)


def igpt_l_finetune_smoke() -> Run:
    return _smoke(igpt_l_finetune())


def igpt_l_finetune_cifar10() -> Run:
    """iGPT-L to CIFAR-10's labels and colours; pictures are padded by 4 pixels, cut and flipped."""
    run = _finetune(10, 20 * 50_000 // 128)
    return replace(run, data=Data(shards="required", pad=4, flip=0.5))


def igpt_l_finetune_cifar10_smoke() -> Run:
    return _smoke(igpt_l_finetune_cifar10())
