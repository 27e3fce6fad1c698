"""Whether what a stranger wrote can be built: seen before anything is written.

Nothing is computed: all stands on the meta device, as `vtx_scale.objectives.base` and
`vtx_scale.specs.network` ask for it.
"""

import re
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtx_scale.backbones import build_network
from vtx_scale.blocks.rules import Rule, table_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.build import build_objective, reader_of
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.contract import check_logged, place_of
from vtx_scale.planner.activations import blank_batch
from vtx_scale.specs.network import Backbone, networks_of
from vtx_scale.specs.run import Run
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import specs


def check_buildable(run: Run) -> None:
    """Raises UserError, in one sentence, where an objective or a backbone does not keep to its
    contract: its class, its parameter rules, its units, its reader's blank sample, and, where a
    pass does without values, the shape of its features, its loss and what it logs.
    """
    for where, spec in specs(run):
        for name, network in networks_of(spec).items():
            if hasattr(network, "least"):  # a backbone
                try:
                    check_backbone(cast(Backbone, network))
                except Exception as e:
                    raise sentence(f"{where}{name}", network, e) from e
    try:
        with torch.random.fork_rng(devices=[]):
            check_objective(run)
    except Exception as e:
        raise sentence("objective", run.objective, e) from e


def check_objective(run: Run) -> None:
    """Raises what its module does, and ValueError where it does not keep to the contract."""
    # torch warns of every copy that does nothing
    with warnings.catch_warnings(), Copies() as copies:  # type: ignore[no-untyped-call]
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
        objective = build_objective(run, torch.float32)
    if not hasattr(objective, "context"):
        raise ValueError(NO_INIT)
    rules = getattr(objective, "parameter_rules", None)
    if not isinstance(rules, tuple | list) or not all(isinstance(rule, Rule) for rule in rules):
        raise ValueError(
            "parameter_rules must be a tuple of Rule(pattern, initial), which says where each "
            "parameter starts"
        )
    named = [*objective.named_parameters(), *objective.named_buffers()]
    held = [name for name, tensor in named if not tensor.is_meta]
    if copies.place is not None or held:
        what = f"{held[0]} has" if held else "its __init__ loads"
        raise ValueError(f"{what} values{copies.place or ''}, which would be lost: {FROM}")
    for name, p in objective.named_parameters():
        if p.ndim == 0:
            raise ValueError(f"{name} has no dimension: give it shape (1,), FSDP shards no scalars")
    table_of(objective)
    list(objective.units())
    if not run.objective.coded_by:  # its shards may hold codes alone
        check_forward(objective, blank_of(run))


FROM = "values come from parameter_rules or init.from"
NO_INIT = "its __init__ must begin with super().__init__(spec, context)"
# what torch says where a module was not begun
UNBEGUN = re.compile(
    r"before Module.__init__\(\) call|no attribute '_(modules|parameters|buffers)'"
)
# what it says of shapes that do not fit, whatever the device
UNFIT = re.compile(
    r"same reduction dim|shapes cannot be multiplied|broadcast a dimension|must match the size"
    r"|is invalid for input of size|channel dimensions|to match target batch_size"
)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the first copy of values into a tensor that has none: weights that are loaded while a
    module is built on the meta device. place: of the line, ` (FILE line N)`; None: there was none.
    """

    place: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.ops.aten.copy_.default and self.place is None:
            to, source = args[:2]
            if to.is_meta and not source.is_meta and source.numel() > 1:
                self.place = place_of(traceback.extract_stack())
        return func(*args, **(kwargs or {}))


def blank_of(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    """The blank sample of a run's reader. Raises ValueError where it has none, or no arrays."""
    reader = reader_of(run, True)
    name = type(reader).__name__
    if not callable(reader) or not callable(getattr(reader, "blank", None)):
        lacks = "blank(self)" if callable(reader) else "__call__(self, members, draw)"
        raise ValueError(
            f"its reader {name} has no {lacks}: blank() gives arrays of the shapes and types of a "
            "sample, and a call the arrays of one"
        )
    row: Any = reader.blank()
    if not isinstance(row, Mapping):
        raise ValueError(f"blank() of its reader gives a {type(row).__name__}, not arrays by name")
    for key, value in row.items():
        if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
            raise ValueError(
                f'blank() of its reader gives "{key}" as a {type(value).__name__}: give a numpy '
                "array of its shape and type"
            )
    return dict(row)


def check_forward(objective: Objective, row: dict[str, np.ndarray[Any, Any]]) -> None:
    """Two slots through the forward pass, as far as it goes without values: the first step, which
    has them, tells the rest. Raises UserError, and RuntimeError or ValueError for shapes that do
    not fit each other.
    """
    batch = blank_batch(row, 2)
    try:
        objective(objective.prepare(batch, 0), 0)
        moved: dict[str, Tensor] = objective.update_buffers(0)
        check_logged(f"{objective.spec.title()}.update_buffers", moved)
    except UserError:
        raise
    except Exception as e:
        if UNFIT.search(str(e)) and place_of(traceback.extract_tb(e.__traceback__)):
            raise


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
    if isinstance(e, AttributeError) and UNBEGUN.search(str(e)):
        e = ValueError(NO_INIT).with_traceback(e.__traceback__)
    at = place_of(traceback.extract_tb(e.__traceback__))
    kind = (
        ""
        if isinstance(e, LookupError | ValueError | NotImplementedError)
        else f"{type(e).__name__}: "
    )
    message = e.args[0] if e.args else e
    return UserError(f"{where}: {spec.title()} cannot be built: {kind}{message}{at}.")
