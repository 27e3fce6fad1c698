"""P4: what only informs never ends a training, never holds it up and never changes it; what could
not be written is counted.
"""

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import SERVER
from tests.runs import (
    COLOUR,
    assert_same_bits,
    environment,
    lines,
    losses,
    train_on_ranks,
)
from vtx_scale.trainer import output
from vtx_scale.trainer.events import Events, cut_after
from vtx_scale.trainer.lines import parsed, truncate_after
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.output import PLACES, entry_lines, json_line

ROOT = Path(__file__).parents[2]
FILES = [name for name in PLACES if "." in name and name != "log.to"]  # a key, no file
KEYS = ("steps=12", "evaluate.0.every=6")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_on_ranks(folder, 1, "single", *KEYS)
    return folder


def closed(path: Path, name: str) -> None:
    """Nothing can be opened there."""
    if name == "tensorboard":
        path.write_text("a file where a folder should be")
    else:
        path.mkdir()


def full(path: Path, name: str) -> None:
    """A disk without room; for a folder, one in which no file can be made (not even by root)."""
    path.symlink_to("/dev/full" if name != "tensorboard" else "/proc/self")


def slow(path: Path, name: str) -> None:
    """A pipe that nobody reads: whoever opens it to write waits for ever."""
    os.mkfifo(path)


def counts(folder: Path) -> dict[str, int]:
    found = {}
    for entry in lines(folder / "ledger.jsonl"):
        if entry["kind"] == "dropped":
            found[entry["place"]] = found.get(entry["place"], 0) + entry["count"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, "tensorboard"])
@pytest.mark.parametrize("fault", [closed, full, slow])
def test_a_file_for_watchers(undisturbed, tmp_path, name, fault):
    folder = tmp_path / "run"
    folder.mkdir()
    fault(folder / name, name)
    train_on_ranks(folder, 1, "single", *KEYS)
    assert_same_bits(folder, undisturbed)
    if name != "metrics.jsonl":
        assert losses(folder) == losses(undisturbed)
    wanted = {"metrics.jsonl": 12, "evaluations.jsonl": 2}
    if name == "ledger.jsonl":  # there was nothing for it in this run
        return
    if name != "log.txt":
        assert f"{name} cannot be written" in (folder / "log.txt").read_text()
    found = counts(folder)
    assert set(found) == {name} and found[name] >= wanted.get(name, 1), found
    assert name not in wanted or found[name] == wanted[name]


def started(folder: Path, stderr: int | None, world: int = 1) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    keys = ["--run", str(folder), "system.workers=0", f"system.world={world}", *KEYS]
    run = [*command, *keys]
    if stderr is None:
        run = ["sh", "-c", 'exec "$@" 2>&-', "sh", *run]
    return subprocess.Popen(run, env=environment(), stderr=stderr, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def ear(kind: str):
    """A descriptor for stderr: of nobody, of a full disk, of a reader that does not read."""
    if kind == "closed":
        yield None
        return
    if kind == "full":
        with open("/dev/full", "w") as f:
            yield f.fileno()
        return
    reader, writer = os.pipe()
    if kind == "gone":
        os.close(reader)
    else:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(writer)
        if kind != "gone":
            os.close(reader)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "full", "gone", "stuck"])
def test_stderr(undisturbed, tmp_path, kind):
    folder = tmp_path / "run"
    with ear(kind) as stderr:
        process = started(folder, stderr, 2 if kind == "gone" else 1)
        assert process.wait(120) == 0
    if kind != "gone":  # on two ranks the last bits are others
        assert losses(folder) == losses(undisturbed)
    assert len(losses(folder)) == 12
    assert counts(folder)["stderr"] >= 3
    assert "finished at step 12" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_slow_reader_hears_all(tmp_path):
    reader, writer = os.pipe()
    process = started(tmp_path / "run", writer)
    os.close(writer)
    heard = b""
    while part := os.read(reader, 7):
        heard += part
        time.sleep(0.002)
    os.close(reader)
    assert process.wait(60) == 0
    assert b"step 12/12" in heard and b"finished at step 12" in heard


def mounting() -> list[str]:
    """The head of a command that may mount."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("no mount namespaces here")
    return unshare


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 60])
def test_a_full_disk_is_one_sentence(tmp_path, room):
    """Which file, and what to do: where not even run.json can be written, and where no checkpoint
    can. The same command finishes the run when there is room.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        'disk="$1"; shift; mount -t tmpfs -o size=300k none "$disk"; '
        'head -c 400000 /dev/zero > "$disk/filler" 2>/dev/null; '
        f'truncate -s -{room * 1024} "$disk/filler"; '
        '"$@"; [ $? = 1 ] && [ -z "$(find "$disk" -name "step-0*")" ] || exit 9; '
        'rm "$disk/filler"; mount -o remount,size=9m none "$disk"; "$@"'
    )
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    keys = ["--run", str(disk / "run"), "system.workers=0", "steps=4", "data.val_shards="]
    done = subprocess.run(
        [*mounting(), "sh", "-c", script, "sh", str(disk), *command, *keys],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("vtx: ")]
    assert "No space left on device" in sentence and "make room" in sentence, sentence
    assert str(disk / "run") in sentence and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_under_all_of_them(undisturbed, tmp_path):
    """A disk of 1 MiB that is full, under every file for watchers; checkpoints lie elsewhere."""
    folder, disk, elsewhere = tmp_path / "run", tmp_path / "disk", tmp_path / "elsewhere"
    for path in (folder, disk, elsewhere):
        path.mkdir()
    unshare = mounting()
    script = (
        'mount -t tmpfs -o size=1m none "$1" && mkdir "$1/tensorboard" && '
        'for f in $3; do : > "$1/$f"; ln -s "$1/$f" "$2/$f"; done; '
        'ln -s "$1/tensorboard" "$2/tensorboard"; '
        'head -c 2000000 /dev/zero > "$1/filler" 2>/dev/null; shift 3; "$@"'
    )
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    keys = ["--run", str(folder), "system.workers=0", *KEYS]
    mounted = [*unshare, "sh", "-c", script, "sh", str(disk), str(folder), " ".join(FILES)]
    done = subprocess.run(
        [*mounted, *command, *keys], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert_same_bits(folder, undisturbed)
    for name in [*FILES[1:], "tensorboard"]:
        if name != "ledger.jsonl":
            assert f"{name}: " in done.stderr and "dropped" in done.stderr, done.stderr


def test_an_ear_that_comes_back_hears_once(tmp_path, capsys):
    """The outage when it begins, its end with the count; both once, the second in the ledger."""
    places = output.Places()
    places.folder = tmp_path
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    for _ in range(5):
        places.attempt("metrics.jsonl", lambda: output.add(path, b"{}"))
    path.rmdir()
    for _ in range(3):
        places.attempt("metrics.jsonl", lambda: output.add(path, b"{}"))
    heard = capsys.readouterr().err.splitlines()
    assert len(heard) == 2 and "cannot be written" in heard[0] and "5 writes" in heard[1], heard
    assert path.read_bytes() == b"{}\n" * 3
    ledger = tmp_path / "ledger.jsonl"
    assert ledger.exists()
    entry = json.loads(ledger.read_text())
    assert (entry["place"], entry["count"]) == ("metrics.jsonl", 5)


def test_what_nobody_could_hear_is_told_later(tmp_path, capsys, monkeypatch):
    """Stderr and log.txt fail together: the first of them that works again hears of both."""
    places = output.Places()
    places.folder = tmp_path
    (tmp_path / "log.txt").mkdir()
    works = False

    def on_stderr(text):
        if not works:
            raise OSError(32, "Broken pipe", "stderr")
        sys.stderr.write(text)

    monkeypatch.setattr(output, "on_stderr", on_stderr)
    places.attempt("stderr", lambda: output.on_stderr("a\n"))
    places.attempt("log.txt", lambda: output.add(tmp_path / "log.txt", b"a"))
    assert not capsys.readouterr().err
    works = True
    places.attempt("stderr", lambda: output.on_stderr("b\n"))
    heard = capsys.readouterr().err
    assert "stderr can be written again: 1 writes" in heard and "log.txt cannot be written" in heard
    places.attempt("stderr", lambda: output.on_stderr("c\n"))
    assert "log.txt" not in capsys.readouterr().err


def test_a_pipe_that_nobody_reads(tmp_path):
    """Neither one without a reader nor one that is full holds its writer."""
    path = tmp_path / "log.txt"
    os.mkfifo(path)
    writer = SERVER.Process(target=output.append_text, args=(tmp_path, "a"))
    writer.start()
    writer.join(20)
    held = writer.exitcode is None
    writer.kill()
    assert not held and writer.exitcode == 0


def test_a_torn_line_stays_alone(tmp_path):
    """What a full disk has cut is no line; the next one does not grow out of it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"lo')
    output.append(path, b'{"step":3}')
    assert [parsed(row) for row in path.read_bytes().splitlines()] == [
        {"step": 1},
        None,
        {"step": 3},
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_lines_are_strict_json(entry):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    body = json_line(entry)
    assert b"\n" not in body
    assert json.loads(body, parse_constant=refuse).keys() == entry.keys()


@given(
    st.lists(st.integers(0, 2**40), min_size=0, max_size=6000),
    st.integers(0, 9000),
    st.integers(0, 9000),
)
def test_long_entries_go_to_several_lines(samples, text, other):
    """No sample is left out, each line is an object of at most a page, short of nothing but the
    tail of a long text.
    """
    entry = {
        "kind": "skip",
        "step": 7,
        "samples": samples,
        "reason": "x" * text,
        "who": "é" * other,
    }
    rows = entry_lines(entry)
    assert all(len(row) <= output.LINE_BYTES for row in rows)
    found = [json.loads(row) for row in rows]
    assert [s for row in found for s in row["samples"]] == samples
    assert all(row["step"] == 7 and row["kind"] == "skip" for row in found)
    if len(rows) == 1 and text + 6 * other < 3000:
        assert found == [entry]


@given(st.lists(st.sampled_from([b'{"step":%d}', b'{"st', b"nan", b"[1]", b"", b"\xff\xfe"])))
def test_what_is_no_json_is_kept_aside(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("torn")
    body = [row % i if b"%d" in row else row for i, row in enumerate(rows)]
    path = folder / "ledger.jsonl"
    path.write_bytes(b"\n".join(body))
    truncate_after(path, len(rows) // 2)
    good = [parsed(row) for row in body]
    kept = [g for g in good if g is not None and g["step"] <= len(rows) // 2]
    assert [json.loads(row) for row in path.read_bytes().splitlines()] == kept
    aside = folder / "ledger.jsonl.torn"
    torn = [row for row, g in zip(body, good, strict=True) if g is None and row]
    assert [r for r in (aside.read_bytes().split(b"\n") if aside.exists() else []) if r] == torn


def test_the_list_of_places_is_whole():
    """Nobody writes for watchers beside `vtx_scale.trainer.output`."""
    # torchrun.py: a process of its own beside an agent, whose stderr it has
    allowed = {"output.py", "torchrun.py"}
    for file in sorted((ROOT / "vtx_scale" / "trainer").glob("*.py")) + sorted(
        (ROOT / "launch").glob("*.py")
    ):
        tree = ast.parse(file.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func)
            text = ast.unparse(call)
            writes = (
                (name == "print" and "sys.stderr" in text)
                or "SummaryWriter" in name
                or (name.endswith("open") and ("'a'" in text or "'ab'" in text))
                or name in ("sys.stderr.write", "os.write")
            )
            # its own pipe, and the words in a lease
            known = file.name in ("leave.py", "run_folder.py") and name == "os.write"
            assert not writes or file.name in allowed or known, f"{file.name}: {text}"


def events(folder: Path) -> list[tuple[str, int]]:
    """(tag, step) of everything in the files, as they lie there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        (value.tag, event.step)
        for file in sorted(folder.glob("events*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


@pytest.mark.slow
def test_tensorboard_has_each_step_once(tmp_path):
    """Killed beyond its checkpoint and resumed: in the files, and in TensorBoard's own loader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    marks = tmp_path / "marks"
    marks.mkdir()
    keys = ("steps=20", "checkpoint.every=5", "evaluate.0.every=4", "system.workers=0")
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    run = [*command, "--run", str(folder), *keys]
    kill = {"VTX_KILL": "step-13:0", "VTX_KILL_ONCE": str(marks)}
    open_board = EventAccumulator(str(folder / "tensorboard"))
    assert subprocess.run(run, env=environment(kill), stderr=subprocess.DEVNULL).returncode == -9
    open_board.Reload()  # somebody looks on
    assert [s.step for s in open_board.Scalars("train/loss")] == list(range(1, 13))
    assert subprocess.run(run, env=environment(), stderr=subprocess.DEVNULL).returncode == 0
    raw = events(folder / "tensorboard")
    assert sorted(raw) == sorted(set(raw)), "an event stands twice"
    for board in (open_board, EventAccumulator(str(folder / "tensorboard"))):
        board.Reload()
        assert [s.step for s in board.Scalars("train/loss")] == list(range(1, 21))
        assert [s.step for s in board.Scalars("zero_shot/top1")] == [4, 8, 12, 16, 20]
        assert [t.step for t in board.Tensors("run/resumed/text_summary")] == [10]


def test_events_are_cut_where_they_are_torn(tmp_path):
    board = Events(tmp_path)
    for step in range(1, 9):
        board.add_scalar("a", step / 2, step)
    board.add_scalar("a", float("nan"), 9)
    (file,) = tmp_path.glob("events*")
    body = file.read_bytes()
    for cut in (len(body) - 1, len(body) - 40, len(body)):
        file.write_bytes(body[:cut])
        cut_after(tmp_path, 6)
        assert events(tmp_path) == [("a", s) for s in range(1, 7)]


@pytest.mark.slow
def test_a_slow_disk_under_tensorboard(monkeypatch, tmp_path):
    """It is waited for, event by event: nothing is lost and no queue fills."""
    write = output.write_some
    monkeypatch.setattr(output, "write_some", lambda *a: (time.sleep(0.002), write(*a))[1])
    board = Events(tmp_path)
    for step in range(200):
        board.add_scalar("a", step, step)
    assert len(events(tmp_path)) == 200
    assert threading.active_count() < 20


@pytest.mark.slow
def test_a_live_line_over_a_full_disk(tmp_path):
    """On a terminal: what is said of the outage goes through the live line, which says nothing of
    itself.
    """
    import pty

    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("log.txt", "metrics.jsonl"):
        (folder / name).symlink_to("/dev/full")
    parent, child = pty.openpty()
    process = started(folder, child)
    os.close(child)
    heard = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(parent, 65536):
            heard += part
    assert process.wait(60) == 0
    os.close(parent)
    assert heard.count(b"metrics.jsonl cannot be written") == 1
    assert b"12 writes were dropped" in heard


@pytest.mark.slow
def test_an_evaluator_that_says_no_number(tmp_path):
    """What a stranger's evaluator gives is told as it is."""
    log = Log(tmp_path, 2, device=torch.device("cpu"))
    log.scores(1, "odd", {"word": "none", "number": 0.5, "nothing": None, "nan": float("nan")})
    log.close()
    (row,) = lines(tmp_path / "evaluations.jsonl")
    assert (row["word"], row["number"], row["nothing"], row["nan"]) == ("none", 0.5, None, None)
    assert events(tmp_path / "tensorboard") == [("odd/number", 1)]
    assert "word none" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_an_unfinished_run_never_exits_0(tmp_path):
    """Nobody reads, and the run is asked to leave: 75."""
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", COLOUR, "--run"]
    keys = ["system.workers=0", "steps=4000", "system.leave_after=3"]
    with ear("gone") as stderr:
        process = subprocess.run(
            [*command, str(tmp_path / "run"), *keys], env=environment(), stderr=stderr, timeout=120
        )
    assert process.returncode == 75
