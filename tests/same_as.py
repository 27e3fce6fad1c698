"""Whether this tree trains every recipe as another commit does, to the bit: refactorings want it.

    python tests/same_as.py COMMIT                    every recipe's smoke, 12 steps, one process
    python tests/same_as.py COMMIT --only igpt_s,deit_ti16
    python tests/same_as.py COMMIT --keep DIR         keep COMMIT's results in DIR for the next call
    python tests/same_as.py COMMIT --world 2 --strategy fsdp --precision bf16 seed=3

Both trees train on this machine, each with a cache of its own. Compared are metrics.jsonl but for
what a clock says, evaluations.jsonl, the ledger, and every tensor of the newest checkpoint, the
optimizer's too. A line a recipe: equal, or the first difference. A run that fails on either side,
or leaves no metrics or no checkpoint, is a failure and never equal. Exit codes: 0 all equal, 1 not,
2 wrong input.

This tree means its files as they are now, committed or not: they are copied first, so that one may
go on editing. What DIR keeps is only good on the machine that made it: another processor may round
otherwise.
"""

import argparse
import hashlib
import importlib
import io
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]

# Recipes without a smoke sibling are small enough to run themselves, for as many steps as a smoke.
# None may stop early for what the toy samples lack, and none needs to save every few steps.
PLAIN = ("steps=12", "data.shards=toy", "data.bad_limit=1", "checkpoint.every=0")
# What they leave open, or what toy shards (12 classes, no palette) need otherwise than CIFAR-10.
TOY_CLASSES = ("objective.net.classes=12",)
REQUIRED: dict[str, tuple[str, ...]] = {
    "cifar10_vit": TOY_CLASSES,
    "cifar10_teacher": TOY_CLASSES,
    "cifar10_deit": (*TOY_CLASSES, "objective.teacher.classes=12", "objective.teacher_from=smoke"),
    "cifar10_deit_plain": TOY_CLASSES,
    "cifar10_igpt": ("objective.palette=cube", "objective.net.colours=512"),
}

CLOCK = (
    "time",
    "seconds",
    "samples_per_second",
    "data_wait",
    "mfu",
)  # keys of rows that a clock decides
PATIENCE = 900.0  # seconds for one run
PACKAGES = ("vtx_scale", "launch", "cluster", "data_pipeline")  # of the trees; older ones have four
# Imported once a tree, before its runs are forked. What is not there is left out.
HEAVY = (
    "torch",
    "torch.distributed",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "numpy",
    "PIL.Image",
    "simplejpeg",
    "safetensors.torch",
    "tokenizers",
    "{launch}.worker",
    "vtx_scale.trainer.loop",
    "vtx_scale.strategies.apply",
)
# An editable install finds in another tree what a tree lacks: it must be gone from the processes of
# ours, and from those that they start.
NO_EDITABLE = """import sys
ours = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.meta_path[:] = ours
"""


class Wrong(Exception):
    """The caller asked for what is not there."""


# ---- the process of a tree -----------------------------------------------------------------------


def drive(job: dict[str, Any]) -> None:
    """Load a tree's `vtx` and list its recipes, or fork a child a run."""
    tree = Path(job["tree"])
    launch = "vtx_scale.launch" if (tree / "vtx_scale/launch/cli.py").exists() else "launch"
    cli = importlib.import_module(f"{launch}.cli")
    strangers(tree)
    if "runs" not in job:
        named = {name for name, _ in importlib.import_module(f"{launch}.recipes").named()}
        listed = {n: f"{n}_smoke" in named for n in sorted(named) if not n.endswith("_smoke")}
        Path(job["list"]).write_text(json.dumps(listed))
        return
    for name in HEAVY:
        try:
            importlib.import_module(name.format(launch=launch))
        except ImportError:
            pass  # a run that needs it will say so
    importlib.import_module("torch").set_num_threads(1)
    assert threading.active_count() == 1, "threads do not survive a fork"
    fork_all(cli, tree, Path(job["out"]), job["runs"], job["jobs"])


def strangers(tree: Path) -> None:
    """Raises where a module of the project came from elsewhere than the tree."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            name.partition(".")[0] in PACKAGES
            and file
            and not Path(file).resolve().is_relative_to(tree)
        ):
            raise RuntimeError(f"{name} was imported from {file}, not from the tree {tree}")


def fork_all(cli: Any, tree: Path, out: Path, runs: dict[str, list[str]], jobs: int) -> None:
    """At most `jobs` children at a time; each leaves OUT/NAME/code when it has ended."""
    left, alive = list(runs.items()), dict[int, tuple[str, float]]()
    while left or alive:
        while left and len(alive) < jobs:
            name, argv = left.pop(0)
            (out / name).mkdir(parents=True)
            pid = os.fork()
            if pid == 0:
                child(cli, tree, out / name, argv)
            alive[pid] = name, time.monotonic()
        for pid, (name, began) in list(alive.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del alive[pid]
                part = out / name / "code.part"
                part.write_text(str(os.waitstatus_to_exitcode(status)))
                part.rename(out / name / "code")
            elif time.monotonic() - began > PATIENCE:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def child(cli: Any, tree: Path, folder: Path, argv: list[str]) -> NoReturn:
    """One run, in a process of its own."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        code = cli.main([*argv, "--run", str(folder / "run")])
        strangers(tree)
    except BaseException:
        traceback.print_exc()
        code = code or 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- the two trees -------------------------------------------------------------------------------


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    if done.returncode:
        raise Wrong(done.stderr.decode().strip())
    return done.stdout


def copy_commit(commit: str, to: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as tar:
        tar.extractall(to, filter="data")


def copy_here(to: Path) -> None:
    """The files of this tree as they are now, new ones too; links stay links."""
    for word in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0"):
        path = ROOT / os.fsdecode(word)
        if word and (path.is_symlink() or path.is_file()):
            target = to / os.fsdecode(word)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)


class Side:
    """A tree, the process that runs it, and the results."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name, self.scratch = name, scratch / name
        self.tree, self.out, self.cache = (self.scratch / n for n in ("tree", "out", "cache"))
        self.neutral = self.scratch / "cwd"
        for folder in (self.tree, self.out, self.cache, self.neutral, self.scratch / "site"):
            folder.mkdir(parents=True)
        (self.scratch / "site" / "sitecustomize.py").write_text(NO_EDITABLE)
        self.process: subprocess.Popen[bytes] | None = None
        self.kept: dict[str, Path] = {}  # results that an earlier call left
        self.good: set[str] = set()  # runs that left what can be compared

    def start(self, **job: Any) -> subprocess.Popen[bytes]:
        request = self.scratch / "job.json"
        request.write_text(json.dumps({"tree": str(self.tree), "out": str(self.out), **job}))
        env = {
            k: v
            for k, v in os.environ.items()
            if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK") and not k.startswith("VTX_")
        }
        env |= {
            "PYTHONPATH": f"{self.scratch / 'site'}{os.pathsep}{self.tree}",
            "XDG_CACHE_HOME": str(self.cache),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        # -P: beside this script lie folders with the packages' names
        words = [sys.executable, "-P", __file__, "--drive", str(request)]
        with (self.scratch / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                words,
                cwd=self.neutral,
                env=env,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.process

    def recipes(self) -> dict[str, bool]:
        """Every recipe's name -> whether it has a smoke sibling."""
        listed = self.scratch / "list.json"
        if self.start(list=str(listed)).wait() or not listed.exists():
            raise Wrong(
                f"the recipes of {self.name} cannot be listed: {last_line(self.scratch / 'stderr')}"
            )
        found: dict[str, bool] = json.loads(listed.read_text())
        return found

    def result(self, name: str) -> Path:
        """The folder of a run's results, when it has ended or cannot end any more."""
        folder = self.kept.get(name) or self.out / name
        while not (folder / "code").exists():
            if self.process is None or self.process.poll() is not None:
                break
            time.sleep(0.05)
        return folder

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def last_line(path: Path) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


# ---- what a run left -----------------------------------------------------------------------------


@dataclass
class Left:
    """What a run left, made comparable. Rows are key -> JSON text: exact, NaN equals itself."""

    metrics: list[dict[str, str]]
    evaluations: list[dict[str, str]]
    ledger: Counter[str]
    step: int
    tensors: dict[str, Any]


class Failed(Exception):
    """A run that says nothing about the other tree."""


def rows(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {k: json.dumps(v, sort_keys=True) for k, v in json.loads(line).items() if k not in CLOCK}
        for line in lines
    ]


def left(side: Side, name: str) -> Left:
    """Raises Failed where a run did not end well or left too little."""
    folder = side.result(name)
    run = folder / "run"
    if not (folder / "code").exists():
        stderr = folder / "stderr" if (folder / "stderr").exists() else side.scratch / "stderr"
        raise Failed(f"did not come to an end: {last_line(stderr)}")
    if code := int((folder / "code").read_text()):
        raise Failed(f"exit {code}: {last_line(folder / 'stderr')}")
    metrics = rows(run / "metrics.jsonl")
    if not metrics or not all("loss" in row for row in metrics):
        raise Failed("exit 0, but no losses in metrics.jsonl")
    step, tensors = checkpoint(run / "checkpoints")
    if metrics[-1]["step"] != str(step):
        raise Failed(
            f"exit 0, but metrics end at {metrics[-1]['step']}, the newest checkpoint at {step}"
        )
    places = (
        json.loads((folder / "paths.json").read_text()) if name in side.kept else paths(side, name)
    )
    ledger: Counter[str] = Counter()  # ranks append in any order
    for row in rows(run / "ledger.jsonl"):
        if row.get("kind") == '"evaluation_failed"':
            raise Failed(f"exit 0, but an evaluation failed: {row.get('reason')}")
        ledger[neutral(json.dumps(row, sort_keys=True), places)] += 1
    return Left(metrics, rows(run / "evaluations.jsonl"), ledger, step, tensors)


def paths(side: Side, name: str) -> dict[str, str]:
    """What differs between the trees in any text that names a file."""
    return {"RUN": str(side.out / name), "CACHE": str(side.cache), "TREE": str(side.tree)}


def neutral(text: str, places: dict[str, str]) -> str:
    for word, path in places.items():
        text = text.replace(path, word)
    return text


def checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and whole tensors of the newest checkpoint, read without the code of either tree."""
    from safetensors import safe_open

    have = sorted(p.parent for p in folder.glob("step-????????/manifest.json"))
    if not have:
        raise Failed("exit 0, but no checkpoint")
    whole: dict[str, Any] = {}
    stored: Counter[str] = Counter()
    manifest = json.loads((have[-1] / "manifest.json").read_text())
    for table in sorted(n for n in manifest["files"] if n.startswith("table-")):
        data = have[-1] / table.replace("table-", "data-").replace(".json", ".safetensors")
        with safe_open(data, framework="pt") as file:
            for row in json.loads((have[-1] / table).read_text())["slices"]:
                put(whole, row, file.get_tensor(row["entry"]))
                stored[row["key"]] += math.prod(b - a for a, b in row["box"])
    short = [k for k, t in whole.items() if stored[k] != t.numel()]
    if short or not any(k.startswith("param/") for k in whole):
        raise Failed(f"{have[-1].name} is not whole: {short[0] if short else 'no parameters'}")
    return int(manifest["step"]), whole


def put(whole: dict[str, Any], row: dict[str, Any], part: Any) -> None:
    import torch

    key = row["key"]
    if key not in whole:
        whole[key] = torch.zeros(row["shape"], dtype=part.dtype)
    kind = whole[key].dtype, list(whole[key].shape)
    if kind != (part.dtype, row["shape"]) or str(part.dtype) != f"torch.{row['dtype']}":
        raise Failed(f"the parts of {key} do not agree on its kind")
    whole[key][tuple(slice(a, b) for a, b in row["box"])] = part


# ---- the comparison ------------------------------------------------------------------------------


def differences(here: Left, there: Left) -> Iterator[str]:
    """In the order of what says most; nothing where all is the same to the bit."""
    yield from row_differences("metrics", here.metrics, there.metrics)
    yield from row_differences("evaluations", here.evaluations, there.evaluations)
    if here.step != there.step:
        yield f"newest checkpoint: step {here.step}, was {there.step}"
    for key in sorted(
        {*here.tensors, *there.tensors}, key=lambda k: (not k.startswith("param/"), k)
    ):
        if key not in here.tensors or key not in there.tensors:
            yield f"tensor {key}: only {'here' if key in here.tensors else 'there'}"
        elif difference := tensor_difference(here.tensors[key], there.tensors[key]):
            yield f"tensor {key}: {difference}"
    for line in sorted((here.ledger - there.ledger) + (there.ledger - here.ledger)):
        yield f"ledger: {here.ledger[line]} times here, {there.ledger[line]} there: {line[:300]}"


def row_differences(
    file: str, here: list[dict[str, str]], there: list[dict[str, str]]
) -> Iterator[str]:
    for k, (a, b) in enumerate(zip_longest(here, there)):
        at = f"{file}, row {k + 1}, step {(a or b or {}).get('step')}"
        if a is None or b is None:
            yield f"{at}: only {'there' if a is None else 'here'}"
            continue
        for key in dict.fromkeys((*a, *b)):
            if a.get(key) != b.get(key):
                yield f"{at}, {key}: {a.get(key, 'absent')}, was {b.get(key, 'absent')}"


def tensor_difference(a: Any, b: Any) -> str:
    """Bits, not values: NaN equals itself, 0 is not -0."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {tuple(a.shape)}, was {b.dtype} {tuple(b.shape)}"
    one, two = (x.contiguous().reshape(-1).view(torch.uint8).reshape(x.numel(), -1) for x in (a, b))
    count = int((one != two).any(dim=1).sum())
    if not count:
        return ""
    apart = (a.to(torch.float64) - b.to(torch.float64)).abs().max().item()
    return f"{count} of {a.numel()} values differ, by up to {apart:.3g}"


def verdict(name: str, here: Side, there: Side) -> tuple[str, str]:
    """("equal", "differs" or "failed", a sentence)."""
    done: list[Left] = []
    wrong: list[str] = []
    for side in (here, there):
        try:
            done.append(left(side, name))
            side.good.add(name)
        except Exception as e:  # what cannot be read cannot be equal
            wrong.append(
                f"{side.name}: {e if isinstance(e, Failed) else f'{type(e).__name__}: {e}'}"
            )
    if wrong:
        return "failed", "; ".join(wrong)
    found = list(differences(*done))
    if found:
        return "differs", found[0] + (f" (and {len(found) - 1} more)" if found[1:] else "")
    one = done[0]
    return "equal", (
        f"{len(one.metrics)} steps, {len(one.evaluations)} evaluations, {len(one.tensors)} "
        f"tensors, {one.ledger.total()} ledger lines"
    )


# ---- the command ---------------------------------------------------------------------------------


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for every run of both trees")
    parser.add_argument("--only", metavar="NAME,...", help="these recipes alone")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="where COMMIT's results stay for the next call"
    )
    parser.add_argument("--world", type=int, default=1, help="ranks a run")
    parser.add_argument("--strategy", help="system.strategy")
    parser.add_argument("--precision", help="system.precision")
    args = parser.parse_intermixed_args(argv)
    for key in args.keys:
        if "=" not in key:
            parser.error(f"{key!r} is not key=value")
    return args


def command(name: str, smoke: bool, args: argparse.Namespace) -> list[str]:
    """The words of `vtx` that run a recipe; later keys win."""
    keys = ["system.workers=0", "system.device=cpu", f"system.world={args.world}"]
    keys += [
        f"system.{k}={getattr(args, k)}" for k in ("strategy", "precision") if getattr(args, k)
    ]
    if smoke:
        return ["train", name, "--smoke", *keys, *args.keys]
    return ["train", name, *PLAIN, *REQUIRED.get(name, ()), *keys, *args.keys]


def spread(names: list[str]) -> list[str]:
    """One of each family in turn: two that learn from one toy run should not both make it."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("_")[0], []).append(name)
    return [n for n in chain.from_iterable(zip_longest(*families.values())) if n]


def kept_folder(keep: Path, commit: str, name: str, argv: list[str]) -> Path:
    versions = [
        metadata.version(n) for n in ("torch", "numpy", "pillow", "simplejpeg", "safetensors")
    ]
    words = json.dumps([argv, versions, platform.python_version(), platform.machine()])
    return (
        keep.resolve() / commit[:12] / f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
    )


def keep_result(side: Side, name: str, to: Path) -> None:
    """Whole or not at all; runs that failed are not kept."""
    if name in side.kept or name not in side.good or to.exists():
        return
    part = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.copytree(side.out / name, part)
    (part / "paths.json").write_text(json.dumps(paths(side, name)))
    part.rename(to)


def wanted(
    here: dict[str, bool], there: dict[str, bool], only: str | None
) -> tuple[list[str], list[str], list[str]]:
    """Recipes of both trees, those that are missing here, those that are new here."""
    asked = set(only.split(",")) if only else {*here, *there}
    if unknown := sorted(asked - {*here, *there}):
        raise Wrong(f"no tree has a recipe {unknown[0]!r}")
    both = [n for n in there if n in here and n in asked]
    return (
        both,
        sorted((asked & there.keys()) - here.keys()),
        sorted((asked & here.keys()) - there.keys()),
    )


@contextmanager
def two_sides(commit: str) -> Iterator[tuple[Side, Side]]:
    with tempfile.TemporaryDirectory(prefix="vtx-same-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        here, there = Side("here", scratch), Side(commit[:12], scratch)
        try:
            copy_here(here.tree)
            copy_commit(commit, there.tree)
            yield here, there
        finally:
            here.stop()
            there.stop()


def start_both(here: Side, there: Side, commands: dict[str, list[str]], world: int) -> None:
    """All processors busy, whether one tree runs or both."""
    todo = {n: argv for n, argv in commands.items() if n not in there.kept}
    jobs = max(1, (os.cpu_count() or 1) // world)
    if todo:
        there.start(runs=todo, jobs=max(1, jobs // 2))
        jobs = max(1, jobs // 2)
    else:
        there.process = None
    here.start(runs=commands, jobs=jobs)


def compare(args: argparse.Namespace) -> int:
    began = time.monotonic()
    commit = (
        git("rev-parse", "--verify", "--end-of-options", f"{args.commit}^{{commit}}")
        .decode()
        .strip()
    )
    counts: Counter[str] = Counter()

    def say(name: str, outcome: str, sentence: str) -> None:
        counts[outcome] += 1
        print(f"{name:<26} {outcome}: {sentence}", flush=True)

    with two_sides(commit) as (here, there):
        smokes = there.recipes()  # how a recipe runs on both sides is the older tree's to say
        both, missing, new = wanted(here.recipes(), smokes, args.only)
        commands = {n: command(n, smokes[n], args) for n in spread(both)}
        kept = (
            {n: kept_folder(args.keep, commit, n, argv) for n, argv in commands.items()}
            if args.keep
            else {}
        )
        there.kept = {n: path for n, path in kept.items() if (path / "code").exists()}
        if there.kept:
            print(
                f"reused from {args.keep}: {len(there.kept)} of {len(both)} runs of {commit[:12]}"
            )
        start_both(here, there, commands, args.world)
        for name in missing:
            say(name, "missing", f"{commit[:12]} has it, this tree does not")
        for name in new:
            say(name, "new", f"{commit[:12]} does not have it: nothing to compare")
        for name in commands:
            say(name, *verdict(name, here, there))
            if name in kept:
                keep_result(there, name, kept[name])
    summary = ", ".join(
        f"{counts[k]} {k}" for k in ("equal", "differs", "failed", "missing", "new")
    )
    print(f"against {commit[:12]}: {summary}; {time.monotonic() - began:.0f} s")
    return 0 if counts["equal"] and counts["equal"] == counts.total() - counts["new"] else 1


def main(argv: list[str]) -> int:
    if argv[:1] == ["--drive"]:
        drive(json.loads(Path(argv[1]).read_text()))
        return 0
    try:
        return compare(arguments(argv))
    except Wrong as e:
        print(f"same_as: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
