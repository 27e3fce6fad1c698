"""`vtx submit`: the same worker under Ray, which starts it again when a process or a machine dies.

This process holds the run folder and speaks to the user; what the workers say comes through
the folder's log.txt.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from vtx_scale.cluster.job import Died, Ended, Event, GaveUp, Job
from vtx_scale.cluster.ray_settings import settings
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import override, recipes, run_folder
from vtx_scale.launch.local import newest
from vtx_scale.launch.places import place_at
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.worker import work
from vtx_scale.specs.run import Run
from vtx_scale.trainer.control import LOOK_EVERY
from vtx_scale.trainer.output import Ledger, say, send_rest
from vtx_scale.trainer.segments import segments


def submit(run: Run, folder: AnyPath, address: str, failures: int, debug: bool = False) -> int:
    """Train until the end, or until SIGTERM or Ctrl-C asks to save and leave (75);
    a second Ctrl-C leaves at once.
    """
    if failures < 0:
        raise UserError(f"--failures={failures}: give 0 or more.")
    folder = folder.resolve()
    run = resolve_data(run, say, folder)
    data = refuse(run, folder, run.system.world or 1)
    lease = run_folder.acquire_lease(folder)
    try:
        with requests() as asked:
            run = prepare_folder(run, folder, data)
            if asked:
                return 75
            return on_ray(run, folder, address, failures, debug, asked, lease.epoch)
    finally:
        send_rest()
        lease.close()


def on_ray(
    run: Run,
    folder: AnyPath,
    address: str,
    failures: int,
    debug: bool,
    asked: list[int],
    epoch: int,
) -> int:
    payload = {
        "recipe": override.to_dict(run),
        "folder": str(folder),
        "paths": recipes.STRANGERS,
        "cwd": os.getcwd(),
        "debug": debug,
        "epoch": epoch,
    }
    try:
        with settings(address) as home:
            say("starting Ray on this machine" if home else f"joining the Ray cluster at {address}")
            from vtx_scale.cluster import ray_train  # Ray reads its settings when it is imported

            job = Job(
                ray_worker,
                payload,
                run.system.world,
                run.system.device != "cpu",
                failures,
                partial(newest, folder),
            )
            with ray_train.connected(
                address, home, run.system.world or os.cpu_count() or 1, worker_environment(run)
            ):
                listen(asked)  # Ray has put a handler of its own in our place
                return watch(ray_train.run(job, home), folder, failures, debug, asked)
    except GaveUp as e:
        Ledger(folder).write(kind="gave_up", reason=str(e), step=newest(folder))
        say(f"vtx: {e}")
        return 1


def watch(
    events: Iterator[Event | None], folder: AnyPath, failures: int, debug: bool, asked: list[int]
) -> int:
    """Tell the user what happens, pass the wish to leave on, return the exit code of the run."""
    news, announced, last, code = News(folder / "log.txt", debug), False, "", 1
    for event in events:
        news.show()
        if asked and last in ("", "asked", "failed"):
            say("asked to leave: no worker runs, and what there was to save has been saved")
            return 75
        if asked and last == "started" and not announced:
            announced = True
            say("asked to leave: the workers save and end")
            run_folder.write_whole(folder / "control" / "stop", "asked to leave\n")
        if event is None:
            continue
        if event.kind == "asked":
            say(
                "no room for the workers yet: asking again"
                if last == "asked"
                else "starting the workers"
            )
        elif event.kind == "failed":
            Ledger(folder).write(kind="restart", reason=event.why, step=event.saved)
            say(
                f"{event.why}: starting again from "
                f"{f'step {event.saved}' if event.saved else 'the beginning'} (restart "
                f"{event.failures} of {failures})"
            )
        elif event.kind == "ended":
            if event.why:
                say(event.why)
            code = next((c for c in event.codes.values() if c), 0)
        last = event.kind
    return code


@contextmanager
def requests() -> Iterator[list[int]]:
    """The signals that asked to leave."""
    asked: list[int] = []
    before = listen(asked)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(asked: list[int]) -> dict[int, Any]:
    """Keep signals in `asked`; returns the handlers that were there."""

    def ask(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    return {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}


class News:
    """The new lines of log.txt, for the terminal."""

    def __init__(self, path: AnyPath, debug: bool) -> None:
        self.path, self.debug = path, debug
        self.offset = len(path.read_bytes()) if path.is_file() else 0
        self.seen = {part.name for part in segments(path)}
        self.next = 0.0  # look at segments, of which there are none in a local folder

    def show(self) -> None:
        self.show_lines(self.rest())
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + LOOK_EVERY
        for part in segments(self.path):
            if part.name not in self.seen:
                self.seen.add(part.name)
                self.show_lines(part.read_bytes())

    def rest(self) -> bytes:
        """The lines that are new in the file."""
        if not isinstance(self.path, Path) or not self.path.exists():
            return b""
        with self.path.open("rb") as f:
            f.seek(self.offset)
            whole, newline, _ = f.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        return whole

    def show_lines(self, whole: bytes) -> None:
        for line in whole.decode(errors="replace").splitlines():
            date, _, rest = line.partition(" ")
            clock, _, text = rest.partition(" ")
            if len(date) == 10 and len(clock) == 8 and date[:4].isdigit():
                say(text)
            elif self.debug:  # a traceback
                say(line)


def worker_environment(run: Run) -> dict[str, str]:
    """What the workers' environment needs and a cluster's nodes do not have."""
    ours = {
        k: v
        for k, v in os.environ.items()
        if k.startswith("VTX_") and k not in ("VTX_PARENT", "VTX_MEET")
    }
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(run.system.threads)), **ours}


def ray_worker(payload: dict[str, Any]) -> Ended:
    """One rank, in a thread of a Ray actor that was made for it."""
    recipes.let_import(payload["paths"])
    if os.path.isdir(payload["cwd"]):  # a path in the recipe means what it meant to the user
        os.chdir(payload["cwd"])
    lines: list[str] = []
    try:
        run = override.from_dict(payload["recipe"])
    except UserError as e:  # this node lacks what the driver has
        return Ended(2, f"vtx: {e}")
    folder, epoch = place_at(payload["folder"]), payload["epoch"]
    code = work(run, folder, debug=payload["debug"], message=lines.append, epoch=epoch)
    text = lines[-1] if lines else ""
    if code not in (0, 2, 3, 4, 75):
        raise Died(text.removeprefix("vtx: "))
    return Ended(code, text)
