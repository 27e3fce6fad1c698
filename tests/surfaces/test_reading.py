"""How `vtx sample`, `vtx export` and `vtx evaluate` open a run: they look at everything before
they work, and take a device and a precision.
"""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.runs import tensors, train_on_ranks
from vtx_scale import open_run
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import cli
from vtx_scale.launch.reading import Reading, reading_of
from vtx_scale.objectives.dalle import Dalle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}

    def get(recipe, *keys):
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe) / "run"
            train_on_ranks(folders[recipe], 1, "single", "steps=1", *keys, recipe=recipe)
        return folders[recipe]

    return get


@pytest.fixture
def vtx(capsys):
    """The command in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def no_drawing(monkeypatch):
    """A refusal comes before anything is drawn."""

    def sample(*_):
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(Dalle, "sample", sample)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--rerank", "igpt_s"), "reads no texts"),
        (("--rerank", "dalle_12b"), "reads no texts"),
        (("--rerank", "nowhere"), "no run folder"),
        (("--keep", 2), "--keep is for --rerank"),
        (("--temperature", "nan"), "--temperature is a number above 0"),
        (("--temperature", "inf"), "--temperature is a number above 0"),
        (("objective.net.depth=1",), "objective.net.depth: a run is taken as it was trained"),
        (("system.compile=true",), "system.precision and system.world can be set"),
        (("system.precision=fp8",), "'fp8' is none of"),
        (("system.device=tpu",), "'tpu' is none of"),
    ],
)
def test_a_refusal_comes_before_the_first_picture(runs, vtx, no_drawing, tmp_path, words, sentence):
    words = [runs(w) if w in ("igpt_s", "dalle_12b") else w for w in words]
    code, out, error = vtx("sample", runs("dalle_12b"), tmp_path / "o", "--text", "a", *words)
    assert code == 2 and sentence in error and not out, error
    assert not (tmp_path / "o").exists()


def test_a_tokenizer_that_is_gone_is_seen_before_the_first_picture(
    runs, vtx, no_drawing, tmp_path, monkeypatch
):
    monkeypatch.setattr("vtx_scale.objectives.dalle.tokenizer", gone)
    code, _, error = vtx("sample", runs("dalle_12b"), tmp_path / "o", "--text", "a")
    assert code == 2 and "gone.json" in error and not (tmp_path / "o").exists()


def gone(name):
    raise UserError("data.tokenizer=gone.json is no file.")


def test_no_empty_folder_is_left_when_drawing_fails(runs, vtx, tmp_path, monkeypatch):
    def sample(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(Dalle, "sample", sample)
    command = ("sample", runs("dalle_12b"))
    assert vtx(*command, tmp_path / "o", "--text", "a")[0] == 1
    assert not (tmp_path / "o").exists()
    (tmp_path / "mine").mkdir()
    assert vtx(*command, tmp_path / "mine", "--text", "a")[0] == 1
    assert (tmp_path / "mine").is_dir(), "a folder that was there stays"


@pytest.mark.parametrize(
    ("captions", "drawer", "judge"),
    [
        (("a" * 48,), 0, 0),
        (("a" * 49,), 1, 0),
        (("a" * 49, "b", "é" * 32), 2, 1),
    ],
)
def test_a_caption_that_is_cut_is_reported(runs, vtx, tmp_path, captions, drawer, judge):
    """Of both runs that read it: 48 tokens by the DALL-E, 64 with the frame by the CLIP."""
    run, clip = runs("dalle_12b"), runs("clip_vit_b32")
    texts = [word for caption in captions for word in ("--text", caption)]
    code, out, error = vtx("sample", run, tmp_path / "o", *texts, "--count", 1, "--rerank", clip)
    assert code == 0 and len(out.split()) == len(captions)
    assert error.splitlines() == [
        f"vtx: {folder}: {n} of {len(captions)} captions were longer than {fit} tokens "
        "and were cut."
        for folder, n, fit in ((run, drawer, 48), (clip, judge, 62))
        if n
    ]


@pytest.mark.parametrize("recipe", ["clip_vit_b32", "siglip_vit_b16"])
def test_what_is_cut_is_what_is_not_read(runs, recipe):
    """By the embeddings: a longer caption than fits equals its beginning."""
    probes = open_run(runs(recipe)).probes
    _, fit = probes["cut"]([])
    texts = ["a" * (fit - 1), "a" * fit, "a" * (fit + 1), "a" * (fit + 9)]
    assert [probes["cut"]([t])[0] for t in texts] == [0, 0, 1, 1]
    one, two, three, four = probes["encode_text"](texts)
    assert not torch.equal(one, two) and torch.equal(two, three) and torch.equal(three, four)


def test_precision_and_device_of_what_is_computed(runs, vtx, tmp_path):
    """fp64 and bf16 change the answers by as much as their digits."""
    folder = runs("clip_vit_b32")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    plain = open_run(folder).probes["encode_image"](pixels)
    far = {}
    for precision in ("fp32", "fp64", "bf16", "fp16"):
        opened = open_run(folder, device="cpu", precision=precision)
        far[precision] = (opened.probes["encode_image"](pixels) - plain).abs().max().item()
        wide = torch.float64 if precision == "fp64" else torch.float32
        assert {p.dtype for p in opened.model.parameters()} == {wide}
    assert far["fp32"] == 0 and 0 < far["fp64"] < 1e-6
    assert 1e-6 < far["fp16"] < 1e-2 and far["fp16"] < far["bf16"] < 5e-2
    for keys in (("system.device=cpu",), ("system.device=cpu", "system.precision=bf16")):
        code, out, _ = vtx("sample", runs("igpt_s"), tmp_path / keys[-1], "--count", 1, *keys)
        assert code == 0 and np.asarray(Image.open(out.strip())).shape == (8, 8, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(runs, vtx, tmp_path):
    key, folder = "system.device=cuda", runs("igpt_s")
    for command in (
        ("sample", folder, tmp_path / "o", key),
        ("export", folder, "--to", "safetensors", tmp_path / "o", key),
        ("evaluate", folder, key),
    ):
        code, _, error = vtx(*command)
        assert code == 2 and "torch sees no GPU" in error and not (tmp_path / "o").exists()
    assert open_run(folder, "auto").model.net.positions.device.type == "cpu"


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
def test_an_export_is_written_in_a_precision(runs, vtx, tmp_path, precision):
    out, folder = tmp_path / "o", runs("clip_vit_b32")
    code, _, error = vtx(
        "export", folder, "--to", "safetensors", out, f"system.precision={precision}"
    )
    assert code == 0, error
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}.get(precision, "float32")
    state, trained = load_file(out / "model.safetensors"), tensors(folder)
    assert {str(t.dtype) for t in state.values()} == {f"torch.{dtype}"}
    for name, t in state.items():
        assert torch.equal(t, trained[f"param/{name}"].to(t.dtype)), name


def test_an_export_looks_at_its_folder_first(runs, vtx, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").touch()
    broken = tmp_path / "run"  # were it opened first, this would be the refusal
    code, _, error = vtx("export", broken, "--to", "safetensors", tmp_path / "o")
    assert code == 2 and "not an empty folder" in error
    code, _, error = vtx(
        "export", runs("igpt_s"), "--to", "safetensors", tmp_path / "new", "steps=2"
    )
    assert code == 2 and "system.device and system.precision can be set" in error
    assert os.listdir(tmp_path) == ["o"]


def test_an_evaluation_takes_them_beside_its_data(runs, vtx):
    folder = runs("igpt_s")
    scores = {}
    for precision in ("fp32", "fp64", "bf16"):
        keys = (f"system.precision={precision}", "system.device=cpu", "system.workers=0")
        code, out, error = vtx("evaluate", folder, "--with", "loss", "--json", *keys)
        assert code == 0, error
        scores[precision] = out
    assert len(set(scores.values())) == 3
    for key in ("system.replicas=2", "system.compile=true", "objective.hidden=0.1"):
        code, _, error = vtx("evaluate", folder, key)
        assert code == 2 and key.partition("=")[0] in error and "data.*" in error


def test_the_last_of_a_key_counts():
    assert reading_of(["system.device=cuda", "system.device=cpu"]) == Reading("cpu", None)
    assert reading_of(["data.x=1", "system.precision=bf16"], ("data.",)).precision == "bf16"
