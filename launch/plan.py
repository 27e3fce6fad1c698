"""What `vtx plan` prints: the cheapest strategy that fits in full, the others in a line each."""

import argparse
import dataclasses
from typing import Any

import torch

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch import override
from vtx_scale.launch.build import build_objective, reader_of
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.datasets import resolve_epochs
from vtx_scale.launch.resolve import resolve_shards
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.hardware import SOURCES, Assumed, gpu_of
from vtx_scale.planner.layout import STRATEGIES
from vtx_scale.planner.plan import GIB, Answer, Plan, Planner
from vtx_scale.specs.run import Run


def run(args: argparse.Namespace) -> int:
    """0 where a strategy fits, else 1."""
    recipe = recipe_of(args)
    given = {
        f.name: value
        for f in dataclasses.fields(Assumed)
        if (value := getattr(args, f"assume_{f.name}")) is not None
    }
    planner = planner_of(recipe, args.gpus, args.gpu, Assumed(**given))
    answer = planner.all(tuple(args.strategy or STRATEGIES))
    if args.json:
        print_json(as_json(answer, given))
    else:
        show(answer, given)
    return 0 if answer.cheapest else 1


def recipe_of(args: argparse.Namespace) -> Run:
    """The run that is planned: what may lie in the host's memory is a question to each strategy,
    not to the one that the recipe names. Raises UserError.
    """
    name = "system.offload"
    late = [key for key in args.keys if key.partition("=")[0] == name]
    early = [key for key in args.keys if key not in late]
    recipe = run_of(argparse.Namespace(**{**vars(args), "keys": early}))
    for key in late:
        recipe = override.set_key(recipe, name.split("."), key.partition("=")[2], name)
    if recipe.system.world not in (None, args.gpus):
        raise UserError(
            f"system.world={recipe.system.world}: --gpus {args.gpus} says how many; leave it out."
        )
    return recipe if recipe.epochs is None else resolve_epochs(resolve_shards(recipe))


def planner_of(recipe: Run, gpus: int, gpu: str, assumed: Assumed | None = None) -> Planner:
    """The planner of a recipe. Raises UserError where its objective cannot be built."""

    def build(ranks: Ranks, micro: int | None) -> Objective:
        system = dataclasses.replace(recipe.system, micro_batch=micro)
        weights = torch.float64 if system.precision == "fp64" else torch.float32
        return build_objective(dataclasses.replace(recipe, system=system), weights, ranks)

    return Planner(recipe, gpus, gpu_of(gpu), build, reader_of(recipe, True).blank(), assumed)


def as_json(answer: Answer, given: dict[str, float]) -> dict[str, Any]:
    planner = answer.planner
    best = answer.cheapest
    return {
        "gpus": planner.gpus,
        "gpu": planner.gpu.name,
        "parameters": sum(p.numel for p in planner.trained),
        "operations_per_sample": planner.operations,
        "assumed": assumptions(answer, given),
        "cheapest": str(best.layout) if best else None,
        "plans": [answer.row(plan) for plan in answer.plans],
        "refused": answer.refused,
        "notes": answer.notes(),
    }


def assumptions(answer: Answer, given: dict[str, float]) -> dict[str, dict[str, object]]:
    """Every number that no data sheet says, and where it comes from."""
    values = dataclasses.asdict(answer.planner.assumed)
    return {
        name: {"value": value, "source": "given" if name in given else SOURCES[name]}
        for name, value in values.items()
    }


def show(answer: Answer, given: dict[str, float]) -> None:
    """Tables for people."""
    planner = answer.planner
    parameters = sum(p.numel for p in planner.trained)
    print(
        f"{parameters:,} trained parameters, a batch of {planner.run.global_batch:,}, "
        f"{planner.run.steps:,} steps, {planner.gpus:,} x {planner.gpu.name}"
    )
    print_table(
        [line(answer, plan) for plan in answer.plans]
        + [
            {**dict.fromkeys(COLUMNS, ""), "strategy": name, "": why}
            for name, why in answer.refused.items()
        ]
    )
    best = answer.cheapest
    if best is not None:
        print(f"\n{best.layout}: {keys(best)}")
        print_table(detail(answer, best))
    for note in answer.notes():
        print(f"\n{note}")
    print("\nassumed:")
    print_table(
        [
            {"what": name, "value": f"{a['value']:g}", "from": str(a["source"])}
            for name, a in assumptions(answer, given).items()
        ]
    )


COLUMNS = ("strategy", "GiB", "micro", "step s", "waits s", "days", "GPU-hours", "")


def keys(plan: Plan) -> str:
    """What to give to `vtx train`."""
    given = {
        **plan.layout.given,
        "micro_batch": plan.micro if plan.micro < plan.share else None,
        "recompute": plan.recompute,
    }
    return " ".join(f"system.{k}={v}" for k, v in given.items() if v is not None)


def line(answer: Answer, plan: Plan) -> dict[str, str]:
    row = answer.row(plan)
    micro = f"{plan.micro}{'' if plan.recompute == 'none' else ' ' + plan.recompute}"
    timed = (
        f"{plan.step.total:.2f}",
        f"{plan.step.waits + plan.step.offload:.2f}",
        f"{row['days']:,.1f}",
        f"{row['gpu_hours']:,.0f}",
    )
    cells = (str(plan.layout), f"{plan.memory.gpu / GIB:,.1f}", micro, *timed, row["why"])
    return dict(zip(COLUMNS, cells, strict=True))


def detail(answer: Answer, plan: Plan) -> list[dict[str, str]]:
    """What the cheapest one is made of."""
    row = answer.row(plan)
    cells = {
        f"memory: {k}": f"{n / GIB:,.2f} GiB"
        for k, n in plan.memory.kinds.items()
        if abs(n) >= 0.005 * GIB
    }
    cells["memory: all"] = f"{plan.memory.gpu / GIB:,.2f} of {plan.capacity / GIB:,.1f} GiB"
    if plan.memory.host:
        cells["memory: host"] = f"{plan.memory.host / GIB:,.2f} GiB a GPU"
    for m in plan.traffic:
        key = f"{m.collective} of {m.what}, {m.ways:,} ranks"
        cells[key] = f"{m.sent / GIB:,.2f} GiB a step in {m.calls:,} calls" + (
            ", hidden" if m.hidden else ""
        )
    step = plan.step
    cells |= {
        "step: arithmetic": f"{step.arithmetic:.3f} s",
        "step: messages beside it": f"{step.hidden:.3f} s",
        "step: messages waited for": f"{step.exposed:.3f} s",
        "step: optimizer": f"{step.optimizer:.3f} s",
        "step: all": f"{step.total:.3f} s",
        "data": f"{row['samples_per_second']:,.0f} samples/s, "
        f"{row['bytes_per_second'] / 1e9:,.2f} GB/s",
        "checkpoint": f"{row['checkpoint']['bytes'] / GIB:,.1f} GiB every "
        f"{plan.faults.every / 60:,.1f} min, stall {plan.faults.stall:.2f} s, "
        f"written in {plan.faults.write:,.0f} s",
        "goodput": f"{row['goodput']:.3f}, a fault every {plan.faults.between / 3600:,.1f} h",
        "days": f"{row['days']:,.1f}",
        "GPU-hours": f"{row['gpu_hours']:,.0f}",
    }
    return [{"what": k, "value": v} for k, v in cells.items()]
