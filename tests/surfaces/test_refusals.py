"""What a configuration cannot be is one sentence, within 1.5 s of CPU time,
and leaves nothing behind.
"""

import os
import subprocess
import sys

import pytest

from tests.runs import environment, smoke, train_on_ranks
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import recipes
from vtx_scale.launch.prepare import check_sources, refuse
from vtx_scale.launch.pretrained import absent
from vtx_scale.launch.resolve import resolve_data

SECONDS = 1.5  # of CPU: a busy machine does not count

# recipe (a smoke size), keys, what is said
REFUSED = [
    # data that the objective would leave out in silence, and what it must have
    ("dino_vit_s16", ["data.flip=0.3", "system.world=2"], "data.flip is not for Dino"),
    ("dino_vit_s16", ["data.crop=0.2,1"], "data.crop is not for Dino"),
    ("siglip_vit_b16", ["data.centre=0.9"], "data.centre is not for Siglip"),
    ("clip_vit_b32", ["data.zoom=1,2"], "data.zoom is not for Clip"),
    ("dino_vit_s16", ["data.augment.mixup=0.8"], "data.augment.mixup is not for Dino"),
    ("vit_b16_masked", ["data.augment.repeats=2"], "data.augment.repeats is not for Masked"),
    ("clip_vit_b32", ["data.tokenizer=clip"], "has 49408 ids and objective.text.vocab is 258"),
    ("virtex_r50", ["objective.vocab=7"], "set objective.vocab=258"),
    ("dalle_12b", ["objective.net.vocab=7"], "set objective.net.vocab=258"),
    ("clip_vit_b32", ["data.tokenizer=/nowhere.json"], "neither bytes, clip nor a file"),
    ("clip_vit_b32", ["data.shards=/nowhere"], "/nowhere"),
    ("clip_vit_b32", ["data.val_shards=/nowhere"], "/nowhere"),
    # what comes from elsewhere
    (
        "deit_s16_distilled",
        ["objective.teacher_from=/nowhere"],
        "objective.teacher_from=/nowhere: there is no such file",
    ),
    ("deit_s16_distilled", ["objective.teacher_from=required"], "learns from a teacher"),
    (
        "dalle_12b",
        ["objective.codec_from=/nowhere"],
        "objective.codec_from=/nowhere: there is no such file",
    ),
    ("dalle_12b", ["objective.codec_from=required"], "learns from the codes"),
    ("vit_b16_finetune384", ["init.from=required"], "goes on from trained weights"),
    ("vit_b16_jft", ["init.from=/nowhere"], "init.from=/nowhere: there is no such file"),
    ("vit_b16_jft", ["init.head=new"], "give that too"),
    ("igpt_s", ["objective.palette=required"], "add objective.palette=FILE"),
    ("igpt_s", ["objective.net.colours=7"], "the palette has 512 colours"),
    ("dalle_12b", ["objective.net.grid=4"], "set objective.net.grid=8 objective.net.codes=32"),
    # networks
    ("clip_rn50", ["objective.image.embed=16"], "are one space"),
    ("siglip_vit_b16", ["objective.text.embed=32"], "are one space"),
    ("vit_b16_masked", ["objective.net.resolution=36"], "masked patches must cover the picture"),
    ("vit_b16_jft", ["objective.net.heads=5"], "give a divisor of the width"),
    ("dino_vit_s16", ["objective.last_blocks=9"], "the network has 2"),
    ("dino_vit_s16", ["objective.frozen=-1"], "frozen=-1: give 0 or more steps"),
    ("dino_vit_s16", ["objective.warm_steps=-3"], "warm_steps=-3: give 0 or more steps"),
    (
        "dino_vit_s16",
        ["objective.crops.local_size=1", "objective.crops.locals=0"],
        "local_size=1: give crops",
    ),
    ("dino_vit_s16", ["objective.crops.locals=-1"], "locals=-1: give 0 or more crops."),
    (
        "resnet50_imagenet",
        ["system.micro_batch=4"],
        "system.micro_batch=4 is less than a rank's 16 slots",
    ),
    ("dino_resnet50", ["system.micro_batch=4", "system.world=2"], "less than a rank's 8 slots"),
    # the system, and what watches
    ("clip_vit_b32", ["system.strategy=single", "system.world=2"], "choose ddp, fsdp or hsdp"),
    ("clip_vit_b32", ["system.strategy=hsdp", "system.world=3"], "needs a world that it divides"),
    ("clip_vit_b32", ["system.offload=optimizer"], "cannot keep that in the host's"),
    ("clip_vit_b32", ["system.strategy=zero2", "system.offload=all"], "choose optimizer"),
    ("clip_vit_b32", ["system.strategy=zero1", "system.precision=fp64"], "trains in float32"),
    ("clip_vit_b32", ["system.strategy=zero3", "system.recompute=selective"], "choose full"),
    (
        "clip_vit_b32",
        ["system.strategy=zero3", "system.micro_batch=2", "system.recompute=full"],
        "leave it out, or choose fsdp",
    ),
    ("clip_vit_b32", ["system.world=0"], "system.world=0"),
    # the optimizer, and what the strategy cuts
    ("clip_vit_b32", ["optim.kind=muon", "system.strategy=zero2"], "orthogonalises whole matrices"),
    ("clip_vit_b32", ["optim.kind=muon", "system.strategy=tp", "system.world=2"], "by columns"),
    ("clip_vit_b32", ["optim.kind=muon", "system.tp=2", "system.world=2"], "by columns"),
    ("vit_g14_jft3b", ["system.strategy=zero1"], "adds up rows and columns"),
    ("clip_vit_b32", ["optim.betas=0.9,1"], "optim.betas=0.9,1: give two numbers from 0"),
    ("clip_vit_b32", ["optim.betas=-0.1,0.9"], "optim.betas=-0.1,0.9: give two numbers from 0"),
    ("clip_vit_b32", ["optim.clip=0"], "optim.clip=0: give a number above 0, or none"),
    ("clip_vit_b32", ["optim.clip=-1"], "optim.clip=-1: give a number above 0, or none"),
    ("clip_vit_b32", ["evaluate.0.name=bogus"], "no evaluator 'bogus'"),
    ("clip_vit_b32", ["evaluate.0.name=no.such:thing"], "cannot be imported"),
    ("clip_vit_b32", ["system.wolrd=2"], "nearest: world"),
    ("clip_vit_b32", ["steps=1.5"], "'1.5' is not int"),
]


@pytest.fixture(scope="module", autouse=True)
def toys():
    """What smoke sizes make once in the cache is no part of a refusal."""
    for recipe in ("deit_s16_distilled", "dalle_12b", "vit_b16_finetune384"):
        resolve_data(recipes.find(recipe, smoke=True))


def refused(recipe, keys, *more):
    """Exit code, stdout and stderr of a `vtx train` that must be refused."""
    command = [sys.executable, "-m", "vtx_scale", "train", recipe, "--smoke", *more, *keys]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("recipe", "keys", "sentence"), REFUSED, ids=lambda x: x if isinstance(x, str) else " ".join(x)
)
def test_refusals(tmp_path, recipe, keys, sentence):
    before = os.times()
    code, out, err = refused(recipe, keys, "--run", str(tmp_path / "run"))
    after = os.times()
    assert code == 2 and sentence in err, err
    assert (
        "Traceback" not in err
        and len([line for line in err.splitlines() if line.startswith("vtx: ")]) == 1
    ), err
    assert not out and not (tmp_path / "run").exists(), "something was written"
    spent = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert spent < SECONDS, f"{spent:.2f} s of CPU"


def test_ranks_that_a_launcher_has_started_are_a_world_too(tmp_path):
    """`system.world` is left out there: what a world of two refuses stays refused."""
    run = smoke("optim.kind=muon", "system.strategy=tp")
    with pytest.raises(UserError, match="orthogonalises whole matrices"):
        refuse(run, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()
    refuse(run, tmp_path / "run", 1)


@pytest.mark.parametrize(
    ("strategy", "package"),
    [("zero1", "deepspeed"), ("zero2", "deepspeed"), ("zero3", "deepspeed")]
    + [("fairscale", "fairscale")],
)
def test_a_strategy_without_its_package(tmp_path, strategy, package):
    """One sentence with what to type, and no library was imported for it."""
    folder = tmp_path / "run"
    words = [
        "train",
        "clip_vit_b32",
        "--smoke",
        "--run",
        str(folder),
        f"system.strategy={strategy}",
    ]
    code = (
        f"import sys\nsys.modules[{package!r}] = None  # as if it were not installed\n"
        f"from vtx_scale.launch.cli import main\ncode = main({words!r})\n"
        "print([name for name in ('torch', 'numpy', 'ray') if name in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env=environment(), timeout=60
    )
    assert done.returncode == 2 and done.stdout == "[]\n", done.stdout + done.stderr
    assert done.stderr == (
        f"vtx: system.strategy={strategy} needs {package}, which is not installed: "
        f"pip install 'vtx-scale[{package}]'.\n"
    )
    assert not folder.exists()


@pytest.mark.slow
def test_a_finished_folder_is_left_as_it_was(tmp_path):
    """A refusal on a folder that holds a run changes none of its files."""
    run = tmp_path / "run"
    train_on_ranks(run, 1, "single", "steps=1", recipe="vit_b16_jft")
    state = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    for keys in (
        ["data.flip=7"],
        ["evaluate.0.name=bogus"],
        ["data.shards=/nowhere"],
        ["init.head=new"],
    ):
        assert refused("vit_b16_jft", keys, "--run", str(run))[0] == 2
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")} == state


def test_what_a_hub_has_is_not_fetched(tmp_path, monkeypatch):
    """NAME/NAME is one of the Hub where nothing of that first name lies here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for name in ("timm/vit_base_patch16_224.augreg_in21k", "openai/clip-vit-base-patch32"):
        for source in (name, str(tmp_path / name)):
            assert absent("init.from", source) == (
                f"init.from={source}: there is no such file or folder; names of the Hugging Face "
                f"Hub are not fetched: 'hf download {name} --local-dir DIR', and give DIR."
            )
    for source in ("runs/first", "weights/clip", "/nowhere", "../a/b", "a/b/c", "s3://bucket/a"):
        assert absent("init.from", source).endswith("no such file or folder."), source
    run = smoke("init.from=timm/vit_base", recipe="vit_b16_jft")
    with pytest.raises(UserError, match="'hf download timm/vit_base --local-dir DIR'"):
        check_sources(resolve_data(run))
