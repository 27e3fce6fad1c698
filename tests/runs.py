"""Real runs in real processes, and what they left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests import slow
from tests.ranks import on_ranks
from vtx_scale.checkpoints.read import Tensors, newest
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.specs.run import Run

SMALL = ("system.workers=0",)
COLOUR = f"{Path(__file__).parent / 'surfaces' / 'stranger' / 'average_colour.py'}:average_colour"


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's own, without the size of the terminal that the tests may run in."""
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**own, "OMP_NUM_THREADS": "1", **(extra or {})}


def vtx(
    *arguments: object,
    env: dict[str, str] | None = None,
    timeout: float = 240,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """The command as a user would type it."""
    done = subprocess.run(
        [sys.executable, "-m", "vtx_scale.launch.cli", *map(str, arguments)],
        text=True,
        capture_output=True,
        timeout=timeout,
        env=environment(env),
        cwd=cwd,
    )
    shows = {"--help", "--dry-run", "--to"} & {*map(str, arguments)}
    trains = {*map(str, arguments[:1])} & {"train", "submit"} and not shows
    if trains and done.returncode != 2:  # not refused
        slow.must_be_marked()
    return done


def train(
    folder: Path,
    *keys: str,
    env: dict[str, str] | None = None,
    recipe: str = "clip_vit_b32",
    code: int = 0,
) -> subprocess.CompletedProcess[str]:
    """`vtx train RECIPE --smoke`: must end with `code` and never with a traceback."""
    done = vtx("train", recipe, "--smoke", "--run", folder, *SMALL, *keys, env=env)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def smoke(*keys: str, recipe: str = "clip_vit_b32", small: bool = True) -> Run:
    return resolve_data(override.override(recipes.find(recipe, smoke=small), [*SMALL, *keys]))


def train_on_ranks(
    folder: Path,
    world: int,
    strategy: str,
    *keys: str,
    recipe: str = "clip_vit_b32",
    code: int = 0,
    small: bool = True,
) -> None:
    """The same training on ranks of this test's server:
    the worker itself, without the start of a new Python.
    """
    run = smoke(f"system.strategy={strategy}", *keys, recipe=recipe, small=small)
    codes = run_on_ranks(run, folder, world)
    assert codes == [code] * world, (codes, log_of(folder))


def log_of(folder: Path) -> str:
    """What a run has kept of what it told; a run that was refused may have told nothing."""
    file = folder / "log.txt"
    return file.read_text() if file.exists() else "no log.txt"


def run_on_ranks(run: Run, folder: Path, world: int) -> list[int]:
    """The codes with which the worker ends on each rank of this test's server."""
    slow.must_be_marked()
    prepare_folder(run, folder, refuse(run, folder, world))
    return on_ranks(world, one_rank, override.to_dict(run), folder, recipes.STRANGERS)


def one_rank(recipe: dict, folder: Path, paths: list[str]) -> int:
    """The worker, which also writes down which sample stood in which slot."""
    from vtx_scale.data_pipeline.batches import InOrder
    from vtx_scale.data_pipeline.loader import Loader

    recipes.let_import(paths)
    plain = Loader.next

    def logged_next(self):
        batch = plain(self)
        if isinstance(self.batches.order, InOrder):  # an evaluation reads too
            return batch
        row = {
            "step": self.step,
            "slots": dict(zip(batch.slot.tolist(), batch.ids.tolist(), strict=True)),
        }
        with (folder / f"ids-{os.environ['RANK']}.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
        return batch

    Loader.next = logged_next
    return worker.work(override.from_dict(recipe), folder)


def ids(folder: Path) -> dict[int, dict[int, int]]:
    """step -> slot -> sample number, of all ranks together; padding left out."""
    out: dict[int, dict[int, int]] = {}
    for file in folder.glob("ids-*.jsonl"):
        for row in lines(file):
            for slot, sample in row["slots"].items():
                if sample >= 0:
                    assert int(slot) not in out.setdefault(row["step"], {}), (
                        "a slot stands on two ranks"
                    )
                    out[row["step"]][int(slot)] = sample
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    rows = lines(folder / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1)), (
        "a step is missing or stands twice"
    )
    return [r["loss"] for r in rows]


def norms(folder: Path) -> list[float]:
    return [r["grad_norm"] for r in lines(folder / "metrics.jsonl")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, optimizer moments included."""
    storage = checkpoints_of(folder)
    found = newest(storage)
    assert found is not None
    stored = Tensors(storage, found)
    return {k: stored.tensor(k) for k in stored.keys()}


def assert_same_bits(a: Path, b: Path) -> None:
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    assert any(not k.startswith(("param/", "buffer/")) for k in one), "nothing of the optimizer"
    different = [k for k in one if not torch.equal(one[k], two[k])]
    assert not different, different


def apart(many: Path, one: Path) -> dict[str, float]:
    """By kind of state (param, buffer, the optimizer's): how far a tensor at the end is from what
    it should be, as a share of its norm; the largest.
    """
    found, wanted = tensors(many), tensors(one)
    assert found.keys() == wanted.keys()
    out: dict[str, float] = {}
    for key, tensor in wanted.items():
        kind = key.partition("/")[0]
        far = ((found[key] - tensor).norm() / tensor.norm().clamp(min=1e-12)).item()
        out[kind] = max(out.get(kind, 0.0), far)
    return out
