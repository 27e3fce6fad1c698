"""Nothing writes to a parameter but the optimizer, the strategy and slices: an engine keeps copies
of its own, and would lose what an objective wrote.
"""

import pytest
import torch
from torch import nn

from tests.runs import smoke
from vtx_scale.blocks.rules import initial_values
from vtx_scale.blocks.slots import with_running_statistics
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.launch.build import build_objective, train_batches
from vtx_scale.launch.datasets import training_data
from vtx_scale.launch.recipes import find, named, names
from vtx_scale.specs.run import Run
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.init import initialise


def an_objective_each() -> dict[str, str]:
    """Class of the objective -> its first recipe; a backbone more for those that take several."""
    found: dict[str, str] = {}
    small = [name for name, _ in named()]
    for name in [name for name in names() if f"{name}_smoke" in small]:
        spec = find(name, smoke=True).objective
        networks = [type(n).__name__ for n in spec.networks().values()]
        found.setdefault("/".join([type(spec).__name__, *networks]), name)
    return found


def written(objective, run: Run, steps=(0, 7)) -> list[str]:
    """The parameters that change or are written to while all that the loop calls of an objective
    runs, but for the optimizer.
    """
    before = {n: (p._version, p.detach().clone()) for n, p in objective.named_parameters()}
    batches = train_batches(run, training_data(run), 0, 1)
    for k, step in enumerate(steps):
        batch = objective.prepare(Batch(**batches[k]), step)
        objective.count(batch)
        loss, _ = objective(batch, step)
        loss.backward()
        for module in with_running_statistics(objective):
            module.update_statistics()
        objective.update_buffers(step)
        for p in objective.parameters():
            p.grad = None
    with torch.no_grad():
        objective.eval()(Batch(**batches[0]), 0)
    return [
        name
        for name, p in objective.named_parameters()
        if p._version != before[name][0] or not torch.equal(p, before[name][1])
    ]


def built(run: Run):
    objective = build_objective(run, torch.float32)
    Single(torch.device("cpu")).prepare(objective)
    initialise(objective, initial_values(objective), run.seed)
    return objective


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "recipe"), an_objective_each().items())
def test_no_objective_writes_to_a_parameter(kind, recipe):
    run = smoke(recipe=recipe)
    assert written(built(run), run) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["clamp", "data"])
def test_a_write_is_found(how):
    """In the forward pass, without gradient, whether the value changes or not."""
    run = smoke(recipe="clip_vit_b32")
    objective = built(run)

    def write(module: nn.Module, _: object) -> None:
        with torch.no_grad():
            if how == "clamp":
                module.logit_scale.clamp_(-100, 100)  # within: the value stays
            else:
                module.logit_scale.data.add_(1)  # behind the version's back

    objective.register_forward_pre_hook(write)
    assert written(objective, run) == ["logit_scale"]
