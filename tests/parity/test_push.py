"""`vtx export --push NAME`, against a stand-in of the Hub's HTTP API on loopback."""

import pytest

from tests.parity import hub as stand_in
from tests.parity.test_strangers import opened
from tests.require import need
from vtx_scale.launch import cli, export


@pytest.fixture
def hub(monkeypatch):
    need("interop")
    from huggingface_hub import constants

    with stand_in.served() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
        yield hub


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run without a training."""
    made = opened(tmp_path / "run", "clip_vit_b32")
    monkeypatch.setattr(export, "open_run", lambda *_: made)
    return made.folder


def push(run, out, name="me/small", to="open_clip"):
    return cli.main(["export", str(run), "--to", to, "--push", name, str(out)])


def test_every_file_arrives(hub, run, tmp_path, capsys):
    """Byte for byte, in one commit of a private repository; the page and open_clip's config name
    it. Once more into the one that there is.
    """
    assert push(run, tmp_path / "out") == 0
    want = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert hub.files["me/small"].items() >= want.items() and "README.md" in want
    assert hub.private["me/small"] and hub.messages == ["vtx export, step 8"]
    assert f"{hub.url}/me/small" in capsys.readouterr().out
    assert b"hf-hub:me/small" in want["README.md"]
    assert b'"hf_tokenizer_name": "me/small"' in want["open_clip_config.json"]
    assert push(run, tmp_path / "again", to="transformers") == 0
    assert b"from_pretrained('me/small')" in hub.files["me/small"]["README.md"]


def test_nobody_logged_in_is_refused_first(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_a_stale_one")
    assert push(run, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "hf auth login" in said and "Traceback" not in said and "hf_a_stale" not in said
    assert not (tmp_path / "out").exists() and not hub.files


@pytest.mark.parametrize("name", ["no spaces here", "a/b/c", "-x"])
def test_a_name_that_is_none(hub, run, tmp_path, name, capsys):
    code = cli.main(["export", str(run), "--to", "timm", f"--push={name}", str(tmp_path / "out")])
    assert code == 2 and f"--push {name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_hub_does_not_take_stays_here(hub, run, tmp_path, capsys):
    hub.full = True
    assert push(run, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"hf upload me/small {tmp_path / 'out'}" in said and "Traceback" not in said
    assert (tmp_path / "out" / "README.md").exists()
