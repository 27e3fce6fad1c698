"""P3, no silent load: a checkpoint that was cut, that turned a bit, or whose maker did not mean
well is passed over or refused in a line, and nothing of it is executed or read elsewhere.
"""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import COLOUR, train_on_ranks, vtx
from vtx_scale.checkpoints.format import (
    Damaged,
    canonical,
    file_names,
    manifest_name,
    read_manifest,
    seal,
    sha256_file,
)
from vtx_scale.checkpoints.read import Tensors, listing, newest, read_newest, verify
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.sharding import Slice

WORLD = 2
FILES = sorted([*file_names(0, 0), *file_names(1, 0), "manifest.json"])


def save(folder: Path, step: int) -> None:
    """Two ranks' rows of a matrix, and a number that both have."""
    writers = [Writer(Folder(folder), rank, WORLD, "a", 9, patience=20) for rank in range(WORLD)]
    for rank, writer in enumerate(writers):
        rows = torch.arange(8.0).reshape(2, 4) + step + 100 * rank
        box = ((2 * rank, 2 * rank + 2), (0, 4))
        once = Slice("exp_avg/b", (1,), ((0, 1),), torch.ones(1) * step, WORLD, rank)
        writer.save(step, [Slice("param/a", (4, 4), box, rows), once], {"strategy": "ddp"})
    for writer in writers:
        writer.wait()
        assert writer.error is None


@pytest.fixture
def folder(tmp_path):
    for step in (3, 6):
        save(tmp_path, step)
    return tmp_path


def loaded(folder: Path, say) -> tuple[int, dict]:
    """Step and tensors of what a reader takes."""

    def use(checkpoint):
        tensors = checkpoint.tensors()
        return checkpoint.step, {key: tensors.tensor(key) for key in tensors.keys()}

    return read_newest(Folder(folder), use, say)


def assert_never_loaded(folder: Path, name: str, bodies: list[bytes]) -> None:
    """With any of these in place of a file of the newest checkpoint the older one is taken, with a
    line that names the file.
    """
    path = folder / "step-00000006" / name
    whole = path.read_bytes()
    for body in bodies:
        assert body != whole
        path.write_bytes(body)
        said: list[str] = []
        step, tensors = loaded(folder, said.append)
        assert step == 3, (name, len(body))
        assert torch.equal(tensors["exp_avg/b"], torch.full((1,), 3.0))
        assert len(said) == 1 and "\n" not in said[0] and name in said[0], said
        with pytest.raises(Damaged):
            verify(Folder(folder), 6)
    path.write_bytes(whole)
    assert loaded(folder, print)[0] == 6


def cut(whole: bytes, count: int) -> list[bytes]:
    """The file, ending at so many places: nothing of it, and all but a byte, among them."""
    return [whole[: len(whole) * i // count] for i in range(count - 1)] + [whole[:-1]]


def flipped(whole: bytes, count: int, seed: int = 0) -> list[bytes]:
    """The file with one bit turned, so many times."""
    draw, out = random.Random(seed), []
    for _ in range(count):
        body = bytearray(whole)
        body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        out.append(bytes(body))
    return out


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_loaded_that_was_cut_or_turned_a_bit(folder, name):
    whole = (folder / "step-00000006" / name).read_bytes()
    longer = [whole + b"\x00", whole + whole]
    assert_never_loaded(folder, name, cut(whole, 6) + flipped(whole, 12) + longer)


def test_a_manifest_is_its_bytes(folder):
    """A bit that changes no value: 1e-07 became 1E-07."""
    change_manifest(folder, scale=1e-7)
    path = folder / "step-00000006" / "manifest.json"
    whole = path.read_bytes()
    assert whole.count(b"1e-07") == 1
    assert_never_loaded(folder, "manifest.json", [whole.replace(b"1e-07", b"1E-07")])


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_no_file_of_a_run_is_loaded_that_was_cut_or_turned_a_bit(tmp_path):
    """Every file of a real checkpoint, cut at 20 places and with 50 single bits turned."""
    run = tmp_path / "run"
    keys = ("checkpoint.every=3", "steps=6")
    train_on_ranks(run, 2, "fsdp", *keys, recipe=COLOUR)
    folder, at = run / "checkpoints", run / "checkpoints" / "step-00000006"
    for path in sorted(at.iterdir()):
        whole = path.read_bytes()
        for body in cut(whole, 20) + flipped(whole, 50):
            path.write_bytes(body)
            said: list[str] = []
            found = newest(Folder(folder), said.append)
            assert found is not None and found["step"] == 3 and path.name in said[0]
        path.write_bytes(whole)
    assert newest(Folder(folder))["step"] == 6


class Canary:
    """Executed by whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


DATA, TABLE = file_names(0, 0)


def resealed(folder: Path, **files: bytes) -> None:
    """Other bytes in the newest checkpoint, with digests that fit."""
    at = folder / "step-00000006"
    manifest = read_manifest(Folder(folder), 6)
    for name, body in {{"data": DATA, "table": TABLE}[k]: v for k, v in files.items()}.items():
        (at / name).write_bytes(body)
        entry = {"size": len(body), "sha256": sha256_file(at / name)}
        manifest["files"][name] = entry
    (at / "manifest.json").write_bytes(seal(manifest))


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = read_manifest(Folder(folder), 6) | changes
    (folder / "step-00000006" / "manifest.json").write_bytes(seal(manifest))


def add_file(folder: Path, name: str, body: bytes = b"secret") -> None:
    """A file with this name, which the manifest knows with its true digest."""
    at = folder / "step-00000006"
    (at / name).parent.mkdir(parents=True, exist_ok=True)
    (at / name).write_bytes(body)
    files = read_manifest(Folder(folder), 6)["files"]
    entry = {"size": len(body), "sha256": sha256_file(at / name)}
    change_manifest(folder, files=files | {name: entry})


def change_row(folder: Path, at: int = 0, **changes: object) -> None:
    table = json.loads((folder / "step-00000006" / TABLE).read_bytes())
    table["slices"][at] |= changes
    resealed(folder, table=canonical(table))


def linked(folder: Path, name: str) -> None:
    """The same bytes, but elsewhere and through a link."""
    path = folder / "step-00000006" / name
    shutil.move(path, folder / "secret")
    path.symlink_to(folder / "secret")


def piped(folder: Path, name: str) -> None:
    path = folder / "step-00000006" / name
    path.unlink()
    os.mkfifo(path)


def header(length: int, body: bytes) -> bytes:
    return length.to_bytes(8, "little") + body


def entries(**offsets: object) -> bytes:
    body = json.dumps({"param/a#0": {"dtype": "F32", "shape": [2, 4], **offsets}}).encode()
    return header(len(body), body + b"\x00" * 64)


DEEP = b"[" * 200_000 + b"]" * 200_000
MALICIOUS = {
    "pickle for data": lambda f: resealed(f, data=pickle.dumps(Canary(f / "canary"))),
    "pickle for a table": lambda f: resealed(f, table=pickle.dumps(Canary(f / "canary"))),
    "pickle beside": lambda f: add_file(f, "extra.pkl", pickle.dumps(Canary(f / "canary"))),
    "pickle for the manifest": lambda f: (f / "step-00000006" / "manifest.json").write_bytes(
        pickle.dumps(Canary(f / "canary"))
    ),
    "header of 2^63 bytes": lambda f: resealed(f, data=header(1 << 63, b"{}")),
    "header of 90 MB that is not there": lambda f: resealed(f, data=header(90_000_000, b"{}")),
    "header that is deep": lambda f: resealed(f, data=header(len(DEEP), DEEP)),
    "header that is a list": lambda f: resealed(f, data=header(2, b"[]")),
    "no header": lambda f: resealed(f, data=b"12345"),
    "table that is deep": lambda f: resealed(f, table=DEEP),
    "table that is a number": lambda f: resealed(f, table=b"7"),
    "manifest that is deep": lambda f: (f / "step-00000006" / "manifest.json").write_bytes(DEEP),
    "manifest that is a list": lambda f: (f / "step-00000006" / "manifest.json").write_bytes(b"[]"),
    "entry before the file": lambda f: resealed(f, data=entries(data_offsets=[-96, -64])),
    "entry behind the file": lambda f: resealed(
        f, data=entries(data_offsets=[1 << 40, (1 << 40) + 32])
    ),
    "entry at half a byte": lambda f: resealed(f, data=entries(data_offsets=[0.5, 32.5])),
    "name above": lambda f: add_file(f, "../../secret"),
    "absolute name": lambda f: add_file(f, str(f / "secret")),
    "name with a line end": lambda f: add_file(f, f"{DATA}\n"),
    "link for data": lambda f: linked(f, DATA),
    "link for a table": lambda f: linked(f, TABLE),
    "link for the manifest": lambda f: linked(f, "manifest.json"),
    "pipe for data": lambda f: piped(f, DATA),
    "pipe for the manifest": lambda f: piped(f, "manifest.json"),
    "another step": lambda f: change_manifest(f, step=7),
    "no files": lambda f: change_manifest(f, files=7),
    "files without digests": lambda f: change_manifest(f, files={DATA: {"size": 1}}),
    "size that is a word": lambda f: change_manifest(f, files={DATA: {"size": "1", "sha256": "0"}}),
    "table without its data": lambda f: change_manifest(
        f, files={k: v for k, v in read_manifest(Folder(f), 6)["files"].items() if k != DATA}
    ),
    "type that is a function": lambda f: change_row(f, dtype="load"),
    "type of another size": lambda f: change_row(f, dtype="float64"),
    "box outside": lambda f: change_row(f, box=[[3, 5], [0, 4]]),
    "box before": lambda f: change_row(f, box=[[-2, 0], [0, 4]]),
    "box twice, and a hole": lambda f: change_row(f, box=[[2, 4], [0, 4]]),
    "box of other dimensions": lambda f: change_row(f, box=[[0, 8]]),
    "box of words": lambda f: change_row(f, box=[["0", "2"], [0, 4]]),
    "shape of a petabyte": lambda f: change_row(f, shape=[1 << 40, 1 << 10]),
    "shape of fractions": lambda f: change_row(f, shape=[4.0, 4.0]),
    "no entry": lambda f: change_row(f, entry="../../secret"),
    "no such key": lambda f: change_row(f, key=["param/a"]),
}


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_maker_who_does_not_mean_well_is_refused_in_a_line(folder, kind):
    MALICIOUS[kind](folder)
    before = tree(folder)
    said: list[str] = []
    step, tensors = loaded(folder, said.append)
    assert step == 3 and torch.equal(tensors["exp_avg/b"], torch.full((1,), 3.0))
    assert len(said) == 1 and len(said[0].splitlines()) == 1 and len(said[0]) < 400, said
    row = listing(Folder(folder), deep=True)[1]
    assert not row["valid"] and len(row["reason"].splitlines()) == 1
    with pytest.raises(Damaged):
        Tensors(Folder(folder), verify(Folder(folder), 6)).check()
    assert tree(folder) == before, "something was written"


def test_the_command_refuses_it_too(tmp_path):
    """No traceback, and the exit code says so."""
    run = tmp_path / "run"
    save(run / "checkpoints", 3)
    save(run / "checkpoints", 6)
    (run / "run.json").write_text(json.dumps({"recipe": {}}))
    resealed(run / "checkpoints", data=pickle.dumps(Canary(run / "canary")))
    done = vtx("checkpoints", run, "--verify", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["valid"] for row in rows] == [True, False]
    assert not (run / "canary").exists()


def test_a_manifest_of_a_later_version_is_no_damage(folder):
    """It is not passed over: an older checkpoint in its place would be a step back in silence."""
    change_manifest(folder, format=3, versions={"vtx-scale": "9"})
    with pytest.raises(Exception, match="format 3, this version reads up to 2") as error:
        loaded(folder, print)
    assert type(error.value).__name__ == "UserError"
    assert Folder(folder).head(manifest_name(6)) is not None
