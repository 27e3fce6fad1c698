"""`vtx watch`: a run in the terminal, drawn anew as it goes on; elsewhere one block of text."""

import argparse
import math
import os
import sys
import threading
import time

from rich.console import Console, RenderableType
from rich.live import Live

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.launch.places import place_at
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.launch.summary import Summary
from vtx_scale.launch.watch_view import BARS, PLAIN_BARS, duration, view
from vtx_scale.trainer.output import why

EVERY, EVERY_OF_BUCKET = 2.0, 10.0  # seconds between two looks, where nothing is given
DRAWN = 0.5  # seconds between two drawings
SLOW = 5.0  # seconds without an answer of which something is said
PIPE = 100  # columns of a block that no terminal shows
FEWEST = 20  # rows of a terminal that has room for the log


def run(args: argparse.Namespace) -> int:
    """Show a run until it is finished or Ctrl-C; 0 in either case.

    Raises UserError where there is no such run and nothing is waited for, and OSError where a
    single look is not answered.
    """
    folder = place_at(args.folder)
    if args.every is not None and not 0.1 <= args.every < math.inf:
        raise UserError(f"--every {args.every}: give seconds, 0.1 or more.")
    live = sys.stdout.isatty() and not args.once
    console = Console(
        width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS") or PIPE),
        highlight=False,
    )
    if not live:
        return once(folder, console)
    every = args.every or (EVERY_OF_BUCKET if isinstance(folder, ObjectPath) else EVERY)
    try:
        watch(Looks(folder, every), console)
    except KeyboardInterrupt:
        pass
    return 0


def once(folder: AnyPath, console: Console) -> int:
    """One block. Raises UserError where there is no run, OSError where it cannot be read."""
    summary = RunReader(folder).look()
    known = summary.about or summary.fault or summary.records.news or summary.holder.who
    if not known:
        raise UserError(
            f"{folder} is no run folder yet (no run.json in it): give the folder of 'vtx train "
            "--run', or wait for it with 'vtx watch' in a terminal."
        )
    console.print(view(summary, console.width, letters=letters(console)))
    return 0


class Looks:
    """A thread that reads the run, so that a bucket that does not answer holds no drawing up."""

    def __init__(self, folder: AnyPath, every: float) -> None:
        self.folder, self.every, self.reader = folder, every, RunReader(folder)
        self.summary: Summary | None = None
        self.reason = ""  # why the last look failed
        self.asked = self.answered = time.monotonic()
        self.ended = threading.Event()
        self.looked = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.ended.is_set():
            self.asked = time.monotonic()
            try:
                self.summary, self.reason = self.reader.look(), ""
                self.answered = time.monotonic()
            except OSError as e:
                self.reason = why(e)
            except Exception as e:  # a page of numbers: the next look may find better ones
                self.reason = f"{type(e).__name__}: {e}"
            self.looked.set()
            self.ended.wait(self.every)

    def note(self) -> str:
        """What is to be said of the looks themselves."""
        now = time.monotonic()
        age = duration(now - self.answered)
        old = "" if self.summary is None else f"; below is what it was {age} ago"
        if self.reason:
            return f"{self.folder} cannot be read ({self.reason}): asking again{old}"
        if self.asked > self.answered and now - self.asked > SLOW:
            return f"{self.folder} has not answered for {duration(now - self.asked)}{old}"
        return ""


def watch(looks: Looks, console: Console) -> None:
    """Draw until the run is finished. Raises KeyboardInterrupt."""

    def drawn() -> RenderableType:
        lines = 6 if console.height >= FEWEST + 8 else max(0, console.height - FEWEST)
        summary = looks.summary or Summary(str(looks.folder))
        with looks.reader.lock:
            return view(summary, console.width, lines, looks.note(), letters(console))

    try:
        with Live(console=console, screen=True, auto_refresh=False) as screen:
            looks.looked.wait(DRAWN)
            while looks.summary is None or looks.summary.state != "finished":
                screen.update(drawn(), refresh=True)
                time.sleep(DRAWN)
    finally:
        looks.ended.set()
        console.print()  # behind a "^C"
        console.print(drawn())  # what was seen last stays


def letters(console: Console) -> str:
    """Those of a sparkline that the terminal has."""
    return BARS if console.encoding.lower().startswith("utf") else PLAIN_BARS
