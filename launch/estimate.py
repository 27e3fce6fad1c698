"""Where a run computes, and how much memory it takes there by the planner: the line that a rank
says when torch is there.
"""

from dataclasses import replace

import torch

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.plan import planner_of
from vtx_scale.launch.room import GIB, memory_of
from vtx_scale.planner.layout import KINDS, layout_of
from vtx_scale.planner.memory import memory
from vtx_scale.specs.run import PrecisionName, Run
from vtx_scale.trainer.precision import precision_of


def precision_name(run: Run, device: torch.device) -> PrecisionName:
    """The precision by name, where "auto" is left open."""
    precision = precision_of(run.system, device)
    names: dict[torch.dtype, PrecisionName] = {
        torch.float64: "fp64",
        torch.float32: "fp32",
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
    }
    return names[precision.compute or precision.weights]


def system_line(run: Run, device: torch.device, world: int) -> str:
    """Device, ranks, strategy, precision, trained parameters, and the memory of a rank."""
    strategy = run.system.strategy_at(world, device.type == "cuda")
    name = precision_name(run, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    head = f"{ranks} on {where}, {strategy}, {name}"
    if strategy not in KINDS:
        return head
    try:
        with torch.random.fork_rng(devices=[]):
            return f"{head}: {needs(run, strategy, name, world)} of {size(memory_of(device))}"
    except UserError as e:
        return f"{head}; its memory is not estimated: {e}"
    except Exception as e:  # a stranger's objective may not run on the meta device
        return f"{head}; its memory cannot be estimated ({type(e).__name__})"


def needs(run: Run, strategy: str, precision: PrecisionName, world: int) -> str:
    """Trained parameters, and the estimated GiB of a rank's tensors. Raises what the trace does."""
    run = replace(run, system=replace(run.system, precision=precision))
    planner, layout = planner_of(run, world, "h100"), layout_of(run.system, strategy, world)
    share = -(-run.global_batch // layout.data)
    micro = min(run.system.micro_batch or share, share)
    seen = planner.pass_of(layout, share, micro, run.system.recompute)
    micros = -(-share // micro) if run.objective.separable else 1
    found = memory(planner.parameters, layout, run.optim, planner.numbers, seen, micros)
    trained = sum(p.numel for p in planner.trained)
    return f"{trained:,} trained parameters, about {size(found.gpu)} a rank"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"
