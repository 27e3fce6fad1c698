"""Export and import for any objective: its spec, or its network's, names the tables that do it."""

import importlib
import math
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vtx_scale.blocks.rules import rule_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import FILES, PixelForm, read_weights, spec_json, write_folder
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.pixels import STATISTICS
from vtx_scale.specs.foreign import compare as foreign
from vtx_scale.specs.network import Backbone, Network, networks_of
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.spec import Spec


def export(
    objective: Objective,
    to: str,
    out: Path,
    centre: float = 1.0,
    bicubic: bool = True,
    head: bool = True,
) -> list[Path]:
    """Write what an objective has learned where `to`, another library or "safetensors",
    opens it; the files.

    An objective whose spec names an `interop` goes as a whole. Any other says by `spec.exported()`
    which network leaves. centre: the share of the short side that an evaluation looks at; bicubic:
    how it resizes. head: with the classifier, where the network has one. Raises UserError where
    there is no such export.
    """
    spec: ObjectiveSpec = objective.spec
    prefix, network, state = leaving(objective)
    if not head:
        if not getattr(network, "classes", 0):
            raise UserError(f"{network.title()} has no classifier that could be left out.")
        network = cast(Backbone, network).headless()
        rules = objective.parameter_rules
        state = {k: v for k, v in state.items() if rule_of(rules, prefix + k).group != "head"}
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(network)})
    if not network.interop:
        raise UserError(f"{network.title()} has no export to {to}: export to safetensors instead.")
    pixels = PixelForm(*STATISTICS[spec.pixels or "unit"], centre, bicubic)
    files: list[Path] = tables(network.interop).export_network(network, state, to, out, pixels)
    return files


def leaving(objective: Objective) -> tuple[str, Network | ObjectiveSpec, dict[str, Tensor]]:
    """(prefix of its names, spec, state by its own names) of what leaves."""
    spec: ObjectiveSpec = objective.spec
    state = {k: v.detach() for k, v in objective.state_dict().items()}
    if spec.interop:
        return "", spec, state
    try:
        prefix, network = spec.exported()
    except LookupError as e:
        raise UserError(f"{spec.title()} cannot be exported: {e}.") from None
    return (
        prefix,
        network,
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
    )


class Tables(Protocol):
    """The module of a spec's name tables, as `vtx_scale.interop` describes it."""

    def export_network(
        self, spec: Spec, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
    ) -> list[Path]:
        """Write the state as the library `to` has it; the files."""

    def import_network(self, path: Path, spec: Spec) -> dict[str, Tensor]:
        """The weights in a file or folder, by the names of the spec's module."""


def tables(interop: str) -> Tables:
    """The module of a spec's name tables. Raises UserError where it cannot be imported."""
    try:
        return cast(Tables, importlib.import_module(interop))
    except ImportError as e:
        raise UserError(
            f"{interop!r} cannot be imported ({e}): put its folder on PYTHONPATH."
        ) from e


def import_weights(
    path: Path, spec: ObjectiveSpec, label: str = "", kept: bool = True
) -> dict[str, Tensor]:
    """Weights of exported or foreign files under the names of the objective that `spec` configures.

    A network's weights stand at every part of the objective that is this network, a student's and
    its teacher's; without a known network the names are the files'. label: what refusals begin
    with, the path where none is given. kept: whether the classifier comes along. Raises UserError
    where there are no such weights, or where the config beside them says that they compute
    otherwise.
    """
    label = label or str(path)
    if spec.interop:
        foreign.refuse(path, spec, label)
        ours: dict[str, Tensor] = tables(spec.interop).import_network(path, spec)
        return ours
    network = spec.networks().get("net")
    if network is None or not network.interop:
        # names of its own, which are compared where they are taken
        return read_weights(path, FILES)
    state = import_network(path, network, label, "objective.net.", kept)
    return {f"{place}{k}": v for place in spec.places for k, v in state.items()}


def import_network(
    path: Path, network: Network, label: str = "", at: str = "", kept: bool = True
) -> dict[str, Tensor]:
    """Weights of a network, of exported or foreign files, under its own names.

    at: the key of the network. Raises UserError as `import_weights`.
    """
    if not network.interop:
        return read_weights(path, FILES)
    foreign.refuse(path, network, label or str(path), at, kept)
    state: dict[str, Tensor] = tables(network.interop).import_network(path, network)
    return state


def lattice(spec: Spec, name: str) -> tuple[int, int] | None:
    """(grid, tokens before the patches) of the positions `name` in the objective of `spec`;
    None for what is no image's.
    """
    networks = networks_of(spec)
    part = next((part for part in reversed(name.split(".")[:-1]) if part in networks), None)
    return None if part is None else networks[part].position_grid()


def resize_positions(state: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """`state` with every image's positions (1, N, C) at the resolution of `spec`;
    `state` itself where they are already.

    Bicubic on the grid, antialiased, as timm and open_clip do when they load; tokens before the
    patches keep their own entries. A name "a.net.positions" belongs to the network `spec.net`.
    """
    resized: dict[str, Tensor] = {}
    for name, have in state.items():
        if not name.endswith("positions") or have.ndim != 3 or (at := lattice(spec, name)) is None:
            continue
        grid, extra = at
        old = math.isqrt(have.shape[1] - extra)
        if old == grid or old * old + extra != have.shape[1]:
            continue
        square = have[:, extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        square = F.interpolate(
            square, (grid, grid), mode="bicubic", align_corners=False, antialias=True
        )
        resized[name] = torch.cat(
            [have[:, :extra], square.flatten(2).transpose(1, 2).to(have.dtype)], dim=1
        )
    return {**state, **resized} if resized else state
