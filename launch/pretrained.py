"""Pretrained parts of an objective, such as a codec or a teacher: what a run folder or an export
says of one. No torch.
"""

import contextlib
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.override import from_dict
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.specs.network import Network
from vtx_scale.specs.objective import ObjectiveSpec, Pretrained, objective_fault

LEFT_OPEN = ("", "required", "smoke")  # a source that its user has not given


def absent(key: str, source: str) -> str:
    """What to say of a source that is not there. NAME/NAME in no folder of that first name may be
    meant as one of the Hugging Face Hub.
    """
    here, name = Path.cwd(), str(source)
    with contextlib.suppress(ValueError):  # paths of a recipe were made absolute
        name = Path(source).relative_to(here).as_posix()
    owner = re.fullmatch(r"(\w[\w.-]*)/\w[\w.-]*", name)
    hub = ""
    if owner and owner[1] != "runs" and not (here / owner[1]).exists():
        hub = (
            "; names of the Hugging Face Hub are not fetched: "
            f"'hf download {name} --local-dir DIR', and give DIR"
        )
    return f"{key}={source}: there is no such file or folder{hub}."


@dataclass(frozen=True)
class Held:
    """A part as it lies elsewhere: its network, the prefix of its names there, and how its pictures
    are normalised.
    """

    network: Network
    prefix: str
    pixels: str


def wanted(objective: ObjectiveSpec, part: Pretrained) -> type[Network]:
    """The kind of network that a part is."""
    kind: type[Network] = typing.get_type_hints(type(objective))[part.part]
    return kind


def spec_at(path: AnyPath) -> ObjectiveSpec | None:
    """The objective of a run folder, or of an export that holds one as a whole."""
    if (path / "run.json").is_file():
        return recipe_of(path).objective
    if (path / "spec.json").is_file():
        try:
            body = json.loads((path / "spec.json").read_text())
        except ValueError:
            raise UserError(f"{path}/spec.json is not JSON: export the run again.") from None
        spec: Any = from_dict(body)
        if objective_fault(spec) is None:
            whole: ObjectiveSpec = spec
            return whole
    return None


def held(path: AnyPath, objective: ObjectiveSpec, part: Pretrained) -> Held | None:
    """What trained such a network, or has one as a part of its own; None for anything else.

    Raises UserError for a spec that cannot be read.
    """
    spec = spec_at(path)
    if spec is None:
        return None
    kind, network = wanted(objective, part), spec.networks().get("net")
    if isinstance(network, kind):
        return Held(network, spec.exported()[0], spec.pixels)
    network = getattr(spec, part.part, None)
    if isinstance(network, kind):
        return Held(network, f"{part.part}.", getattr(spec, f"{part.part}_pixels", ""))
    return None
