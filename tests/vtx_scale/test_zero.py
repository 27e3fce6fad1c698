"""ZeRO by DeepSpeed: the run of one process under every stage, with what each could get wrong."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import gathered, on_ranks
from tests.require import need
from tests.runs import (
    COLOUR,
    assert_same_bits,
    log_of,
    losses,
    smoke,
    train,
    train_on_ranks,
)
from tests.same_run import assert_same_run, runs_alone
from tests.skips import skips, train_poisoned
from tests.vtx_scale.gaps import train_with_gaps
from tests.vtx_scale.sums import FACTORS, Sums, after_a_step, assert_covers
from vtx_scale.launch import override, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.run import Run, System
from vtx_scale.strategies.apply import strategy_of

pytestmark = [pytest.mark.services, pytest.mark.slow]

CELLS = [("zero1", 3), ("zero2", 2), ("zero3", 3)]
FEW = ("steps=4",)  # networks with ReLUs, in float32
OBJECTIVES = {
    "clip_vit_b32": ("steps=8",),
    "dino_vit_s16": ("steps=8",),
    "resnet50_imagenet": FEW,
    "dalle_12b": FEW,
}
MICRO = {("clip_vit_b32", "zero1"), ("clip_vit_b32", "zero3"), ("dino_vit_s16", "zero2")}
MICRO |= {("dino_vit_s16", "zero3"), ("dalle_12b", "zero1"), ("dalle_12b", "zero2")}


@pytest.fixture(scope="module", autouse=True)
def package():
    need("deepspeed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return runs_alone(tmp_path_factory)


@pytest.mark.parametrize(("strategy", "world"), CELLS)
@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_the_run_of_one_process(alone, tmp_path, recipe, strategy, world):
    """Half of the cells in two micro-batches; DINO's with a frozen layer, a clip each, a
    teacher.
    """
    keys = OBJECTIVES[recipe]
    micro = ("system.micro_batch=3",) if (recipe, strategy) in MICRO else ()
    train_on_ranks(tmp_path / "run", world, strategy, *keys, *micro, recipe=recipe)
    assert_same_run(tmp_path / "run", alone(recipe, *keys))


def test_dino_has_what_it_is_here_for():
    run = smoke(recipe="dino_vit_s16")
    assert run.optim.clip_each and run.objective.frozen > 0


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_limits_bite(alone, tmp_path, strategy):
    """What is clamped is the master, and the forward pass reads what came of it."""
    keys = ("steps=8", "objective.scale=20", "objective.scale_limit=14")
    train_on_ranks(tmp_path / "run", 2, strategy, *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
@pytest.mark.parametrize("kind", ["sgd", "lookahead"])
def test_other_optimizers(alone, tmp_path, kind, strategy):
    keys = ("steps=8", f"optim.kind={kind}", "optim.lookahead=3")
    train_on_ranks(tmp_path / "run", 2, strategy, *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_adafactor_is_refused(tmp_path, strategy):
    keys = ("system.world=2", f"system.strategy={strategy}")
    refused = train(tmp_path / "run", *keys, recipe="vit_g14_jft3b", code=2)
    assert "optim.kind=adafactor adds up rows and columns" in refused.stderr


def test_what_is_computed_twice_is_refused_under_zero3(tmp_path):
    """In CLIP's micro-batches, which are computed again anyway."""
    keys = ("system.world=2", "system.strategy=zero3", "system.micro_batch=2")
    refused = train(tmp_path / "run", *keys, "system.recompute=full", code=2)
    assert "leave it out, or choose fsdp" in refused.stderr


@pytest.mark.parametrize(
    ("strategy", "offload"), [("zero1", "optimizer"), ("zero2", "optimizer"), ("zero3", "all")]
)
def test_what_is_offloaded(alone, tmp_path, strategy, offload):
    """In two micro-batches, whose sums are kept in the host's memory."""
    keys = (f"system.offload={offload}", "system.micro_batch=4")
    train_on_ranks(tmp_path / "run", 2, strategy, "steps=8", *keys, recipe="dino_vit_s16")
    assert_same_run(tmp_path / "run", alone("dino_vit_s16", "steps=8"))


@pytest.mark.parametrize("offload", ["none", "optimizer"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_parameter_without_a_gradient(tmp_path, strategy, offload):
    """In a whole step, or in its last micro-batch: the gradient is what the others gave, never
    what a step before has left.
    """
    train_with_gaps(tmp_path / "one", 1, "single")
    train_with_gaps(tmp_path / "run", 2, strategy, f"system.offload={offload}")
    assert_same_run(tmp_path / "run", tmp_path / "one", apart=1e-6)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_step_that_is_skipped(tmp_path, strategy):
    """Twice in a row, in the second of two micro-batches too: nothing of it stays."""
    keys = ("steps=6", "system.micro_batch=4")
    train_poisoned(tmp_path / "one", 1, "single", [2, 3], *keys)
    train_poisoned(tmp_path / "run", 2, strategy, [2, 3], *keys)
    assert sorted(set(skips(tmp_path / "run"))) == [2, 3]
    both = [[x for x in losses(tmp_path / run) if x is not None] for run in ("run", "one")]
    assert len(both[0]) == 4 and both[0] == pytest.approx(both[1], rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "world"),
    [
        pytest.param("zero1", 3, marks=pytest.mark.full),
        ("zero2", 3),
        ("zero3", 3),
    ],
)
def test_a_run_that_left_goes_on_bit_for_bit(tmp_path, strategy, world):
    keys = ("steps=8", "system.micro_batch=3")
    train_on_ranks(tmp_path / "one", world, strategy, *keys, recipe="dino_vit_s16")
    for leave in (("system.leave_after=3",), ()):
        code = 75 if leave else 0
        train_on_ranks(
            tmp_path / "run", world, strategy, *keys, *leave, recipe="dino_vit_s16", code=code
        )
    assert_same_bits(tmp_path / "run", tmp_path / "one")
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


@pytest.mark.full
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    "recipe", ["siglip_vit_b16", "igpt_s", "virtex_r50", "deit_s16_distilled", "vit_b16_masked"]
)
def test_other_objectives(alone, tmp_path, recipe, strategy, recompute):
    keys = (*FEW, "optim.kind=adamw") if recipe == "siglip_vit_b16" else FEW  # for its Adafactor
    again = f"system.recompute={recompute}"
    train_on_ranks(tmp_path / "run", 3, strategy, *keys, again, recipe=recipe)
    assert_same_run(tmp_path / "run", alone(recipe, *keys))


def names_of_stages_1_and_2(stage: str) -> dict:
    """On a rank: what DeepSpeed's names hold after the last backward pass, and once cleared."""
    strategy, found = after_a_step(stage)
    zero, objective = strategy.zero, strategy.objective
    named = list(objective.named_parameters())
    found["steps"] = strategy.engine.global_steps
    found["held"] = {n for n, p in named if p.requires_grad and p._hp_mapping is not None}
    inside = {id(p) for p in zero.params_in_partition[0]}
    found["inside"] = {n for n, p in named if id(p) in inside}
    found["sizes"] = [g.numel() for g in zero.averaged_gradients[0]]
    found["interval"] = zero.single_partition_of_fp32_groups[0].numel()
    strategy.clear()
    found["cleared"] = [zero.averaged_gradients[0], strategy.leaves()[0].grad, zero.micro_step_id]
    return found


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_private_names_of_stages_1_and_2(stage):
    """Gradients are there before any step of DeepSpeed's, of what lies in a rank's interval."""
    found = on_ranks(3, names_of_stages_1_and_2, stage)
    assert_covers(found)
    for one in found:
        holds = {n for n, (boxes, *_) in one["leaves"].items() if boxes and n in FACTORS}
        assert one["held"] == one["inside"] == holds
        assert sum(one["sizes"]) == one["interval"] and one["steps"] == 0
        assert one["cleared"] == [None, None, -1]
    assert sum(one["interval"] for one in found) > 23, "nothing is padded"


def names_of_stage_3() -> dict:
    """The same of stage 3."""
    strategy, found = after_a_step("zero3")
    zero = strategy.zero
    found["steps"] = strategy.engine.global_steps
    found["empty"] = all(p.numel() == 0 for p in strategy.objective.parameters())
    found["positions"] = sorted(zero.grad_position.values())
    found["masters"] = [flat.numel() for flat in zero.fp32_partitioned_groups_flat]
    found["sizes"] = [g.numel() for g in zero.averaged_gradients[0]]
    strategy.clear()
    found["cleared"] = zero.grad_partitions_flat_buffer.abs().max().item()
    return found


def test_private_names_of_stage_3():
    """Three parameters of 7, 15 and 1 on three ranks: 3, 5 and 1 each, the last ones padded."""
    found = on_ranks(3, names_of_stage_3)
    assert_covers(found)
    for one in found:
        assert one["empty"] and one["steps"] == 0 and one["cleared"] == 0
        assert one["positions"] == [[0, 0, 3], [0, 3, 5], [0, 8, 1]]
        assert one["masters"] == [9] and one["sizes"] == [3, 5, 1]
    assert [bool(one["leaves"]["c"][0]) for one in found] == [True, False, False]


def memory(kind: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the peak was forgotten."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith(kind))


def peak_of_conversion() -> float:
    """On a rank: MiB at most while an objective of 16 parameters of 16 MiB comes from the meta
    device, up to where DeepSpeed makes its masters.
    """
    world = gathered().get_world_size()
    system = System(strategy="zero3")
    strategy: Any = strategy_of(system, world, torch.device("cpu"), None)
    objective = Sums({f"p{k}": (2048, 2048) for k in range(16)})
    strategy.parts = list
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    strategy.prepare(objective)
    return memory("VmHWM") - before


def test_no_rank_ever_holds_all_of_it():
    """A third of 256 MiB stays; what is cut at the moment comes to it, twice."""
    for peak in on_ranks(3, peak_of_conversion):
        assert 256 / 3 < peak < 256 / 3 + 3 * 16 + 32


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_private_names_under_offload(stage):
    assert_covers(on_ranks(3, offloaded_leaves, stage))


def offloaded_leaves(stage: str) -> dict:
    return after_a_step(stage, "optimizer")[1]


def test_one_process_is_a_world_too(alone, tmp_path):
    train_on_ranks(tmp_path / "run", 1, "zero3", recipe=COLOUR)
    assert_same_run(tmp_path / "run", alone(COLOUR))


def live_bytes() -> int:
    """The memory of all tensors of this process, each storage once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    storages = {x.untyped_storage() for x in tensors if x.device.type != "meta"}
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def restarts(recipe: dict, folder: Path) -> list[int]:
    """`live_bytes` after each of four attempts of one process, which go on from one another."""
    plain, found = worker.attempt, []

    def attempt(run: Run, *rest: Any) -> int | None:
        assert plain(replace(run, steps=2 * len(found) + 2), *rest) == 0
        found.append(live_bytes())
        return None if len(found) < 4 else 0

    worker.attempt = attempt
    assert worker.work(override.from_dict(recipe), folder) == 0, log_of(folder)
    return found


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [("zero1", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")],
)
def test_no_engine_outlives_its_attempt(tmp_path, strategy, offload):
    """A run that goes back begins anew in its process."""
    run = smoke(f"system.strategy={strategy}", f"system.offload={offload}", "steps=8")
    prepare_folder(run, tmp_path, refuse(run, tmp_path, 2))
    for found in on_ranks(2, restarts, override.to_dict(run), tmp_path):
        assert max(found) - found[0] < 1 << 12, found
