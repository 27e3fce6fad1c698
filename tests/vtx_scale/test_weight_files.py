"""Folders of weights that others wrote: what is read of them, and what is not."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import FILES, read_weights

A, B = {"a": torch.arange(3.0)}, {"b.c": torch.ones(2, 2), "b.d": torch.zeros(1)}


def index(folder, **where):
    folder.mkdir(exist_ok=True)
    body = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    return folder


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_the_parts_of_an_index_are_put_together(tmp_path):
    """Also where they are links, as in a cache of downloads."""
    folder = index(tmp_path / "model", a="1.safetensors", **{k: "2.safetensors" for k in B})
    (tmp_path / "blobs").mkdir()
    save_file(A, tmp_path / "blobs" / "0f")
    os.symlink("../blobs/0f", folder / "1.safetensors")
    save_file(B, folder / "2.safetensors")
    assert same(read_weights(folder, FILES), A | B)
    assert same(read_weights(folder / "model.safetensors.index.json", FILES), A | B)


@pytest.mark.parametrize("beside", [True, False], ids=["a file of that name beside", "none"])
@pytest.mark.parametrize("name", ["../other/1.safetensors", "x/../../other/1.safetensors", "/{}"])
def test_an_index_names_no_file_elsewhere(tmp_path, name, beside):
    """Neither is that file read, nor one of its name in the folder in its place."""
    (tmp_path / "other").mkdir()
    save_file(A, tmp_path / "other" / "1.safetensors")
    name = name.format(str(tmp_path / "other" / "1.safetensors").lstrip("/"))
    folder = index(tmp_path / "model", a=name)
    if beside:
        save_file(A, folder / "1.safetensors")
    with pytest.raises(UserError, match="names a file outside of its folder"):
        read_weights(folder, FILES)


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "1.pt"])
def test_an_index_names_no_pickle(tmp_path, name):
    folder = index(tmp_path / "model", a=name)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="is a pickle, which is never read .*safe_serialization=Tr"):
        read_weights(folder, FILES)


@pytest.mark.parametrize("body", ["[]", "{}", '{"weight_map": ["1"]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_a_sentence(tmp_path, body):
    (tmp_path / "model.safetensors.index.json").write_text(body)
    with pytest.raises(UserError):
        read_weights(tmp_path, FILES)


def test_a_part_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"2\.safetensors.*give the whole folder"):
        read_weights(index(tmp_path / "model", a="2.safetensors"), FILES)
