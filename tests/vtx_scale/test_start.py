"""One run starts from another: fine-tuning, other objectives, teachers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.runs import losses, run_on_ranks, smoke, tensors, train, train_on_ranks
from vtx_scale import open_run
from vtx_scale.interop import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """recipe -> the folder of a short run."""
    folders = {}

    def get(recipe, *keys):
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe) / "run"
            train_on_ranks(folders[recipe], 1, "single", "steps=3", *keys, recipe=recipe)
        return folders[recipe]

    return get


def started(folder, recipe, *keys, world=2):
    """Parameters after a step at a rate that moves nothing."""
    train_on_ranks(
        folder, world, "fsdp", "steps=1", "optim.lr=1e-30", "optim.decay=0", *keys, recipe=recipe
    )
    return {
        k.removeprefix("param/"): v for k, v in tensors(folder).items() if k.startswith("param/")
    }


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("vit_b16_masked", "net."),
        ("dino_vit_s16", "teacher.net."),
        ("vit_b16_imagenet21k", "net."),
        ("deit_s16", "net."),
    ],
)
def test_fine_tuning_at_another_resolution(trained, tmp_path, source, prefix):
    """The body is the source's, positions are resized,
    the classifier starts anew with other classes.
    """
    before = {k.removeprefix("param/"): v for k, v in tensors(trained(source)).items()}
    keys = (
        f"init.from={trained(source)}",
        "init.head=new",
        "objective.net.resolution=64",
        "objective.net.classes=13",
    )
    after = started(tmp_path / "run", "vit_b16_finetune384", *keys)
    same = [k for k in after if "positions" not in k and not k.startswith("net.head.")]
    assert len(same) > 20
    assert all(torch.equal(after[k], before[prefix + k.removeprefix("net.")]) for k in same)
    assert after["net.positions"].shape == (1, 65, 64)
    assert torch.equal(after["net.positions"][:, 0], before[prefix + "positions"][:, 0])
    assert (
        after["net.head.weight"].shape == (13, 64) and after["net.head.weight"].abs().max() < 1e-20
    )


def test_another_classifier_is_refused_where_it_is_to_be_kept(trained, tmp_path):
    done = train(
        tmp_path / "run",
        f"init.from={trained('vit_b16_imagenet21k')}",
        "objective.net.classes=13",
        recipe="deit_s16",
        code=2,
    )
    assert "net.head.weight is (13, 64) in the recipe and (12, 64) there" in done.stderr


def test_a_deeper_teacher_is_refused(trained, tmp_path):
    done = train(
        tmp_path / "run",
        f"init.from={trained('dino_vit_s16')}",
        "objective.net.depth=1",
        recipe="vit_b16_finetune384",
        code=2,
    )
    assert "it has teacher.net.blocks.1." in done.stderr


def test_a_deeper_source_is_refused_and_another_arithmetic_is_said(trained, tmp_path, capfd):
    """Nothing is left out in silence; the corrected command goes,
    because the refused one has saved nothing.
    """
    folder, source = tmp_path / "run", f"init.from={trained('vit_b16_imagenet21k')}"
    done = train(
        folder,
        source,
        "init.head=new",
        "objective.net.depth=1",
        recipe="vit_b16_finetune384",
        code=2,
    )
    assert "it has net.blocks.1." in done.stderr and "make the recipe as deep" in done.stderr
    done = train(
        folder,
        source,
        "init.head=new",
        "objective.net.heads=4",
        "objective.net.activation=quick_gelu",
        "steps=1",
        recipe="vit_b16_finetune384",
    )
    for line in (
        "objective.net.heads was 2 there and is 4 here",
        "objective.net.activation was gelu there",
    ):
        assert line in done.stderr
    assert (
        "--fork"
        in train(
            folder, source, "init.head=new", "steps=1", recipe="vit_b16_finetune384", code=2
        ).stderr
    )


def test_what_an_evaluation_lacks_is_seen_before_the_first_step(tmp_path):
    folder = tmp_path / "run"
    for key, sentence in (
        ("evaluate.0.name=bogus", "no evaluator 'bogus'"),
        ("data.val_shards=/nowhere", "/nowhere does not exist"),
    ):
        assert sentence in train(folder, key, recipe="vit_b16_jft", code=2).stderr
        assert not (folder / "run.json").exists() and not (folder / "metrics.jsonl").exists()
    shards = smoke().data.shards
    done = train(folder, f"data.shards={shards}", "steps=1", recipe="vit_b16_jft")
    assert "no data.val_shards: accuracy will be left out" in done.stderr


def exported(folder, tmp_path):
    export(open_run(folder).model, "safetensors", tmp_path / "exported")
    return tmp_path / "exported"


@pytest.mark.parametrize("how", ["run", "exported"])
def test_a_teacher_comes_from_a_run_or_from_exported_weights(trained, tmp_path, how):
    folder = trained("deit_s16")
    source = folder if how == "run" else exported(folder, tmp_path)
    keys = [f"objective.teacher_from={source}"]
    run = smoke(*keys, recipe="deit_s16_distilled")
    if how == "exported":  # weights alone do not say their network
        run = replace(
            run, objective=replace(run.objective, teacher=open_run(folder).recipe.objective.net)
        )
    assert run.objective.teacher == open_run(folder).recipe.objective.net
    run = replace(run, steps=2, system=replace(run.system, strategy="fsdp"))
    assert run_on_ranks(run, tmp_path / "run", 2) == [0, 0]
    before, after = tensors(folder), tensors(tmp_path / "run")
    names = [k for k in before if k.startswith("param/")]
    assert all(torch.equal(before[k], after[k.replace("net.", "teacher.")]) for k in names)


def test_init_from_leaves_the_teacher_that_was_asked_for(trained, tmp_path):
    """The student comes from the one run, the teacher from the other;
    exported weights of a student do as well.
    """
    keys = [f"objective.teacher_from={trained('deit_s16')}"]
    first, other = tmp_path / "first", tmp_path / "other"
    train_on_ranks(first, 1, "single", "steps=2", *keys, recipe="deit_s16_distilled")
    train_on_ranks(other, 1, "single", "steps=2", "seed=9", recipe="deit_s16")
    for k, source in enumerate((first, exported(first, tmp_path))):
        after = started(
            tmp_path / f"run-{k}",
            "deit_s16_distilled",
            f"init.from={source}",
            f"objective.teacher_from={other}",
        )
        student, teacher = tensors(first), tensors(other)
        assert torch.equal(after["net.patch.weight"], student["param/net.patch.weight"])
        assert torch.equal(after["teacher.patch.weight"], teacher["param/net.patch.weight"])
        assert not torch.equal(after["teacher.patch.weight"], student["param/teacher.patch.weight"])


def test_a_teacher_without_its_running_statistics_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    train_on_ranks(tmp_path / "teacher", 1, "single", "steps=1", recipe="resnet50_imagenet")
    weights = exported(tmp_path / "teacher", tmp_path) / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "running" not in k}, weights)
    blocks = open_run(tmp_path / "teacher").recipe.objective.net
    assert blocks.blocks == (1, 1)
    done = train(
        tmp_path / "run",
        f"objective.teacher_from={weights.parent}",
        "objective.teacher.kind=bottleneck",
        recipe="deit_s16_distilled",
        code=2,
    )
    assert "running_" in done.stderr and "nothing there" in done.stderr


def test_dino_starts_from_exported_weights_with_new_heads(trained, tmp_path):
    after = started(
        tmp_path / "run",
        "dino_vit_s16",
        f"init.from={exported(trained('dino_vit_s16'), tmp_path)}",
        "init.head=new",
    )
    there = tensors(trained("dino_vit_s16"))
    for part in ("student", "teacher"):
        assert torch.equal(
            after[f"{part}.net.patch.weight"], there["param/teacher.net.patch.weight"]
        )


def test_a_run_goes_on_without_its_teachers_folder(trained, tmp_path):
    teacher = shutil.copytree(trained("deit_s16"), tmp_path / "teacher")
    keys = [f"objective.teacher_from={teacher}", "steps=6"]
    train_on_ranks(tmp_path / "whole", 1, "single", *keys, recipe="deit_s16_distilled")
    first = (*keys, "system.leave_after=3")
    train_on_ranks(tmp_path / "run", 1, "single", *first, recipe="deit_s16_distilled", code=75)
    shutil.rmtree(teacher)
    train(tmp_path / "run", *keys, recipe="deit_s16_distilled")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_of_before_goes_on(trained, tmp_path):
    """A run.json that lacks today's fields: they have their defaults, and the run is the same."""
    folder = shutil.copytree(trained("vit_b16_masked"), tmp_path / "run")
    body = json.loads((folder / "run.json").read_text())
    del (
        body["recipe"]["data"]["augment"],
        body["recipe"]["optim"]["decay_end"],
        body["recipe"]["init"]["head"],
    )
    (folder / "run.json").write_text(json.dumps({**body, "hash": "0" * 16}))
    done = train(folder, "steps=3", recipe="vit_b16_masked")
    assert "finished already" in done.stderr
    other = train(folder, "steps=4", recipe="vit_b16_masked", code=2)
    assert "steps was 3, is 4" in other.stderr
