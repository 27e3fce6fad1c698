"""Probes as programs: torch.export's, loaded anew, and ONNX in onnxruntime give the same."""

import json
import logging
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.test_strangers import opened
from tests.require import need
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import programs
from vtx_scale.launch.export import write

RUNS = {  # recipe -> its programs
    "clip_vit_b32": {"encode_image", "features_linear", "encode_text"},
    "clip_rn50": {"encode_image", "encode_text"},
    "siglip_vit_b16": {"encode_image", "encode_text"},
    "vit_b16_imagenet": {"encode_image", "features", "classify"},
    "resnet50_imagenet": {"encode_image", "features", "classify"},
    "dino_vit_s16": {"encode_image", "features", "features_linear"},
}
QUICK = ["clip_vit_b32", "resnet50_imagenet"]


def asked(run, name: str, n: int) -> torch.Tensor:
    """n rows of noise as the probe takes them."""
    shape, kind = programs.takes(run.model)[name]
    top = 256 if kind == "uint8" else run.recipe.objective.text.vocab
    return torch.randint(0, top, (n, *shape), generator=torch.Generator().manual_seed(n)).to(
        getattr(torch, kind)
    )


def same(have, want: torch.Tensor) -> bool:
    """Within 1e-5 of the largest."""
    return bool(np.abs(np.asarray(have) - want.numpy()).max() <= 1e-5 * want.abs().max())


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in RUNS],
)
def test_torch_export(recipe, tmp_path):
    """For batches of any size; no pickle lies in the file, and gradients are as they were."""
    run = opened(tmp_path / "run", recipe)
    trained = [p.requires_grad for p in run.model.parameters()]
    write(run, "torch_export", tmp_path / "out")
    assert [p.requires_grad for p in run.model.parameters()] == trained
    files = {p.stem: p for p in (tmp_path / "out").glob("*.pt2")}
    assert files.keys() == RUNS[recipe]
    for name, file in files.items():
        program = torch.export.load(file).module()
        for n in (1, 3):
            rows = asked(run, name, n)
            assert same(program(rows), run.probes[name](rows)), (name, n)
        with zipfile.ZipFile(file) as inside:
            assert not [x for x in inside.namelist() if inside.read(x)[:2] in (b"\x80\x02", b"PK")]


def test_its_page_and_what_it_does_not_use(tmp_path, monkeypatch):
    """The code on the page runs; a tower's program has the tower's tensors alone."""
    run = opened(tmp_path / "run", "clip_vit_b32")
    write(run, "torch_export", tmp_path / "out")
    names = torch.export.load(tmp_path / "out" / "encode_text.pt2").state_dict
    assert names and not [name for name in names if ".image" in name]
    monkeypatch.chdir(tmp_path / "out")
    space = {}
    exec(re.search("```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1], space)
    assert space["output"].shape == (2, run.recipe.objective.embed)
    assert json.loads(Path("recipe.json").read_text())["step"] == 8
    assert Path("tokenizer.json").exists()


@pytest.mark.services
def test_what_writes_onnx_says_nothing_of_other_packages(tmp_path, caplog):
    need("onnx")
    run = opened(tmp_path / "run", "clip_vit_b32")
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        write(run, "onnx", tmp_path / "out")
    assert not [str(w.message) for w in given if issubclass(w.category, FutureWarning)]
    assert not [r.getMessage() for r in caplog.records if r.name.startswith("torch.onnx")]
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.services
@pytest.mark.parametrize("recipe", QUICK)
def test_onnx(recipe, tmp_path):
    need("onnx")
    import onnxruntime

    run = opened(tmp_path / "run", recipe)
    write(run, "onnx", tmp_path / "out")
    files = {p.stem: p for p in (tmp_path / "out").glob("*.onnx")}
    assert files.keys() == RUNS[recipe]
    for name, file in files.items():
        session = onnxruntime.InferenceSession(str(file))
        for n in (1, 3):
            rows = asked(run, name, n)
            (have,) = session.run([name], {"rows": rows.numpy()})
            assert same(have, run.probes[name](rows)), (name, n)


def test_refusals(tmp_path, monkeypatch):
    """No probe of pixels or ids; nothing that writes ONNX. Nothing is left behind."""
    run = opened(tmp_path / "run", "dvae_dalle")
    with pytest.raises(UserError, match="no probe of pixels"):
        write(run, "torch_export", tmp_path / "out")
    run = opened(tmp_path / "igpt", "igpt_s")
    with pytest.raises(UserError, match="probe encode_image cannot be made a program"):
        write(run, "torch_export", tmp_path / "out")
    run = opened(tmp_path / "other", "clip_vit_b32")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vtx-scale\[onnx\]'"):
        write(run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
