"""A run's ranks on one machine of a cluster."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtx_scale.launch import inputs, override, recipes, run_folder
from vtx_scale.launch.datasets import resolve_epochs
from vtx_scale.launch.hangs import Beat
from vtx_scale.launch.node import WORDS, Node, Round, keeps_warm
from vtx_scale.launch.outside import held
from vtx_scale.launch.places import place_at
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.warm import Warm


class NodeRanks:
    """A `Node`, for which this machine has resolved the recipe, so that toy data and copies lie
    here; and the words with which its ranks ended. As `vtx_scale.cluster.job.Ranks`.
    """

    def __init__(
        self, body: dict[str, Any], folder: Path, environment: dict[str, str], warm: Warm | None
    ) -> None:
        """body: of the request. folder: of this machine, where the request and the words lie."""
        self.body, self.request, self.said = body, folder / "request.json", folder / "words"
        self.said.mkdir()
        write_private(self.request, json.dumps(body))
        self.node = Node(self.request, {**environment, WORDS: str(self.said)}, warm)

    def begin(self, round: Round, epoch: int) -> None:
        """Start this machine's ranks of a round, which write under an epoch of the lease."""
        self.node.end()
        for path in self.said.iterdir():
            path.unlink()
        write_private(self.request, json.dumps({**self.body, "epoch": epoch}))
        self.node.begin(round)

    def codes(self) -> dict[int, int | None]:
        """Rank -> its exit code, None while it lives."""
        return self.node.codes()

    def words(self) -> dict[int, str]:
        """Rank -> the sentence with which it ended, of those that gave one."""
        found = {int(path.name): path.read_text() for path in self.said.iterdir()}
        return {rank: text for rank, text in found.items() if text}

    def beats(self) -> list[Beat]:
        """Where the ranks that live stand."""
        return self.node.beats()

    def stacks(self) -> dict[int, str]:
        """Rank -> what its threads are doing, of those that live; takes some seconds."""
        return self.node.stacks()

    def kept(self) -> int:
        """The newest step of which this machine has a snapshot in memory, 0 for none."""
        return self.node.kept()

    def ask(self) -> None:
        """Ask the ranks that live to save and leave."""
        self.node.ask()

    def end(self) -> None:
        """End the ranks at once."""
        self.node.end()

    def close(self) -> None:
        """End the ranks, and whatever else was kept for the next round."""
        self.node.close()


def start(payload: dict[str, Any], folder: Path) -> NodeRanks:
    """The ranks of a run on this machine; see `vtx_scale.cluster.job.Job`.

    payload: recipe as its user wrote it, folder of the run, paths of a stranger's recipe, debug,
    environment of the ranks. Raises UserError where this machine lacks what the run needs.
    """
    environment = {**payload["environment"], "PYTHONPATH": import_path()}
    # it imports while the data is looked at
    warm = Warm(environment) if keeps_warm(payload["recipe"]["system"]["spare"]) else None
    recipes.let_import(payload["paths"])
    place = place_at(payload["folder"])
    run = inputs.here(override.from_dict(payload["recipe"]), place)
    resolved = replace(resolve_epochs(resolve_data(run, folder=place)), system=run.system)
    body = {
        "recipe": override.to_dict(held(resolved, place, run_folder.outside_of(place))),
        "folder": payload["folder"],
        "debug": payload["debug"],
        "paths": payload["paths"],
    }
    return NodeRanks(body, folder, environment, warm)


def import_path() -> str:
    """What the ranks need on their path to import what this process imports."""
    home = Path(__file__).absolute().parents[2]  # launch is a link in the package
    given = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    installed = home.name in ("site-packages", "dist-packages") or str(home) not in sys.path
    return ":".join(given if installed or str(home) in given else [str(home), *given])


def write_private(path: Path, text: str) -> None:
    """A file that its owner alone can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
        f.write(text)
