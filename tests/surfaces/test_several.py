"""Ranks of one command that end badly: one reason, and never none."""

import subprocess
import time

import pytest

from vtx_scale.launch import several


def outcome(tmp_path, capsys, *scripts):
    """(code, stderr) of ranks that are these shell scripts; each says its number."""
    said = [tmp_path / f"stderr-{rank}" for rank in range(len(scripts))]
    ranks = []
    for rank, script in enumerate(scripts):
        with said[rank].open("wb") as err:
            ranks.append(subprocess.Popen(["sh", "-c", script], stderr=err))
    try:
        code = several.first_failure(several.ended(ranks), said)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("scripts", "code", "said"),
    [
        (("exit 0", "exit 0"), 0, ""),
        # the same refusal on both, whoever is quicker; rank 0 speaks for itself
        (("sleep 0.3; exit 2", "echo no >&2; exit 2"), 2, ""),
        (("exit 2", "sleep 0.3; echo no >&2; exit 2"), 2, ""),
        # the other alone knows why
        (("sleep 0.3; exit 1", "echo no >&2; exit 2"), 2, "no\n"),
        (("exit 0", "exit 7"), 7, "vtx: rank 1 ended with exit code 7.\n"),
        # a signal is the reason, and the lost peer of another is not
        (("exit 0", "kill -9 $$"), 1, "vtx: rank 1 ended with signal 9.\n"),
        (("kill -9 $$", "exit 0"), 1, "vtx: rank 0 ended with signal 9.\n"),
        (
            ("exit 1", "echo lost >&2; exit 1", "sleep 0.3; kill -15 $$"),
            1,
            "vtx: rank 2 ended with signal 15.\n",
        ),
    ],
)
def test_one_reason_and_never_none(tmp_path, capsys, scripts, code, said):
    assert outcome(tmp_path, capsys, *scripts) == (code, said)


def test_one_that_waits_for_a_lost_peer_is_ended(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(several, "GRACE", 0.3)
    began = time.monotonic()
    assert outcome(tmp_path, capsys, "sleep 60", "echo no >&2; exit 2") == (2, "no\n")
    assert time.monotonic() - began < 30
