"""A DALL-E goes out and comes back as a whole: transformer and codec, by `vtx export` and
`init.from`.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.runs import smoke, train, train_on_ranks, vtx
from vtx_scale import open_run
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import import_weights
from vtx_scale.launch import cli, override, recipes

pytestmark = pytest.mark.slow

STILL = ("steps=1", "optim.lr=1e-30", "optim.decay=0", "seed=77")  # a step that changes nothing
LEFT_OPEN = "objective.codec_from=required"  # as it stands in a recipe that is no smoke


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A DALL-E on a codec of its own, which is not the one that smoke sizes make."""
    folder = tmp_path_factory.mktemp("first")
    train_on_ranks(folder / "dvae", 1, "single", "steps=1", "seed=5", recipe="dvae_dalle")
    codec = f"objective.codec_from={folder / 'dvae'}"
    train_on_ranks(folder / "run", 1, "single", "steps=2", codec, recipe="dalle_12b")
    shutil.rmtree(folder / "dvae")  # it lies in the run
    return folder / "run"


@pytest.fixture(scope="module")
def exported(first):
    out = first.parent / "out"
    assert cli.main(["export", str(first), "--to", "safetensors", str(out)]) == 0
    return out


def assert_alike(a, b):
    """All that a DALL-E can be asked, to the bit."""
    one, two = open_run(a), open_run(b)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    asks = {
        "codes": lambda p: p["codes"](pixels),
        "decode": lambda p: p["decode"](torch.arange(64).reshape(1, 8, 8) % 32),
        "sample": lambda p: p["sample"](["a red circle", "b"], 3),
        "loss": lambda p: p["loss"](
            pixels,
            torch.arange(3),
            torch.arange(3 * 48).reshape(3, 48) % 258,
            torch.tensor([48, 7, 0]),
        ),
    }
    for name, ask in asks.items():
        assert torch.equal(ask(one.probes), ask(two.probes)), name
    assert one.model.state_dict().keys() == two.model.state_dict().keys()


@pytest.mark.parametrize(
    ("where", "codec"), [("run", (LEFT_OPEN,)), ("export", (LEFT_OPEN,)), ("export", ())]
)
def test_it_comes_back_whole(first, exported, tmp_path, where, codec):
    """By init.from alone, of a run folder and of an export; and goes on where that is gone. What a
    smoke size would make for itself is no codec that its user gave.
    """
    source = tmp_path / "source"
    shutil.copytree(first if where == "run" else exported, source)
    keys = (f"init.from={source}", *STILL, *codec)
    train_on_ranks(tmp_path / "again", 1, "single", *keys, recipe="dalle_12b")
    assert_alike(first, tmp_path / "again")
    shutil.rmtree(source)
    done = vtx(
        "train", "dalle_12b", "--smoke", "--run", tmp_path / "again", "system.workers=0", *keys
    )
    assert done.returncode == 0 and "finished already" in done.stderr, done.stderr


@pytest.mark.parametrize("where", ["run", "export"])
def test_its_codec_alone_can_be_taken(first, exported, tmp_path, where):
    """Another transformer learns from the codes of the same codec."""
    source = f"objective.codec_from={first if where == 'run' else exported}"
    train_on_ranks(tmp_path / "other", 1, "single", *STILL, source, recipe="dalle_12b")
    ours, theirs = (open_run(f).model.state_dict() for f in (tmp_path / "other", first))
    for name, tensor in theirs.items():
        same = torch.equal(ours[name], tensor)
        assert same or not name.startswith("codec."), name
    assert not torch.equal(ours["net.text.weight"], theirs["net.text.weight"])


def test_a_codec_of_another_size_is_that_of_the_export(exported):
    """The recipe need not describe the codec: the export says it."""
    other = ("objective.codec.width=32", "objective.codec.stem=8")
    keys = (f"init.from={exported}", LEFT_OPEN, *other)
    run = smoke(*keys, recipe="dalle_12b")
    assert (run.objective.codec.width, run.objective.codec.stem) == (16, 16)
    assert run.objective.codec_from == str(exported)


@pytest.mark.parametrize("library", ["transformers", "open_clip", "timm", "torchvision"])
def test_no_other_library_has_one(first, tmp_path, library, capsys):
    assert cli.main(["export", str(first), "--to", library, str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert f"{library} has no DALL-E" in error and "safetensors" in error
    assert not any(word in error for word in ("exported", "interop", "Error"))
    assert not (tmp_path / "o").exists()


def test_what_brings_no_codec_is_refused(exported, tmp_path):
    """Without init.from, from something else, and from a DALL-E's file that lacks it."""
    done = train(tmp_path / "r", LEFT_OPEN, recipe="dalle_12b", code=2)
    assert "add objective.codec_from=RUN" in done.stderr
    train_on_ranks(tmp_path / "clip", 1, "single", "steps=1")
    keys = (f"init.from={tmp_path / 'clip'}", LEFT_OPEN, "steps=1")
    done = train(tmp_path / "r", *keys, recipe="dalle_12b", code=2)
    assert "brings no codec: add objective.codec_from=RUN" in done.stderr
    plain = shutil.copytree(exported, tmp_path / "plain")
    spec = json.loads((plain / "spec.json").read_text())
    (plain / "spec.json").write_text(json.dumps(spec["codec"]))
    done = train(tmp_path / "r", f"init.from={plain}", LEFT_OPEN, recipe="dalle_12b", code=2)
    assert "brings no codec" in done.stderr and not (tmp_path / "r" / "run.json").exists()
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no transformer of a DALL-E"):
        import_weights(tmp_path / "x.safetensors", recipes.find("dalle_12b").objective)


def test_a_student_is_not_taken_for_the_teacher(tmp_path):
    """Both are networks of one kind: whoever goes on with a student says who teaches it."""
    student = smoke("objective.teacher_from=somewhere", recipe="deit_s16_distilled")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": override.to_dict(student)}))
    keys = (f"init.from={tmp_path}", "objective.teacher_from=required")
    with pytest.raises(UserError, match="brings no teacher: add objective.teacher_from=RUN"):
        smoke(*keys, recipe="deit_s16_distilled")
