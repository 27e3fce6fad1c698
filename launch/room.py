"""Whether what a run keeps from step to step can lie in the memory that is there: an impossible one
is refused with the planner's numbers before anything is allocated.
"""

import os
from pathlib import Path

import torch

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.layout import KINDS, layout_of
from vtx_scale.planner.memory import Numbers, fullest, states
from vtx_scale.planner.shapes import parameters_of
from vtx_scale.specs.run import Run
from vtx_scale.trainer.precision import Precision

GIB = 2**30
LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_room(
    run: Run, objective: Objective, world: int, device: torch.device, precision: Precision
) -> None:
    """Raises UserError where parameters, gradients and the optimizer's state alone are larger than
    the memory. objective: on the meta device.
    """
    strategy = run.system.strategy_at(world, device.type == "cuda")
    if strategy not in KINDS:
        return
    layout = layout_of(run.system, strategy, world)
    parameters = parameters_of(objective)
    numbers = Numbers.of(precision.weights, precision.compute)
    try:
        index = fullest(parameters, layout, run.optim, numbers)
        kinds = states(parameters, layout, run.optim, numbers, index)
    except LookupError:
        return  # an optimizer that the planner does not know
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if device.type == "cpu" else 1
    need, room = here * sum(kinds.values()), memory_of(device)
    if layout.offload != "none" or need <= room:
        return
    largest = sorted((name for name in kinds if kinds[name]), key=lambda name: -kinds[name])[:3]
    of_what = ", ".join(f"{name} {kinds[name] / GIB:,.1f}" for name in largest)
    each = "" if here == 1 else f" for {here} ranks"
    raise UserError(
        f"{layout} on {world} {'rank' if world == 1 else 'ranks'} needs {need / GIB:,.1f} "
        f"GiB{each} before any activation ({of_what} a rank), and there are {room / GIB:,.1f} "
        "GiB: 'vtx plan RECIPE --gpus N' says what fits, such as system.strategy=fsdp on more "
        "ranks."
    )


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine as far as this process may use it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(there, int(LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return there
