"""What is said before the first step, and when: the recipe and its numbers, samples and epochs,
device and memory, signs of life; and numbers that do not go together, a line each.
"""

import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from tests.runs import environment, log_of, losses, smoke, train
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import banner, estimate, override, recipes, run_folder, signs
from vtx_scale.launch.class_counts import class_misfits
from vtx_scale.launch.datasets import fingerprint_of, hash_of, resolve_epochs, training_data
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.run import Guard

# keys of a smoke size with 256 samples -> what is said of them
TOGETHER = [
    ((), ""),
    (("schedule.warmup=11",), ""),
    (("schedule.warmup=12",), "schedule.warmup=1 is a tenth"),
    (("schedule.warmup=100", "steps=50"), "schedule.warmup=5 is a tenth"),
    (("global_batch=256",), ""),
    (("global_batch=257",), "1 epochs a step, of 256 samples: global_batch=16 is 16 steps"),
    (("global_batch=1792",), "global_batch=1792 is 7 epochs a step"),
    (("schedule.length=12",), ""),
    (("schedule.length=6",), "the cosine ends before the last of 12 steps"),
    (("schedule.length=24",), "the cosine ends behind the last of 12 steps"),
    (("schedule.kind=linear", "schedule.length=24"), "the linear ends behind"),
    (("schedule.kind=constant", "schedule.length=24"), ""),
    (("schedule.kind=rsqrt", "schedule.cooldown=10"), ""),
    (("schedule.kind=rsqrt", "schedule.cooldown=11"), "schedule.cooldown=5 fits"),
    (("optim.average=0.75",), ""),
    (("optim.average=0.9999",), "100% of it are the weights of the start: optim.average=0.167"),
    (("optim.average=0.99", "steps=100"), "optim.average=0.9 follows within them"),
]


@pytest.mark.parametrize(("keys", "sentence"), TOGETHER, ids=[" ".join(k) for k, _ in TOGETHER])
def test_numbers_that_do_not_go_together_are_said_in_a_line_each(tmp_path, keys, sentence):
    """And never refused."""
    run = smoke(*keys)
    found = banner.misfits(run, refuse(run, tmp_path / "run", 1).n)
    assert len(found) == bool(sentence) and sentence in " ".join(found), found
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ("vit_small", "net.classes"),
        ("resnet50_imagenet", "net.classes"),
        ("deit_s16_distilled", "net.classes"),
        ("dino_small", ""),
        ("clip_small", ""),
    ],
)
def test_classes_that_the_data_names_and_the_network_lacks_are_refused(recipe, field):
    """With the key to type; more than there are names are a line, and a begun run goes on."""
    run = recipes.find(recipe, smoke=True)  # of 12 classes
    assert run.objective.class_field == field
    names = {n: {"shards": [f"class {i}" for i in range(n)]} for n in (4, 12, 13)}
    assert not list(class_misfits(run, names[12], False))
    assert not list(class_misfits(run, {"shards": None}, False))
    assert not list(class_misfits(run, {"shards": [*names[12]["shards"], "", ""]}, False))
    more = list(class_misfits(run, names[4], False))
    assert len(more) == bool(field)
    if not field:
        assert not list(class_misfits(run, names[13], False))
        return
    assert "objective.net.classes=4 is enough" in more[0]
    with pytest.raises(UserError, match=r"add objective.net.classes=13\.$"):
        list(class_misfits(run, names[13], False))
    assert "objective.net.classes=13" in next(class_misfits(run, names[13], True))
    fits = override.override(run, ["objective.net.classes=13"])
    assert not list(class_misfits(fits, names[13], False))


def test_a_run_of_too_few_classes_does_not_begin(tmp_path):
    """The toys have 12; igpt without a classifier learns from none of them."""
    with pytest.raises(UserError, match=r"add objective.net.classes=12\.$"):
        refuse(smoke("objective.net.classes=11", recipe="vit_small"), tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()
    assert refuse(smoke(recipe="vit_small"), tmp_path / "run", 1).n == 256
    assert refuse(smoke(recipe="igpt_s"), tmp_path / "run", 1).n == 256


def test_an_evaluation_without_samples_is_told_how_to_get_some(tmp_path, capfd):
    run = smoke(recipe="vit_small")
    refuse(replace(run, data=replace(run.data, val_shards="")), tmp_path / "run", 1)
    said = capfd.readouterr().err
    assert "accuracy will be left out; data.hold_out=0.05 keeps a share" in said


def test_steps_that_an_objective_counts_and_a_guard_that_never_acts():
    run = smoke("steps=5", "objective.warm_steps=6", "schedule.warmup=0", recipe="dino_vit_s16")
    assert ["objective.warm_steps=6 is beyond steps=5" in x for x in banner.misfits(run, 256)] == [
        True
    ]
    run = replace(smoke(), guard=Guard(factor=3.0, after=100))
    assert ["the guard never acts" in line for line in banner.misfits(run, 256)] == [True]


def test_what_is_pasted_from_a_line_takes_the_line_away():
    average = "optim.average=0.99"
    run = smoke("schedule.warmup=100", "global_batch=4096", "schedule.length=7", average)
    lines = banner.misfits(run, 256)
    keys = [re.findall(r": (\S+=\S+)", line)[0] for line in lines]
    assert len(keys) == 4 and not banner.misfits(override.override(run, keys), 256)


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"),
    [("3", 16, 48), ("0.5", 16, 8), ("1", 100, 3), ("2.5", 100, 7), ("0.001", 16, 1)]
    + [("7", 1792, 1), ("1", 256, 1), ("1", 255, 2)],
)
def test_epochs_become_steps_and_the_same_run(tmp_path, epochs, batch, steps):
    """As many as see every sample so often; the run is that of those steps, by its hash too."""
    run = resolve_epochs(smoke(f"epochs={epochs}", f"global_batch={batch}"))
    same = smoke(f"steps={steps}", f"global_batch={batch}")
    assert run == same and (steps - 1) * batch < float(epochs) * 256
    data = training_data(run)
    name = fingerprint_of(run, data)
    prepare_folder(run, tmp_path / "run", refuse(run, tmp_path / "run", 1))
    about = run_folder.read(tmp_path / "run")
    assert about["hash"] == hash_of(same, name) and about["recipe"]["steps"] == steps
    assert about["recipe"]["epochs"] is None


def test_epochs_are_of_the_training_samples_alone():
    run = smoke("epochs=2", "data.hold_out=0.5")
    n = training_data(run).n
    assert 64 < n < 192 and resolve_epochs(run).steps == -(-2 * n // 16)


def test_steps_on_the_command_line_stand_over_the_epochs_of_a_recipe():
    recipe = replace(recipes.find("clip_vit_b32", smoke=True), epochs=90.0)
    assert override.override(recipe, ["steps=7"]).epochs is None
    assert override.override(recipe, ["epochs=2"]).epochs == 2
    with pytest.raises(UserError, match="give one of them"):
        override.override(recipe, ["steps=7", "epochs=2"])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("clip_vit_b32", "Clip, 151,277,313 parameters, 390,625 steps of 32,768 samples, warm-up"),
        ("dalle_12b", "Dalle of dalle_12b, 12,292,840,960 parameters"),
        ("resnet50_imagenet", "Supervised of resnet50, 25,557,032 parameters"),
        ("cifar10_vit", "Supervised, 1,500 steps of 64 samples"),
    ],
)
def test_the_first_line(recipe, words):
    line = banner.recipe_line(recipes.find(recipe), recipe)
    assert line.startswith(f"{recipe}: ") and words in line and "\n" not in line


def test_the_planner_says_the_memory_of_a_rank():
    run, cpu = smoke(), torch.device("cpu")
    before = torch.random.get_rng_state()
    line = estimate.system_line(run, cpu, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert line.startswith("1 rank on cpu, single, fp32: 119,489 trained parameters, about ")
    two = estimate.system_line(replace(run, system=replace(run.system, precision="bf16")), cpu, 2)
    assert two.startswith("2 ranks on cpu, ddp, bf16: 119,489 trained parameters, about ")

    def broken(*_):
        raise ValueError("no meta device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "planner_of", broken)
        assert "cannot be estimated (ValueError)" in estimate.system_line(run, cpu, 1)


def test_signs_of_life_come_until_the_first_step():
    """Each says what the process is at; they end with the first finished step."""
    heard = []
    step = PHASES.step
    found = signs.Signs(heard.append, every=0.05)
    try:
        with PHASES.within("start.load"):
            time.sleep(0.2)
        found.reading(step)
        with PHASES.within("data_wait"):
            time.sleep(0.2)
        with PHASES.within("start.compile"):
            time.sleep(0.2)
        assert found.thread.is_alive()
        PHASES.step = step + 1
        found.thread.join(2)
        assert not found.thread.is_alive()
    finally:
        PHASES.step = step
        found.close()
    words = [re.sub(r", \d+ s so far", "", line) for line in heard]
    order = ["making the model ready", "reading the first batch", "computing the first step"]
    assert list(dict.fromkeys(words)) == order and len(heard) >= 7


def test_signs_that_are_closed_say_nothing_more():
    heard = []
    signs.Signs(heard.append, every=0.01).close()
    there = len(heard)
    time.sleep(0.05)
    assert len(heard) == there


@pytest.mark.slow
def test_a_training_says_it_in_time_and_the_same_command_goes_on(tmp_path):
    """The recipe in 1.5 s, device and memory 2 s after torch, the first step in 5 more; the losses
    are those of a run that was given steps.
    """
    folder = tmp_path / "run"
    keys = ["epochs=0.5", "system.workers=0", "schedule.warmup=99", "checkpoint.every=4"]
    refuse(smoke(), folder, 1)  # toy shards are made once
    command = [sys.executable, "-m", "vtx_scale", "train", "clip_vit_b32", "--smoke"]
    command += ["--run", str(folder), *keys, "system.leave_after=4"]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    at = {}
    for line in process.stderr:
        at.setdefault(line.rstrip("\n"), time.monotonic() - began)
    assert process.wait(60) == 75
    lines = list(at)
    assert [bool(re.match(wanted, line)) for wanted, line in zip(FIRST, lines, strict=False)] == (
        [True] * len(FIRST)
    ), lines
    asked = "import time; t = time.monotonic(); import torch; print(time.monotonic() - t)"
    torch_takes = float(subprocess.check_output([sys.executable, "-c", asked], text=True))
    times = list(at.values())
    assert times[0] < 1.5 and times[1] < 3 and times[3] < times[2] + 2 + 3 * torch_takes, at
    assert times[5] < times[4] + 5, at
    done = train(folder, *[k for k in keys if "workers" not in k])
    assert "resumed at step 4 of 8" in done.stderr
    assert log_of(folder).count("256 samples: 8 steps are 0.5 epochs") == 2
    train(tmp_path / "other", "steps=8", "schedule.warmup=99", "checkpoint.every=4")
    assert losses(folder) == losses(tmp_path / "other")


FIRST = (
    r"clip_vit_b32 --smoke: Clip, 0.5 epochs of 16 samples, warm-up 99 steps$",
    r"256 samples: 8 steps are 0.5 epochs, 16.0 steps an epoch$",
    r"schedule.warmup=99 is not over within 8 steps",
    r"1 rank on cpu, single, fp32: 119,489 trained parameters, about \d+ MiB a rank of ",
    r"reading the first batch$",
    r"step 1/8  loss ",
)


@pytest.mark.slow
def test_of_two_ranks_the_first_alone_says_it(tmp_path):
    done = train(tmp_path / "run", "epochs=0.25", "system.world=2", "system.strategy=ddp")
    for wanted in (*FIRST[3:4], *FIRST[4:5]):
        pattern = wanted.replace("1 rank", "2 ranks").replace("single", "ddp")
        assert len(re.findall(pattern, done.stderr, re.M)) == 1, done.stderr
    assert done.stderr.count("256 samples: 4 steps are 0.25 epochs") == 1
