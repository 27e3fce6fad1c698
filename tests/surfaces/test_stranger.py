"""A stranger's objective: one file and a recipe outside the tree trains, resumes,
evaluates and opens.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.require import need
from tests.runs import COLOUR, losses, train_on_ranks, vtx
from vtx_scale import open_run
from vtx_scale.interop import weights
from vtx_scale.objectives.pixels import STATISTICS


@pytest.mark.slow
def test_a_strangers_objective(tmp_path):
    own = tmp_path / "mine"
    own.mkdir()
    # under a name of its own: a process knows one module of a name
    source = Path(COLOUR.partition(":")[0]).read_text()
    (own / "their_colour.py").write_text(source.replace("average_colour:", "their_colour:"))
    folder = tmp_path / "run"
    command = [
        "train",
        own / "their_colour.py:average_colour",
        "--run",
        folder,
        "system.workers=1",
        "steps=120",
    ]
    first = vtx(*command, "system.leave_after=50", cwd=tmp_path)
    assert first.returncode == 75, first.stderr
    second = vtx(*command, "system.world=2", "system.strategy=fsdp", cwd=tmp_path)
    assert second.returncode == 0 and "resumed at step 50 of 120" in second.stderr, second.stderr
    assert len(losses(folder)) == 120
    assert sum(losses(folder)[-10:]) < sum(losses(folder)[:10]) / 10

    scored = vtx("evaluate", folder, "--json", cwd=tmp_path)
    assert scored.returncode == 0 and '"error":' in scored.stdout, scored.stderr
    opened = open_run(folder)
    colour = opened.probes["colour"](np.full((2, 16, 16, 3), 200, np.uint8))
    assert colour.shape == (2, 3) and colour.dtype.is_floating_point
    assert opened.step == 120
    tree = Path(__file__).parents[2]
    assert not list((tree / "vtx_scale").rglob("*_colour*")), "the tree was touched"


def test_a_file_that_shadows_a_module_is_named(tmp_path):
    (tmp_path / "json.py").write_text("def recipe():\n    return None\n")
    done = vtx("train", tmp_path / "json.py:recipe", "--run", tmp_path / "run")
    assert done.returncode == 2 and "rename the file" in done.stderr


def test_a_broken_recipe_is_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    done = vtx("train", tmp_path / "mine.py:recipe", "--run", tmp_path / "run")
    assert (
        done.returncode == 2
        and "No module named 'nothing_of_that_name'" in done.stderr
        and "Traceback" not in done.stderr
    )


MIXER = Path(__file__).parent / "stranger" / "convmixer.py"


@pytest.fixture(scope="module")
def mixers(tmp_path_factory):
    """(recipe, strategy, world) -> a run of the stranger's backbone."""
    folders = {}

    def get(recipe, strategy, world):
        if (recipe, strategy, world) not in folders:
            folder = tmp_path_factory.mktemp(recipe) / "run"
            train_on_ranks(
                folder,
                world,
                strategy,
                "system.precision=fp64",
                recipe=f"{MIXER}:{recipe}",
                small=False,
            )
            folders[recipe, strategy, world] = folder
        return folders[recipe, strategy, world]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["supervised", "distilled", "dino", "clip"])
def test_a_strangers_backbone_trains_everywhere(mixers, recipe):
    """Under four objectives, the same curve with ddp and fsdp, on one rank and on two."""
    one = losses(mixers(recipe, "single", 1))
    assert len(one) == 6 and one[-1] != one[0]
    for strategy in ("ddp", "fsdp"):
        assert losses(mixers(recipe, strategy, 2)) == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
def test_a_strangers_backbone_is_listed_exported_and_read_back(mixers, tmp_path):
    listed = json.loads(vtx("show", MIXER, "--json").stdout)
    assert {r["name"].rpartition(":")[2] for r in listed["recipes"]} == {
        "supervised",
        "distilled",
        "dino",
        "clip",
    }
    (row,) = listed["models"]
    assert (
        row["name"] == "convmixer_768_32"
        and row["parameters"] == 21_110_248
        and row["resolution"] == 224
    )
    for recipe in ("supervised", "dino"):
        folder, out = mixers(recipe, "ddp", 2), tmp_path / recipe
        exported = vtx("export", folder, "--to", "timm", out)
        assert exported.returncode == 0, exported.stderr
        network = open_run(folder).recipe.objective.net
        state = weights.import_network(out, network)
        prefix = open_run(folder).recipe.objective.exported()[0]
        here = open_run(folder).model.state_dict()
        assert state.keys() == {k.removeprefix(prefix) for k in here if k.startswith(prefix)}
        assert all(torch.equal(v, here[prefix + k]) for k, v in state.items())
    train_on_ranks(
        tmp_path / "again",
        1,
        "single",
        f"init.from={tmp_path / 'supervised'}",
        "steps=1",
        "optim.lr=1e-30",
        recipe=f"{MIXER}:supervised",
        small=False,
    )
    refused = vtx("export", mixers("clip", "ddp", 2), "--to", "transformers", tmp_path / "no")
    assert refused.returncode == 2 and "no CLIP with a ConvMixer" in refused.stderr


@pytest.mark.slow
def test_the_strangers_backbone_computes_what_timm_does(mixers, tmp_path):
    need("interop")
    from tests.parity.libraries import timm

    folder = mixers("supervised", "single", 1)
    opened = open_run(folder)
    weights.export(opened.model, "timm", tmp_path / "out")
    spec = opened.recipe.objective.net
    theirs = timm.models.convmixer.ConvMixer(
        spec.width, spec.depth, spec.kernel, spec.patch, num_classes=spec.classes
    )
    theirs.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    theirs = theirs.double().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in STATISTICS["imagenet"])
    with torch.no_grad():
        there = theirs(
            ((torch.from_numpy(pixels) / 255.0 - mean) / std).permute(0, 3, 1, 2)
        ).float()
    assert torch.allclose(opened.probes["classify"](pixels), there, atol=1e-5)


# what is broken in examples/backbone.py, and what is said
BROKEN = {
    "units": ("def units(self)", "def parts(self)", "has no attribute 'units'"),
    "rule": ('Rule(r".*", normal', 'Rule(r"none", normal', "stages.0.conv.weight"),
    "shape": (".mean((2, 3))", ".mean((1, 3))", "where the spec's width says (2, 64)"),
    "width": ("def width(self)", "def breadth(self)", "has no attribute 'width'"),
    "class": ('"backbone:PlainConv"', '"backbone:PlainKonv"', "has no 'PlainKonv'"),
    "size": ("resolution: int = 32", "resolution: int = 32\n    least = 64", "of 64 px or more"),
    "build": ('build: ClassVar[str] = "backbone:PlainConv"', "", "names no class"),
    "recipe": ("    run = recipes.find(", "    run = missing(", "line 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_a_faulty_backbone_is_refused_before_anything_is_written(tmp_path, what):
    old, new, sentence = BROKEN[what]
    text = (Path(__file__).parents[2] / "examples" / "backbone.py").read_text()
    assert old in text
    file = tmp_path / "backbone.py"
    file.write_text(text.replace(old, new))
    run = tmp_path / "run"
    done = vtx("train", f"{file}:plain_conv", "--run", run, "system.world=2", "system.workers=0")
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not run.exists()


@pytest.mark.slow
def test_a_backbone_that_looks_at_values_is_no_fault(tmp_path):
    """Such a pass cannot be tried without values: nothing is known of its shapes then."""
    text = (Path(__file__).parents[2] / "examples" / "backbone.py").read_text()
    old = "        return self.pyramid(image, slots)[-1]"
    assert text.count(old) == 1
    file = tmp_path / "backbone.py"
    file.write_text(text.replace(old, f"        __import__('numpy').asarray(image)\n{old}"))
    run = tmp_path / "run"
    done = vtx("train", f"{file}:plain_conv", "--run", run, "steps=1", "system.workers=0")
    assert done.returncode == 0, done.stderr


STRANGE = """
from dataclasses import replace
from vtx_scale.launch import recipes
from vtx_scale.specs.run import Run

def wrong() -> Run:
    return replace(recipes.find("vit_b16_jft", smoke=True), objective=object())

def silent():
    return recipes.find("vit_b16_jft", smoke=True)
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "strange.py"], "is no ObjectiveSpec"),
        (["show", "silent.py"], "a function annotated '-> Run'"),
        (["train", "strange.py"], "give strange.py:FUNCTION"),
        (["train", "strange.py:silent", "--smoke"], "has no smoke size"),
        (["train", "strange.py:gone"], "it has wrong, silent"),
        (["show", "modells"], "did you mean models?"),
    ],
)
def test_words_that_miss(tmp_path, words, sentence):
    (tmp_path / "strange.py").write_text(STRANGE)
    (tmp_path / "silent.py").write_text(STRANGE.partition("def wrong")[0])
    done = vtx(*words, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and sorted(p.name for p in tmp_path.glob("*.py")) == [
        "silent.py",
        "strange.py",
    ]
