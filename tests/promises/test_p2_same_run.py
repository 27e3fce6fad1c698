"""P2, the same run: on any world, under any strategy, interrupted or not."""

import pytest

from tests.runs import (
    COLOUR,
    apart,
    assert_same_bits,
    ids,
    lines,
    losses,
    norms,
    tensors,
    train,
    train_on_ranks,
)
from tests.survivors import assert_none_survives
from vtx_scale.checkpoints.read import newest
from vtx_scale.launch.paths import checkpoints_of

pytestmark = pytest.mark.slow

STEPS = 12
# see vtx_scale.distributed.failpoint
KINDS = (
    *("backward-{}", "step-{}", "staging-{}"),
    *("before-table-{}", "before-manifest-{}", "after-manifest-{}"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(world, strategy, recipe, more keys) -> the folder of a run that nothing happened to."""
    folders = {}

    def get(world, strategy, recipe="clip_vit_b32", *keys):
        key = (world, strategy, recipe, *keys)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(f"{strategy}-{world}") / "run"
            train_on_ranks(folders[key], world, strategy, *keys, recipe=recipe)
        return folders[key]

    return get


@pytest.mark.parametrize(
    ("world", "strategy"),
    [(1, "ddp"), (2, "ddp"), (3, "ddp"), (1, "fsdp"), (2, "fsdp"), (3, "fsdp"), (4, "hsdp")],
)
def test_losses_and_samples_are_those_of_one_process(undisturbed, world, strategy):
    """Norms and Adam's moments too: its weights alone would hide a factor of the gradients."""
    one, many = undisturbed(1, "single"), undisturbed(world, strategy)
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    assert norms(many) == pytest.approx(norms(one), rel=2e-5)
    far = apart(many, one)
    assert far["exp_avg"] < 3e-5 and far["exp_avg_sq"] < 3e-5, far
    # a weight whose gradient is rounding moves by a step's size whatever its sign
    assert far["param"] < 2e-2, far
    assert len(losses(one)) == STEPS
    assert ids(many) == ids(one)
    assert len(ids(one)) == STEPS


@pytest.mark.parametrize(
    ("world", "strategy", "keys"),
    [
        (2, "ddp", ("system.micro_batch=3",)),
        (3, "ddp", ()),
        (3, "fsdp", ("system.micro_batch=2",)),
        (4, "hsdp", ()),
    ],
)
def test_weights_under_sgd_are_those_of_one_process(undisturbed, world, strategy, keys):
    """Where a factor of the gradients is one of every step; accumulated over micro-batches too."""
    plain = ("optim.kind=sgd", "optim.lr=0.001", "optim.clip=none")
    one = undisturbed(1, "single", COLOUR, *plain)
    many = undisturbed(world, strategy, COLOUR, *plain, *keys)
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    assert norms(many) == pytest.approx(norms(one), rel=1e-5)
    far = apart(many, one)
    assert far.keys() == {"param", "momentum_buffer"} and max(far.values()) < 1e-5, far


def test_the_whole_horizon_of_the_promise(tmp_path):
    """24 steps: as far as equality across worlds and strategies is promised."""
    for name, world in (("single", 1), ("ddp", 2), ("fsdp", 3)):
        train_on_ranks(tmp_path / name, world, name, "steps=24")
    one = losses(tmp_path / "single")
    assert len(one) == 24
    assert losses(tmp_path / "ddp") == pytest.approx(one, rel=1e-5)
    assert losses(tmp_path / "fsdp") == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("recipe", ["clip_vit_b32", COLOUR])
def test_three_worlds_and_strategies_in_one_run(undisturbed, tmp_path, recipe):
    """ddp on 1 rank, then fsdp on 2, then ddp on 3, each from the other's checkpoint;
    a follower included.
    """
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "ddp", "system.leave_after=4", recipe=recipe, code=75)
    train_on_ranks(folder, 2, "fsdp", "system.leave_after=4", recipe=recipe, code=75)
    train_on_ranks(folder, 3, "ddp", recipe=recipe)
    one = undisturbed(1, "single", recipe)
    assert losses(folder) == pytest.approx(losses(one), rel=1e-5)
    assert ids(folder) == ids(one)
    if recipe == COLOUR:
        end = tensors(folder)
        assert (
            end["param/teacher.last.weight"] - end["param/student.last.weight"]
        ).abs().max() > 1e-3


def test_twice_the_same_run_is_equal_to_the_bit(undisturbed, tmp_path):
    train_on_ranks(tmp_path / "again", 3, "fsdp")
    assert_same_bits(tmp_path / "again", undisturbed(3, "fsdp"))
    assert losses(tmp_path / "again") == losses(undisturbed(3, "fsdp"))


def killed_run(folder, points, world, strategy):
    """`vtx train` in which SIGKILL strikes at each point once;
    what it saved before each is read again.
    """
    marks = folder.parent / "marks"
    marks.mkdir()
    done = train(
        folder,
        f"system.world={world}",
        f"system.strategy={strategy}",
        "checkpoint.every=1",
        "checkpoint.keep=2",
        env={"VTX_KILL": ",".join(points), "VTX_KILL_ONCE": str(marks)},
    )
    assert len(list(marks.iterdir())) == len(points), "a kill did not happen"
    assert done.stderr.count("starting again") >= 1
    log = (folder / "log.txt").read_text()
    assert "starting again from" in log
    assert log.count("trained parameters") == 1, "estimated anew in a round behind a fault"
    assert_none_survives(folder)
    assert newest(checkpoints_of(folder))["epoch"] == 1, "one start of the launcher, one lease"


@pytest.mark.parametrize(
    ("strategy", "world", "points"),
    [
        ("fsdp", 2, ["backward-4:1", "before-manifest-6:0", "step-9:0"]),
        ("ddp", 3, ["after-manifest-3:0", "staging-8:2", "before-table-11:1"]),
    ],
)
def test_three_kills_leave_no_trace(undisturbed, tmp_path, strategy, world, points):
    killed_run(tmp_path / "run", points, world, strategy)
    assert losses(tmp_path / "run") == losses(undisturbed(world, strategy))
    assert_same_bits(tmp_path / "run", undisturbed(world, strategy))


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_step(undisturbed, tmp_path, strategy, world, kind):
    """Twelve kills in one run, and the rank that is struck changes; in a save too."""
    first_rank_only = kind.startswith(("before-manifest", "after-manifest"))
    points = [
        f"{kind.format(n)}:{0 if first_rank_only else n % world}" for n in range(1, STEPS + 1)
    ]
    killed_run(tmp_path / "run", points, world, strategy)
    assert losses(tmp_path / "run") == losses(undisturbed(world, strategy))
    assert_same_bits(tmp_path / "run", undisturbed(world, strategy))


def test_no_line_is_lost_or_doubled_by_a_kill(tmp_path, undisturbed):
    """Metrics written after the last save are cut when the run resumes from it,
    and written again.
    """
    folder, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    train(
        folder,
        "system.world=2",
        "checkpoint.every=5",
        env={"VTX_KILL": "step-8:0", "VTX_KILL_ONCE": str(marks)},
    )
    rows = lines(folder / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert [r["samples"] for r in rows] == [16 * s for s in range(1, STEPS + 1)]
    assert [r["step"] for r in lines(folder / "evaluations.jsonl")] == [STEPS]
