"""A run folder of d064e36 goes on: it opens, resumes with the losses that it would have had,
evaluates and exports.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runs import losses, train_on_ranks, vtx
from vtx_scale import open_run
from vtx_scale.checkpoints.format import manifest_name, read_manifest
from vtx_scale.checkpoints.read import listing
from vtx_scale.launch import override, recipes
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.specs.clip import ClipConfig
from vtx_scale.specs.vit import ViTConfig

BEFORE = Path(__file__).parent / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())  # of d064e36, undisturbed
KEYS = (
    "steps=8",
    "global_batch=8",
    "system.workers=0",
    *(
        f"objective.image.{key}"
        for key in ("width=8", "mlp=16", "depth=1", "patch=8", "resolution=16")
    ),
    *(f"objective.text.{key}" for key in ("width=8", "depth=1", "context=24")),
    "objective.embed=8",
)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BEFORE / "run", tmp_path / "run")


@pytest.mark.slow
def test_it_resumes_opens_and_exports(folder, tmp_path):
    shards = shutil.copytree(BEFORE / "shards", tmp_path / "shards")
    assert open_run(folder).step == 4
    done = vtx("train", "clip_vit_b32", "--smoke", "--run", folder, f"data.shards={shards}", *KEYS)
    assert done.returncode == 0 and "resumed at step 4 of 8" in done.stderr, done.stderr
    assert losses(folder) == pytest.approx(EXPECTED["loss"], rel=1e-6)
    opened = open_run(folder)
    assert isinstance(opened.recipe.objective, ClipConfig)
    pixels = (np.arange(2 * 16 * 16 * 3) % 256).astype(np.uint8).reshape(2, 16, 16, 3)
    assert opened.probes["encode_image"](pixels).numpy() == pytest.approx(
        np.array(EXPECTED["image"]), abs=1e-5
    )
    for to in ("transformers", "open_clip", "timm", "safetensors"):
        exported = vtx("export", folder, "--to", to, tmp_path / to)
        assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_its_checkpoint_goes_on_on_other_ranks_and_stays(folder, tmp_path):
    """Format 1 is listed, verified and read as it was; what is saved from it on is today's."""
    storage = checkpoints_of(folder)
    assert read_manifest(storage, 4)["format"] == 1
    assert [(r["step"], r["valid"]) for r in listing(storage, deep=True)] == [(4, True)]
    shards = shutil.copytree(BEFORE / "shards", tmp_path / "shards")
    more = (f"data.shards={shards}", "system.world=2", "system.strategy=fsdp", "checkpoint.every=2")
    done = vtx("train", "clip_vit_b32", "--smoke", "--run", folder, *KEYS, *more)
    assert done.returncode == 0 and "resumed at step 4 of 8" in done.stderr, done.stderr
    assert losses(folder) == pytest.approx(EXPECTED["loss"], rel=1e-5)
    rows = listing(storage, deep=True)
    assert [(r["step"], r["valid"], r["epoch"]) for r in rows] == [
        (4, True, 0),
        (6, True, 1),
        (8, True, 1),
    ]
    assert [read_manifest(storage, r["step"])["format"] for r in rows] == [1, 2, 2]
    # and on from what was saved of it, where the newest is damaged: from format 1 again
    for step in (6, 8):
        storage.put(manifest_name(step), b"torn")
    again = vtx("train", "clip_vit_b32", "--smoke", "--run", folder, *KEYS, *more)
    assert again.returncode == 0 and "resumed at step 4 of 8" in again.stderr, again.stderr
    assert losses(folder) == pytest.approx(EXPECTED["loss"], rel=1e-5)
    assert [r["valid"] for r in listing(storage, deep=True)] == [True, True, True]


@pytest.mark.slow
def test_a_classifier_of_before_keeps_its_bias(tmp_path):
    """A fine-tuned iGPT had one when there was no field for it: it opens, goes on, and its bias is
    not left out in silence where another run starts from it.
    """
    keys, bias = ("steps=2", "objective.net.classes=12"), "objective.net.classifier_bias=true"
    folder = tmp_path / "run"
    train_on_ranks(
        folder, 1, "single", *keys, bias, "system.leave_after=1", recipe="igpt_s", code=75
    )
    run_json = json.loads((folder / "run.json").read_text())
    net = run_json["recipe"]["objective"]["net"]
    del net["classifier_bias"]
    net["spec"] = "vtx_scale.specs.igpt:PixelGPT"
    (folder / "run.json").write_text(json.dumps(run_json))
    opened = open_run(folder)
    opened.model.net.head.bias.data.fill_(1)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    assert opened.step == 1 and opened.probes["classify"](pixels).shape == (1, 12)
    again = ("train", "igpt_s", "--smoke", "--run", folder, "system.workers=0", *keys)
    refused = vtx(*again)
    assert refused.returncode == 2
    assert "objective.net.classifier_bias was True, is False" in refused.stderr, refused.stderr
    assert vtx(*again, bias).returncode == 0 and open_run(folder).step == 2
    start = ("train", "igpt_s", "--smoke", "--run", tmp_path / "b", *keys, f"init.from={folder}")
    done = vtx(*start)
    assert done.returncode == 2 and "it has net.head.bias" in done.stderr, done.stderr
    assert vtx(*start, "init.head=new").returncode == 0


def test_another_recipe_is_still_seen(folder, tmp_path):
    shards = shutil.copytree(BEFORE / "shards", tmp_path / "shards")
    keys = (*KEYS, f"data.shards={shards}", "seed=3")
    done = vtx("train", "clip_vit_b32", "--smoke", "--run", folder, *keys)
    assert (
        done.returncode == 2 and "seed was 0, is 3" in done.stderr and "image" not in done.stderr
    ), done.stderr


@pytest.mark.parametrize("smoke", [False, True])
def test_every_recipe_of_before_is_read(smoke):
    """As run.json had it: spec classes under their old paths, a CLIP ResNet's stem called width."""
    old = {new: path for path, new in override.MOVED.items()}
    for name in recipes.names():
        if name.startswith(("cifar10", "clip_digits")) and smoke:
            continue
        run = recipes.find(name, smoke)
        assert override.from_dict(as_before(override.to_dict(run), old)) == run, name


def as_before(value, old):
    """What d064e36 would have written for a recipe of today."""
    if isinstance(value, list):
        return [as_before(x, old) for x in value]
    if not isinstance(value, dict):
        return value
    body = {key: as_before(x, old) for key, x in value.items()}
    body["spec"] = old.get(body["spec"], body["spec"])
    names = {new: key for key, new in override.MOVED_FIELDS.get(body["spec"], {}).items()}
    if body["spec"].endswith("backbones:ViT") and body["init"] == "clip":
        body["init"] = "xavier"
    return {names.get(key, key): x for key, x in body.items()}


def test_the_hash_leaves_defaults_out_and_names_classes():
    """A new field changes no old hash; where a module stands does not count."""
    run = recipes.find("clip_vit_b32", smoke=True)
    body = override.compact(run.objective)
    assert body["spec"] == "ClipConfig" and body["image"]["spec"] == "ViTConfig"
    assert "dropout" not in body["image"] and body["image"]["width"] == 64
    assert override.recipe_hash(run) == override.recipe_hash(
        replace(run, system=replace(run.system, world=4))
    )
    dropping = replace(run.objective.image, dropout=0.1)
    assert isinstance(dropping, ViTConfig)
    assert override.recipe_hash(run) != override.recipe_hash(
        replace(run, objective=replace(run.objective, image=dropping))
    )
