"""P4: a spike moves nothing, on any rank; too many of them go back by a decision that stands in the
run folder, and whoever starts the run again comes to the same bits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import on_ranks
from tests.require import need
from tests.runs import COLOUR, assert_same_bits, lines, log_of, losses, smoke, train
from tests.skips import saved, skips
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.order import Order
from vtx_scale.launch import decided, decisions, override, recipes, worker
from vtx_scale.launch.datasets import order_of, training_data
from vtx_scale.launch.decided import Decision
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.retention import stays
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import Guard
from vtx_scale.trainer.guard import Window

BATCH = 16
GUARD = ("guard.factor=5", "guard.after=3", "guard.many=4", "guard.window=6")
# steps of 16 slots; the batches of steps 11 to 15 are spikes, and the window begins at step 10
KEYS = (*GUARD, "steps=18", "checkpoint.every=2", "checkpoint.keep=5")
FIVE = [BATCH * k for k in range(10, 15)]
BACK = {"kind": "roll_back", "step": 8, "position": 15 * BATCH}


def scaled(
    recipe: dict, folder: Path, paths: list[str], positions: list[int], kill: str, raised: bool
) -> int:
    """The worker on a rank; the last rank's loss of the batches that begin at these positions of
    the order is a thousand times as large, or, without a gradient, 1,000 a sample more. kill: a
    failpoint at which rank 0 ends by an exception.
    """
    from vtx_scale.data_pipeline.loader import Loader

    recipes.let_import(paths)
    run = override.from_dict(recipe)
    objective: Any = import_object(run.objective.build)
    plain, plain_next, at = objective.forward, Loader.next, [-1]

    def next_at(self: Any) -> Any:
        batch = plain_next(self)
        at[0] = self.end - BATCH if isinstance(self.batches.order, Order) else -1
        return batch

    def forward(self: Any, batch: Any, step: int = 0) -> Any:
        loss, seen = plain(self, batch, step)
        ranks = self.context.ranks
        bad = at[0] in positions and ranks.rank == ranks.world - 1
        if raised:
            return loss + 1e3 * bad * batch.valid.sum(), seen
        return loss * (1e3 if bad else 1.0), seen

    def ended(name: str) -> None:
        if name == kill:
            raise RuntimeError(f"ended at {name}")

    objective.forward, Loader.next, decisions.failpoint = forward, next_at, ended
    return worker.work(run, folder)


def train_scaled(
    folder: Path,
    positions: list[int],
    *keys: str,
    world: int = 1,
    strategy: str = "single",
    recipe: str = COLOUR,
    code: int = 0,
    kill: str = "",
    raised: bool = False,
) -> None:
    run = smoke(f"system.strategy={strategy}", *keys, recipe=recipe)
    prepare_folder(run, folder, refuse(run, folder, world))
    arguments = (override.to_dict(run), folder, recipes.STRANGERS, positions, kill, raised)
    codes = on_ranks(world, scaled, *arguments)
    assert codes == [code] * world, (codes, log_of(folder))


def by_hand(folder: Path, body: dict[str, Any]) -> Path:
    (folder / "decisions").mkdir(parents=True)
    (folder / "decisions" / "00000001.json").write_text(json.dumps(body))
    return folder


def told(folder: Path) -> list[dict[str, Any]]:
    return [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "decision"]


# --- verdicts, without a run


def judged(guard: Guard, rows: list[tuple[float, float]]) -> list[bool]:
    window = Window(guard)
    return [window.judge(k + 1, *row) for k, row in enumerate(rows)]


def test_a_spike_is_beyond_the_median_of_sound_steps():
    guard = Guard(factor=3.0, after=2, many=1, window=4)
    plain = [(1.0, 10.0)] * 3
    assert judged(guard, [*plain, (3.0, 30.0)]) == [False] * 4  # at the bound
    assert judged(guard, [*plain, (3.01, 1.0)])[-1] and judged(guard, [*plain, (0.0, 30.1)])[-1]
    assert judged(guard, [(1.0, 1.0), (9.0, 9.0)]) == [False, False]  # `after` two steps
    # spikes do not raise the median
    assert judged(guard, [*plain, (9.0, 9.0), (9.0, 9.0), (4.0, 9.0)])[3:] == [True] * 3
    assert judged(guard, [*plain, (1.0, 90.0), (1.0, 90.0), (1.0, 40.0)])[3:] == [True] * 3
    # a median that is not above 0 says nothing
    assert judged(guard, [(-1.0, 0.0)] * 3 + [(50.0, 50.0)]) == [False] * 4
    assert judged(Guard(), [*plain, (1e9, 1e9)]) == [False] * 4


def test_a_guard_that_is_turned_on_late_waits_for_numbers():
    """A median of one or two says nothing, however far the run is."""
    guard = Guard(factor=3.0, after=20, many=1, window=40)
    late = Window(guard)
    verdicts = [late.judge(step, 9.0 if step % 2 else 1.0, 1.0) for step in range(5000, 5010)]
    assert not any(verdicts)
    for step in range(5010, 5030):
        late.judge(step, 1.0, 1.0)
    assert late.judge(5030, 9.0, 1.0)


def test_a_window_forgets_and_goes_on_from_its_state():
    guard = Guard(factor=2.0, after=1, many=1, window=4)
    rows = [(1.0, 1.0), (9.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (9.0, 1.0), (1.0, 9.0)]
    stayed, over = Window(guard), []
    for step, row in enumerate(rows, 1):
        stayed.judge(step, *row)
        over.append(stayed.over())
        left = Window(guard)
        left.load(json.loads(json.dumps(stayed.state())))
        assert left.numbers == stayed.numbers
    assert over == [False] * 6 + [True]
    assert [n.step for n in stayed.numbers] == [4, 5, 6, 7]


def test_a_later_decision_takes_back_an_earlier_one():
    one, two, same = Decision(1, 8, 240), Decision(2, 6, 300), Decision(2, 8, 320)
    assert decided.jumps([one]) == {8: 240}
    assert decided.jumps([one, two]) == {6: 300}
    assert decided.jumps([one, same]) == {8: 320}
    assert decided.jumps([two, Decision(3, 9, 400)]) == {6: 300, 9: 400}
    known = {"step": 10, "decisions": ["00000001"]}
    assert not decided.abandoned(known, [one]) and decided.abandoned(known, [one, two])
    assert decided.abandoned({"step": 10}, [one]) and not decided.abandoned({"step": 8}, [one])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("no JSON", "is no decision"),
        ('{"kind": "roll_back", "step": 3}', "is no decision"),
        ('{"kind": "fork", "step": 3, "position": 1}', "kind 'fork'"),
        ('{"kind": "amend", "step": 3, "position": 1}', "is no decision"),
        ('{"kind": "amend", "step": 0, "key": "optim.lr", "value": "1"}', "as 1 or more"),
        ('{"kind": "amend", "step": 3, "key": "optim.lr", "value": 1}', "as they would be typed"),
        ('{"kind": "roll_back", "step": -3, "position": 1}', "0 or more"),
    ],
)
def test_a_decision_that_cannot_be_read_is_refused(tmp_path, body, words):
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "00000001.json").write_text(body)
    with pytest.raises(UserError, match=words):
        decided.read(tmp_path)


def test_a_decision_without_a_number_is_refused(tmp_path):
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "1.json").write_text("{}")
    with pytest.raises(UserError, match="decisions/1.json has no number"):
        decided.read(tmp_path)


@pytest.mark.slow
def test_rank_0s_reason_is_said_whoever_is_first(tmp_path):
    """The other rank, which cannot know it, says nothing."""
    keys = ("steps=4", "system.world=2")
    train(tmp_path / "run", *keys, "system.leave_after=2", recipe=COLOUR, code=75)
    (tmp_path / "run" / "decisions").mkdir()
    (tmp_path / "run" / "decisions" / "00000001.json").write_text("no JSON")
    for _ in range(3):
        refused = train(tmp_path / "run", *keys, recipe=COLOUR, code=2).stderr
        assert refused.count("vtx: ") == 1 and "00000001.json is no decision" in refused


@pytest.mark.parametrize("wrong", ["guard.factor=0.5", "guard.many=100", "guard.after=0"])
def test_numbers_that_make_no_guard_are_refused(wrong):
    with pytest.raises(UserError, match="guard"):
        smoke(wrong, recipe=COLOUR)


@pytest.mark.parametrize(
    ("every", "keep", "window"), [(1, 1, 7), (3, 2, 10), (10, 3, 100), (9, 1, 5)]
)
def test_a_checkpoint_from_before_the_window_is_kept(tmp_path, every, keep, window):
    """Behind every step there is one, not far before the window, and few are kept for it."""
    keys = ("guard.factor=3", f"guard.window={window}", "guard.many=2")
    chosen, there = stays(smoke(*keys, recipe=COLOUR), tmp_path), []
    for step in range(1, 8 * (window + every)):
        if step % every == 0:
            there = sorted({*chosen([*there, step]), *[*there, step][-keep:]})
        before = [s for s in there if s <= step - window]
        assert before or step - window < every
        assert not before or step - max(before) <= 2 * (window + every)
        assert len(there) <= keep + 3


def test_a_guard_counts_in_the_hash_and_its_default_does_not():
    plain, off, on = (
        override.recipe_hash(smoke(*keys, recipe=COLOUR))
        for keys in ((), ("guard.factor=0",), ("guard.factor=3",))
    )
    assert plain == off != on
    assert plain == "00f4b74b9df8f164"


# --- runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "strategy", "raised"),
    [(1, "single", False), (2, "ddp", False), (2, "ddp", True), (2, "fsdp", False)],
)
def test_a_spike_on_one_rank_is_skipped_on_all(tmp_path, world, strategy, raised):
    """Weights, moments and the follower are to the bit what they were; also where the gradient
    shows nothing.
    """
    keys = (*GUARD, "steps=6", "checkpoint.every=1", "checkpoint.keep=7")
    train_scaled(tmp_path, [4 * BATCH], *keys, world=world, strategy=strategy, raised=raised)
    before, skipped, after = (saved(tmp_path, step) for step in (4, 5, 6))
    assert [m["applied"] for _, m in (before, skipped, after)] == [4, 4, 5]
    assert {k for k in before[0] if not torch.equal(before[0][k], skipped[0][k])} == set()
    assert {k for k in before[0] if torch.equal(skipped[0][k], after[0][k])} == set()
    assert any(k.startswith("param/teacher.") for k in before[0]), "no follower was looked at"
    rows = [r for r in lines(tmp_path / "ledger.jsonl") if r["kind"] == "skip"]
    assert {(r["step"], r["reason"], r["position"]) for r in rows} == {(5, "spike", 4 * BATCH)}
    named = {r["rank"]: len(r["samples"]) for r in rows}
    assert named[world - 1] == BATCH // world, "the rank whose samples they are names them"
    assert world == 1 or named[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dino_resnet50"])
def test_a_spike_leaves_statistics_and_centre_alone(tmp_path, recipe):
    keys = (*GUARD, "steps=5", "checkpoint.every=1", "checkpoint.keep=7", f"global_batch={BATCH}")
    train_scaled(tmp_path, [4 * BATCH], *keys, recipe=recipe, world=2, strategy="ddp")
    before, skipped = (saved(tmp_path, step) for step in (4, 5))
    assert skipped[1]["applied"] == 4 and skips(tmp_path)
    assert {k for k in before[0] if not torch.equal(before[0][k], skipped[0][k])} == set()
    assert {"centre", "running_mean"} <= {
        k.rpartition(".")[2].rpartition("/")[2] for k in before[0]
    }


@pytest.mark.slow
def test_a_guard_without_a_spike_changes_no_bit(tmp_path):
    for name, keys in (("off", ()), ("on", GUARD)):
        train_scaled(tmp_path / name, [], "checkpoint.keep=5", *keys)
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert_same_bits(tmp_path / "on", tmp_path / "off")
    assert not skips(tmp_path / "on")


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    """A run that never meets the five: its decision was there before it began."""
    folder = by_hand(tmp_path_factory.mktemp("hand") / "run", BACK)
    train_scaled(folder, FIVE, *KEYS)
    return folder


def assert_as_by_hand(folder: Path, hand: Path) -> None:
    assert losses(folder) == losses(hand) and len(losses(folder)) == 18
    assert_same_bits(folder, hand)
    ends = [saved(f, 18)[1] for f in (folder, hand)]
    for name in ("applied", "samples", "data", "guard", "decisions"):
        assert ends[0][name] == ends[1][name], name
    assert ends[0]["decisions"] == ["00000001"] and ends[0]["applied"] == 18
    assert ends[0]["data"]["position"] == (15 + 10) * BATCH
    body = json.loads((folder / "decisions" / "00000001.json").read_text())
    assert {k: body[k] for k in BACK} == BACK and not skips(folder)
    assert [(r["decision"], r["to"], r["position"]) for r in told(folder)] == [("00000001", 8, 240)]
    assert [r["step"] for r in lines(folder / "evaluations.jsonl")] == [18]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy"), [(1, "single"), (2, "fsdp"), (2, "tp")])
def test_five_spikes_go_back_to_what_a_decision_by_hand_gives(tmp_path, world, strategy, hand):
    """The same bits on the same world; the decision names the spikes."""
    ways = {"world": world, "strategy": strategy}
    train_scaled(tmp_path / "run", FIVE, *KEYS, **ways)
    if world > 1:
        hand = by_hand(tmp_path / "hand", BACK)
        train_scaled(hand, FIVE, *KEYS, **ways)
    assert_as_by_hand(tmp_path / "run", hand)
    body = json.loads((tmp_path / "run" / "decisions" / "00000001.json").read_text())
    assert [n["step"] for n in body["spikes"]] == [11, 12, 13, 14, 15] and body["from"] == 15


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "library"), [("zero3", "deepspeed"), ("fairscale", "fairscale")]
)
def test_engines_go_back_too(tmp_path, strategy, library):
    """Which are built a second time in the same process."""
    need(library)
    ways = {"world": 2, "strategy": strategy}
    train_scaled(tmp_path / "run", FIVE, *KEYS, **ways)
    train_scaled(by_hand(tmp_path / "hand", BACK), FIVE, *KEYS, **ways)
    assert_as_by_hand(tmp_path / "run", tmp_path / "hand")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before-decision-15", "decision-15"])
def test_ended_within_a_roll_back_it_goes_on(tmp_path, hand, point):
    folder = tmp_path / "run"
    train_scaled(folder, FIVE, *KEYS, code=1, kill=point)
    assert (folder / "decisions" / "00000001.json").exists() == (point == "decision-15")
    train_scaled(folder, FIVE, *KEYS)
    assert_as_by_hand(folder, hand)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 13])
def test_a_resume_has_the_same_verdicts(tmp_path, hand, step):
    """Left before the spikes, and between the third of them and the fourth."""
    folder = tmp_path / "run"
    train_scaled(folder, FIVE, *KEYS, f"system.leave_after={step}", code=75)
    assert len(saved(folder, step)[1]["guard"]) == 6
    train_scaled(folder, FIVE, *KEYS)
    assert_as_by_hand(folder, hand)


@pytest.mark.slow
def test_steps_that_were_abandoned_count_in_a_queues_slot(tmp_path, hand):
    """Fifteen steps, back to 8, two more: 17 of this start."""
    folder = tmp_path / "run"
    train_scaled(folder, FIVE, *KEYS, "system.leave_after=17", code=75)
    assert len(losses(folder)) == 10
    train_scaled(folder, FIVE, *KEYS)
    assert_as_by_hand(folder, hand)


@pytest.mark.slow
def test_leaving_behind_the_last_spike_loses_no_decision(tmp_path, hand):
    folder = tmp_path / "run"
    train_scaled(folder, FIVE, *KEYS, "system.leave_after=15", code=75)
    assert decided.read(folder) == [Decision(1, 8, 240)]
    train_scaled(folder, FIVE, *KEYS)
    assert_as_by_hand(folder, hand)


@pytest.mark.slow
def test_a_checkpoint_from_before_the_decision_is_replayed(tmp_path, hand):
    """The one that it went back to is gone: an older one comes to the same bits."""
    folder = tmp_path / "run"
    train_scaled(folder, FIVE, *KEYS, code=1, kill="decision-15")
    (folder / "checkpoints" / "step-00000008" / "manifest.json").write_text("torn")
    train_scaled(folder, FIVE, *KEYS)
    assert_as_by_hand(folder, hand)


@pytest.mark.slow
def test_a_decision_that_is_missing_is_refused(tmp_path, hand):
    folder = tmp_path / "run"
    shutil.copytree(hand, folder)
    (folder / "decisions" / "00000001.json").unlink()
    ended = train(
        folder, "system.strategy=single", *KEYS, "steps=19", "--fork", recipe=COLOUR, code=2
    )
    assert "decisions/00000001.json is missing" in ended.stderr


@pytest.mark.slow
def test_a_run_that_is_no_better_is_given_up(tmp_path):
    """Everything from step 9 on is a spike: it ends with 3 and never turns in circles."""
    always = [BATCH * k for k in range(8, 400)]
    train_scaled(tmp_path, always, *KEYS, "guard.after=2", code=3)
    assert [d.step for d in decided.read(tmp_path)] == [6, 4, 2]


SPIKY = """
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
import json
import torch
import average_colour

IDS = torch.tensor(json.loads(Path(__file__).with_name("ids.json").read_text()))

@dataclass(frozen=True, kw_only=True)
class Spiky(average_colour.Colour):
    build: ClassVar[str] = "spiky:SpikyObjective"

class SpikyObjective(average_colour.ColourObjective):
    def forward(self, batch, step=0):
        loss, seen = super().forward(batch, step)
        bad = bool((torch.isin(batch.ids, IDS) & (batch.epoch == 0)).any())
        return loss * (1e3 if bad else 1.0), seen

def spiky():
    return replace(average_colour.average_colour(), objective=Spiky())

def spiky_smoke():
    return replace(average_colour.average_colour_smoke(), objective=Spiky())
"""


@pytest.mark.slow
def test_killed_within_a_roll_back_the_launcher_goes_on(tmp_path):
    """SIGKILL of rank 0 right behind the decision, under `vtx train` on two ranks; the second
    rank's half of five batches is scaled.
    """
    run = smoke(*KEYS, recipe=COLOUR)
    order = order_of(run, training_data(run).index)
    ids = [order.ids(np.arange(p + BATCH // 2, p + BATCH)).tolist() for p in FIVE]
    (tmp_path / "ids.json").write_text(json.dumps(sum(ids, [])))
    (tmp_path / "spiky.py").write_text(SPIKY)
    shutil.copy(COLOUR.partition(":")[0], tmp_path)
    recipe, keys = f"{tmp_path / 'spiky.py'}:spiky", (*KEYS, "system.world=2")
    env = {"VTX_KILL": "decision-15:0", "VTX_KILL_ONCE": str(tmp_path)}
    train(tmp_path / "run", *keys, recipe=recipe, env=env)
    assert (tmp_path / "decision-15.0").exists(), "nobody was killed"
    train(by_hand(tmp_path / "hand", BACK), *keys, recipe=recipe)
    assert_as_by_hand(tmp_path / "run", tmp_path / "hand")
