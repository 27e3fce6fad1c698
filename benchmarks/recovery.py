"""Seconds to the first step, and from the death of a rank to the next step, by phase.

    python benchmarks/recovery.py [--rounds 5] [--recipe clip_vit_b32]
                                  [--out benchmarks/results/recovery.json]

Smoke size, on the CPU. Every round measures, in another order each time: `python -c 'import
torch'`; the first step of one rank; the first step of two, and the next step after SIGKILL of one
of them, with a warm server (`system.spare=auto`) and without (0). Shown are medians. What counts
for the start is its ratio to the import of torch in the same round: a machine that others use
slows both. Memory is that of all processes of the run while it trains: PSS counts a page that n
of them share as one n-th in each.

Phases, each when the last rank is there: `seen` (the launcher has the dead rank's exit code),
`ended` (the others have ended), `begun` (a rank's main function), `met` (process group), `built`
(model, optimizer, data), `loaded` (checkpoint), `step` (in metrics.jsonl). They are stamped by
functions that this program wraps around ours when they are imported.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("seen", "ended", "begun", "met", "built", "loaded", "step")
# module -> (function, phase, whether at its beginning)
STAMPED = {
    "vtx_scale.launch.local": (("ended", "seen", False), ("once", "ended", False)),
    "vtx_scale.launch.worker": (
        ("main", "begun", True),
        ("init_process_group", "met", False),
        ("assemble", "built", False),
        ("restore_or_initialise", "loaded", False),
    ),
}
# found by every Python of the run when it starts; modules that run as the program itself are
# wrapped as well, for they are imported under their own name by the server alone
HOOK = """
import importlib.abc, importlib.util, os, sys, time

STAMPED = {stamped!r}

def stamped(function, phase, first):
    def call(*args, **keys):
        if first:
            stamp(phase)
        try:
            return function(*args, **keys)
        finally:
            if not first:
                stamp(phase)
    return call

def stamp(phase):
    line = f"{{phase}} {{time.time()}} {{os.environ.get('RANK', '-')}}\\n"
    fd = os.open(os.environ["STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in STAMPED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            for function, phase, first in STAMPED[name]:
                setattr(module, function, stamped(getattr(module, function), phase, first))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
# a rank that is a new Python: `-m vtx_scale.launch.worker` would not be imported by its name
COLD = """
if "vtx_scale.launch.worker" in sys.orig_argv:
    import vtx_scale.launch.worker as worker
    at = sys.orig_argv.index("vtx_scale.launch.worker")
    os._exit(worker.main(sys.orig_argv[at + 1 :]))
"""


class Job:
    """`vtx train` in a folder of its own."""

    def __init__(self, recipe: str, at: Path, *keys: str) -> None:
        self.folder, self.stamps = at / "run", at / "stamps"
        (at / "hook").mkdir(parents=True)
        (at / "hook" / "sitecustomize.py").write_text(HOOK.format(stamped=STAMPED) + COLD)
        path = os.pathsep.join([str(at / "hook"), os.environ.get("PYTHONPATH", "")])
        self.began = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vtx_scale.launch.cli", "train", recipe, "--smoke"]
            + ["--run", str(self.folder), "data.val_shards=", *keys],
            env={**os.environ, "PYTHONPATH": path, "STAMPS": str(self.stamps)},
            stdout=subprocess.DEVNULL,
            stderr=(at / "stderr").open("wb"),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl, but for a line that is not finished."""
        file = self.folder / "metrics.jsonl"
        body = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in body.splitlines(True) if line.endswith("}\n")]

    def wait(self, until: Callable[[], Any]) -> Any:
        """What `until` gives once it gives something. Raises RuntimeError where the run has ended
        without.
        """
        while not (found := until()):
            if self.process.poll() is not None and not until():
                raise RuntimeError((self.folder.parent / "stderr").read_text())
            time.sleep(0.01)
        return found

    def first_step(self) -> float:
        """Seconds from the command on."""
        return float(self.wait(self.rows)[0]["time"]) - self.began

    def ranks(self) -> list[int]:
        """Their process ids: the processes that have a group of their own, but for the server."""
        found = family(self.process.pid)
        own = [pid for pid in found[1:] if os.getpgid(pid) == pid]
        server = [pid for pid in own if any(parent(other) == pid for other in own)]
        return [pid for pid in own if pid not in server]

    def recovery(self) -> dict[str, float]:
        """Seconds from SIGKILL of the last rank to each phase."""
        self.wait(lambda: len(self.rows()) > 30)
        victim = self.ranks()[-1]
        before = len(self.stamps.read_text().splitlines())
        struck = time.time()
        os.kill(victim, signal.SIGKILL)

        def again() -> float | None:
            lines = [line.split() for line in self.stamps.read_text().splitlines()[before:]]
            loaded = [float(when) for phase, when, _ in lines if phase == "loaded"]
            later = [r["time"] for r in self.rows() if loaded and r["time"] > max(loaded)]
            return min(later, default=None)

        step = self.wait(again)
        found = {"step": float(step) - struck}
        for line in self.stamps.read_text().splitlines()[before:]:
            phase, when, _ = line.split()
            found[phase] = max(found.get(phase, 0.0), float(when) - struck)
        return found

    def memory(self) -> dict[str, float]:
        """MiB of all processes together, and how many there are."""
        total = {"Pss": 0.0, "Rss": 0.0}
        processes = family(self.process.pid)
        for pid in processes:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name = line.split(":")[0]
                if name in total:
                    total[name] += int(line.split()[1]) / 1024
        return {**total, "processes": float(len(processes))}

    def end(self) -> None:
        """At once; its processes end with it."""
        self.process.kill()
        self.process.wait()


def parent(pid: int) -> int:
    """Of a process that lives; 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def family(pid: int) -> list[int]:
    """A process and all that it and its children have started, in the order of their numbers."""
    everyone = {int(p.name): 0 for p in Path("/proc").iterdir() if p.name.isdigit()}
    parents = {one: parent(one) for one in everyone}
    found = [pid]
    for one in found:
        found += sorted(child for child, above in parents.items() if above == one)
    return found


def import_torch() -> float:
    began = time.time()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.time() - began


def round_of(recipe: str, at: Path, shift: int) -> dict[str, Any]:
    """One of everything."""
    # so many steps that none ends before it was struck
    endless = ("steps=1000000", "checkpoint.every=20", "checkpoint.keep=2")
    kinds = {
        "one": ("system.world=1",),
        "two, warm": ("system.world=2", "system.spare=auto"),
        "two, cold": ("system.world=2", "system.spare=0"),
    }
    found: dict[str, Any] = {"import": import_torch()}
    names = list(kinds)
    for name in names[shift % 3 :] + names[: shift % 3]:
        job = Job(recipe, at / name.replace(", ", "-"), *endless, *kinds[name])
        try:
            found[name] = {"first step": job.first_step()}
            if "two" in name:
                time.sleep(1)  # a second batch has been read by every loader process
                found[name]["memory"] = job.memory()
                found[name]["phases"] = job.recovery()
        finally:
            job.end()
    found["import"] = (found["import"] + import_torch()) / 2
    found["load"] = os.getloadavg()[0]
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds; ratios within a round."""

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(value(r) for r in rounds)

    out: dict[str, Any] = {"import": median(lambda r: r["import"])}
    for name in ("one", "two, warm", "two, cold"):
        out[name] = {
            "first_step": median(lambda r, n=name: r[n]["first step"]),
            "of_import": median(lambda r, n=name: r[n]["first step"] / r["import"]),
        }
        if "two" in name:
            for kind in ("phases", "memory"):
                keys = rounds[0][name][kind]
                out[name][kind] = {
                    k: median(lambda r, n=name, i=kind, k=k: r[n][i][k]) for k in keys
                }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="clip_vit_b32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = []
    for k in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="vtx-recovery-") as at:
            rounds.append(round_of(args.recipe, Path(at), k))
    found = summary(rounds)
    print(f"import torch {found['import']:.2f} s; load {[round(r['load'], 1) for r in rounds]}")
    for name in ("one", "two, warm", "two, cold"):
        row = found[name]
        print(f"{name:10} first step {row['first_step']:6.2f} s, {row['of_import']:.2f} imports")
    print(f"{'after SIGKILL':10}", *(f"{phase:>8}" for phase in PHASES))
    for name in ("two, warm", "two, cold"):
        print(f"{name:13}", *(f"{found[name]['phases'][phase]:8.2f}" for phase in PHASES))
    for name in ("two, warm", "two, cold"):
        size = found[name]["memory"]
        print(
            f"{name:13} {size['processes']:.0f} processes, PSS {size['Pss']:.0f} MiB, "
            f"RSS {size['Rss']:.0f} MiB"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**found, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
