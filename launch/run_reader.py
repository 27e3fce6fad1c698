"""A run folder, read as it grows: what `vtx watch` and `vtx report` show. It never writes there.

Of files that grow only what is new is read; a bucket is asked for a list of each, and for what it
did not have before.
"""

import json
import threading
import time
from collections import Counter
from typing import Any

from vtx_scale.checkpoints import lease
from vtx_scale.checkpoints.format import Damaged, read_manifest, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.columns import Columns
from vtx_scale.launch.paths import checkpoints_of, lease_of
from vtx_scale.launch.summary import (
    Holder,
    Records,
    Summary,
    add_evaluations,
    add_ledger,
    add_log,
    add_metrics,
    resumes,
)
from vtx_scale.launch.tail import Tail
from vtx_scale.trainer.goodput import Goodput, tally
from vtx_scale.trainer.lines import parsed

FILES = ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl", "log.txt", "events.jsonl")


class RunReader:
    """A run, as `look` finds it."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder
        self.tails = {name: Tail(folder / name) for name in FILES}
        self.columns, self.records = Columns(), Records()
        self.events: list[dict[str, Any]] = []
        self.goodput: Goodput | None = None
        self.resumes: list[tuple[int, int]] = []
        self.bad = 0
        self.lock = threading.Lock()  # what a summary holds changes under it
        self.manifest: dict[str, Any] = {}
        self.began = time.monotonic()
        self.grown: float | None = None  # when steps were last seen to come
        self.beat: tuple[int, dict[str, Any]] | None = None
        self.changed: float | None = None  # when the beat was last seen to change

    def look(self) -> Summary:
        """What there is now. Raises OSError where it cannot be read; nothing has changed then."""
        about, fault = run_json(self.folder)
        cut = self.tails["metrics.jsonl"].read()
        for name, tail in self.tails.items():
            if name != "metrics.jsonl":  # a resume cuts two others with it
                tail.read(again=cut and name in ("ledger.jsonl", "evaluations.jsonl"))
        saved = steps(checkpoints_of(self.folder))
        manifest = self._manifest(saved)
        holder = self._holder()
        with self.lock:
            self._add_lines()
            self.manifest = manifest
            wanted = about.get("recipe", {}).get("steps")
            return Summary(
                folder=str(self.folder),
                about=about,
                fault=fault,
                steps=wanted if type(wanted) is int else None,
                columns=self.columns,
                records=self.records,
                checkpoints=saved,
                manifest=manifest,
                holder=holder,
                goodput=self.goodput,
                resumes=self.resumes,
                grown=None if self.grown is None else time.monotonic() - self.grown,
                ttl=lease.TTL,
            )

    def _add_lines(self) -> None:
        """What was read, to what there is."""
        records = self.records
        cut, lines = self.tails["metrics.jsonl"].take()
        if cut:
            self.columns, self.bad = Columns(), 0
        if lines and len(self.columns):
            self.grown = time.monotonic()
        self.bad += add_metrics(self.columns, lines)
        records.damaged["metrics.jsonl"] = self.bad
        void, lines = self.tails["ledger.jsonl"].take()
        if void:
            records.masked, records.skipped, records.entries = Counter(), {}, []
            records.retries = records.others = records.damaged["ledger.jsonl"] = 0
        add_ledger(records, lines)
        void, lines = self.tails["evaluations.jsonl"].take()
        if void:
            records.evaluations, records.damaged["evaluations.jsonl"] = {}, 0
        add_evaluations(records, lines)
        void, lines = self.tails["log.txt"].take()
        if void:
            records.starts, records.news, records.reached, records.ended = [], [], None, ""
        add_log(records, lines)
        void, lines = self.tails["events.jsonl"].take()
        if void:
            self.events = []
        self.events += [row for line in lines if (row := parsed(line)) is not None]
        if void or lines:
            self.goodput = tally(self.events) if self.events else None
            self.resumes = resumes(self.events)

    def _manifest(self, saved: list[int]) -> dict[str, Any]:
        """Of the newest checkpoint, once."""
        newest = max(saved, default=0)
        if not saved or newest == self.manifest.get("step"):
            return self.manifest
        try:
            return read_manifest(checkpoints_of(self.folder), newest)
        except (Damaged, UserError):
            return {}

    def _holder(self) -> Holder:
        """Whether its beat changes is seen by this machine's own clock alone."""
        storage, now = lease_of(self.folder), time.monotonic()
        epoch = lease.newest(storage)
        body = lease.holder(storage, epoch) if epoch else {}
        if body and (epoch, body) != self.beat:
            self.changed = now if self.beat is not None else None
            self.beat = (epoch, body)
        return Holder(
            who=str(body.get("who", "")),
            epoch=epoch,
            released=body.get("state") != "held",
            quiet=None if self.changed is None else now - self.changed,
            watched=now - self.began,
        )


def run_json(folder: AnyPath) -> tuple[dict[str, Any], str]:
    """run.json, {} where there is none, and what is wrong with it. Raises OSError where it cannot
    be read.
    """
    try:
        body = json.loads((folder / "run.json").read_bytes())
    except FileNotFoundError:
        return {}, ""
    except ValueError:
        return {}, "run.json is not JSON"
    if isinstance(body, dict) and isinstance(body.get("recipe"), dict):
        return body, ""
    return {}, "run.json is not what a training wrote"
