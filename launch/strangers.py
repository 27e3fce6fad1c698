"""Whether what a stranger wrote can be built: seen before anything is written.

Nothing is computed: all stands on the meta device, as `vtx_scale.objectives.base` and
`vtx_scale.specs.network` ask for it.
"""

import traceback
from pathlib import Path
from typing import Any, cast

import torch

from vtx_scale.backbones import build_network
from vtx_scale.blocks.rules import table_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.build import build_objective
from vtx_scale.specs.network import Backbone, networks_of
from vtx_scale.specs.run import Run
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import specs


def check_buildable(run: Run) -> None:
    """Raises UserError, in one sentence, where an objective or a backbone does not keep to its
    contract: its class, its parameter rules, its units, and, where a pass does without values, the
    shape of its features.
    """
    for where, spec in specs(run):
        for name, network in networks_of(spec).items():
            if hasattr(network, "least"):  # a backbone
                try:
                    check_backbone(cast(Backbone, network))
                except Exception as e:
                    raise sentence(f"{where}{name}", network, e) from e
    try:
        objective = build_objective(run, torch.float32)
        table_of(objective)
        list(objective.units())
    except Exception as e:
        raise sentence("objective", run.objective, e) from e


def check_backbone(spec: Backbone) -> None:
    """Raises what its module does, and ValueError for features of another shape."""
    with torch.device("meta"):
        network: Any = build_network(spec)
        table_of(network)
        list(network.units())
        features, image = network.features, torch.empty(2, *spec.input)
        try:
            found = tuple(features(image).shape)
        except Exception:
            return  # values are not there, nor what a kernel of its own needs: the first step tells
    if found != (2, spec.width):
        raise ValueError(
            f"features({tuple(image.shape)}) gives {found}, where the spec's width says "
            f"{(2, spec.width)}"
        )


def sentence(where: str, spec: Spec, e: Exception) -> UserError:
    """What to tell of an exception in the building of a spec's module."""
    if isinstance(e, UserError):
        return e
    ours = (str(Path(__file__).resolve().parents[1]), str(Path(torch.__file__).parent))
    theirs = [
        line
        for line in traceback.extract_tb(e.__traceback__)
        if not str(Path(line.filename).resolve()).startswith(ours)
    ]
    at = f" ({theirs[-1].filename} line {theirs[-1].lineno})" if theirs else ""
    kind = "" if isinstance(e, LookupError | ValueError) else f"{type(e).__name__}: "
    message = e.args[0] if e.args else e
    return UserError(f"{where}: {spec.title()} cannot be built: {kind}{message}{at}.")
