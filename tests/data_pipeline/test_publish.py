"""What appears does so whole, with the mode of the umask; what a dead writer leaves is removed."""

import ast
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vtx_scale
from tests.runs import environment
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline import publish
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.shards import write_lines, write_shard
from vtx_scale.distributed.sharding import Slice
from vtx_scale.interop.files import write_folder
from vtx_scale.launch.evaluate import keep_picture
from vtx_scale.launch.run_folder import acquire_lease, write_whole
from vtx_scale.trainer.output import Ledger, append_text


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def save_a_checkpoint(folder: Path) -> None:
    writer = Writer(Folder(folder / "checkpoints"), 0, 1, "one", 1)
    writer.save(1, [Slice("param/x", (2,), ((0, 2),), torch.zeros(2))], {})
    writer.wait()
    assert writer.error is None


def save_an_index(folder: Path) -> None:
    write_shard(folder / "data" / "a.tar", [("0", {"txt": b"a caption"})])
    open_index(str(folder / "data"))


KINDS = {
    "checkpoint": save_a_checkpoint,
    "index": save_an_index,
    "export": lambda f: write_folder(
        f / "deep" / "out", {"model.safetensors": {"x": torch.zeros(1)}}, {"config.json": {}}
    ),
    "run.json": lambda f: write_whole(f / "run.json", "{}\n"),
    "picture": lambda f: keep_picture(f, "loss", "picture", 3, np.zeros((4, 4, 3), np.uint8)),
    "lines": lambda f: write_lines(f / "classes.txt", ["one"]),
    "object": lambda f: Folder(f).put("a/b", b"body"),
    "new object": lambda f: Folder(f).put_if_absent("a/b", b"body"),
    "ledger": lambda f: Ledger(f).write(kind="note"),
    "log": lambda f: append_text(f, "line"),
    "lease": lambda f: acquire_lease(f).close(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_umask_says_the_mode(tmp_path, umask, kind):
    folder = tmp_path / "run"
    folder.mkdir()
    KINDS[kind](folder)
    found = [p for p in folder.rglob("*")]
    assert [p for p in found if p.is_file()]
    for path in found:
        plain = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == plain & ~umask, path
        assert not path.name.endswith(".part")


CODE = """
import os, sys
from pathlib import Path
import torch
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.interop import files
os.getpid = lambda: 1  # as in a container
target, what = Path(sys.argv[1]), sys.argv[2]
def interrupted(tensors, path, **options):
    Path(path).write_bytes(b"half")
    Path(path).with_name(".tmpXyz").write_bytes(b"of a library")
    print("ready", flush=True)
    sys.stdin.read()
if what == "folder":
    files.save_file = interrupted
    files.write_folder(target, {"model.safetensors": {"x": torch.zeros(1)}}, {"config.json": {}})
else:
    with whole(target) as part:
        interrupted({}, part)
"""


def writer(target: Path, what: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, target, what],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def write(target: Path, what: str) -> None:
    publish._swept.clear()  # as a new process
    if what == "folder":
        weights = {"model.safetensors": {"x": torch.zeros(1)}}
        write_folder(target, weights, {"config.json": {}})
    else:
        with publish.whole(target) as part:
            part.write_text("all of it")


@pytest.fixture(params=["file", "folder"])
def what(request):
    return request.param


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_a_killed_writer_left_is_removed_and_a_living_one_goes_on(tmp_path, what):
    living = writer(tmp_path / "other", what)
    dead = writer(tmp_path / "out", what)
    for process in (living, dead):
        assert process.stdout.readline() == "ready\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert len(names(tmp_path)) == 2
    write(tmp_path / "out", what)
    assert names(tmp_path)[1:] == ["out"] and names(tmp_path)[0].startswith(".other.")
    living.communicate("")
    assert living.returncode == 0 and names(tmp_path) == ["other", "out"]


def test_the_same_process_number_blocks_nobody(tmp_path, what, monkeypatch):
    """In a container every process may be number 1; of before, a leftover may have that name."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (tmp_path / ".out.1").mkdir()
    (tmp_path / ".out.1" / "model.safetensors").write_bytes(b"half")
    both = [writer(tmp_path / name, what) for name in ("out", "out")]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    ends = [process.communicate("")[0] is not None and process.returncode for process in both]
    # of two exports to one place the second finds the first's
    assert sorted(ends) == ([0, 0] if what == "file" else [0, 1])
    assert names(tmp_path) == [".out.1", "out"]


def leftover(folder: Path, machine: str, age: float) -> Path:
    part = folder / ".out.0123abcd.part"
    part.mkdir()
    (part / f"lock-{machine}").touch()
    (part / "out").write_text("half")
    os.utime(part, (time.time() - age,) * 2)
    return part


@pytest.mark.parametrize(
    ("machine", "age", "stays"),
    [(publish.machine(), 0, False), ("another", 3600, True), ("another", 100_000, False)],
)
def test_another_machines_writer_has_a_day(tmp_path, machine, age, stays):
    part = leftover(tmp_path, machine, age)
    write(tmp_path / "x", "file")
    assert part.exists() == stays


def test_what_only_looks_like_a_part_stays(tmp_path):
    for name in (".a.part", ".a.0123abcg.part", "a.0123abcd.part"):
        (tmp_path / name).mkdir()
    mine = tmp_path / ".notes.0123abcd.part"
    mine.mkdir()
    (mine / "text").write_text("a user's")
    os.utime(mine, (1, 1))
    (tmp_path / ".b.0123abcd.part").write_text("a file")
    before = names(tmp_path)
    write(tmp_path / "x", "file")
    assert names(tmp_path) == sorted([*before, "x"]) and (mine / "text").exists()


@pytest.mark.parametrize("name", ["y" * 255, "é" * 127, "a b'\"\n%20", "-"])
def test_any_name_that_a_file_may_have(tmp_path, name, what):
    write(tmp_path / name, what)
    assert names(tmp_path) == [name]


def test_half_an_object_is_not_listed(tmp_path):
    folder = Folder(tmp_path)
    with publish.whole(tmp_path / "a" / "b") as part:
        part.write_text("half")
        assert list(folder.list("")) == []
    assert list(folder.list("")) == ["a/b"]


def test_an_error_leaves_nothing_and_names_the_place(tmp_path, what):
    with pytest.raises(ZeroDivisionError), publish.whole(tmp_path / "out"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), publish.whole_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert not names(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as error:
        write(tmp_path / "file" / "out", what)
    assert str(tmp_path / "file") in str(error.value)


def test_no_name_comes_from_a_process_number():
    """`os.getpid` is for signals, parents and what people read; `mkstemp` makes private files."""
    root = Path(vtx_scale.__file__).parent
    allowed = {"failpoint.py", "guard.py", "run_folder.py", "torchrun.py"}
    allowed |= {"beats.py", "fork_ranks.py", "fork_server.py", "node.py", "warm.py"}
    allowed.add("memory.py")  # its folder's name: with the namespace and the start of the process
    for package in (root, *(root / name for name in ("launch", "cluster", "data_pipeline"))):
        for file in package.rglob("*.py"):
            tree = ast.parse(file.read_text())
            used = {node.attr for node in ast.walk(tree) if type(node) is ast.Attribute}
            assert "getpid" not in used or file.name in allowed, file
            assert "mkstemp" not in used, file
