"""A config beside foreign weights against a recipe: what is set, what is refused, what is said."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.specs.foreign import open_clip, timm, transformers
from vtx_scale.specs.foreign.beside import Beside, look
from vtx_scale.specs.foreign.field import faults, unknown
from vtx_scale.specs.foreign.transformers import EXTRA, POOLS, SECTIONS, Facts
from vtx_scale.specs.network import networks_of
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.pixels import STATISTICS
from vtx_scale.specs.spec import Spec

DECIDED = ("heads", "activation", "eps", "pool")  # what no shape shows


@dataclass(frozen=True)
class Found:
    """What a config decides, the clauses on what it refuses, and the fields that nobody knows."""

    beside: Beside
    facts: Facts
    refused: list[str]
    unknown: list[str]


@dataclass(frozen=True)
class Misfit:
    """A fact on which a config and a recipe differ. soft: the recipe's own to say."""

    field: str
    have: Any
    want: Any
    words: str
    soft: bool


def compare(path: Path) -> Found:
    """What the config beside weights says. Raises UserError for one that is no JSON."""
    beside = look(path)
    body = beside.body
    if body is None:
        return Found(beside, {}, [], [])
    if beside.library == "open_clip":
        facts, refused = open_clip.facts_of(body, beside.kind == "siglip")
        return Found(beside, facts, refused, [])
    if beside.library == "timm":
        facts, refused = timm.facts_of(body, beside.kind)
        cfg = unknown(timm.CFG, body.get("pretrained_cfg") or {}, "pretrained_cfg.")
        return Found(beside, facts, refused, [*unknown(timm.TOP, body), *cfg])
    return from_transformers(beside, body)


def from_transformers(beside: Beside, body: Mapping[str, Any]) -> Found:
    """The same of transformers' config.json."""
    model = body["model_type"]
    if beside.kind == "siglip_vision_model" and model == "siglip":
        model, body = beside.kind, body.get("vision_config") or {}
    if beside.kind == "flava_image_codebook" and model == "flava":
        model, body = beside.kind, body.get("image_codebook_config") or {}
    kinds = ("vit", "deit") if beside.kind == "vit" else (beside.kind,)
    if model not in kinds:
        known = " or ".join(kinds)
        return Found(beside, {}, [f"model_type={model}, and the names are those of {known}"], [])
    facts: Facts = {}
    refused: list[str] = []
    others: list[str] = []
    for section, part, table in SECTIONS[model]:
        there = body.get(section) or {} if section else body
        where = f"{section}." if section else ""
        facts |= transformers.facts_of(there, table, where, part)
        refused += faults(table, there, where)
        others += unknown(table, there, where)
        if extra := EXTRA.get((model, section)):
            refused += extra(there)
    if model in POOLS:
        name, _, pool = POOLS[model].partition("=")
        facts[name] = (pool, f"model_type={model}")
    return Found(beside, facts, refused, others)


def misfits(found: Found, spec: Spec, kept: bool) -> list[Misfit]:
    """The facts on which a config and a spec, an objective's or a network's, differ.

    kept: whether a classifier comes along; where none does, pooling is the recipe's to say.
    """
    differ = []
    for name, (want, words) in found.facts.items():
        *parts, last = name.split(".")
        owner: Any = spec
        for part in parts:
            owner = getattr(owner, part, None)
        if not hasattr(owner, last) or (have := getattr(owner, last)) == want:
            continue
        soft = name == "pool" and not (kept and owner.classes)
        differ.append(Misfit(name, have, want, words, soft))
    return differ


def target(objective: ObjectiveSpec) -> tuple[Spec | None, str]:
    """What foreign weights fill: the objective, or its network; and the key that it has."""
    if objective.interop:
        return objective, "objective."
    network = objective.networks().get("net")
    return network, "objective.net."


def refuse(path: Path, spec: Spec, label: str, at: str = "objective.", kept: bool = True) -> None:
    """Raises UserError where the config beside weights says that they compute otherwise than
    `spec`, by the first field that does.
    """
    found = compare(path)
    says = f"{label}: its {Path(found.beside.file).name} says"
    for clause in found.refused:
        raise UserError(f"{says} {clause}: give weights of a network that is the recipe's.")
    for m in misfits(found, spec, kept):
        if m.soft:
            continue
        if m.want is None:
            raise UserError(
                f"{says} {m.words}, which no network here computes: give other weights."
            )
        raise UserError(
            f"{says} {m.words}, and the recipe's {at}{m.field} is {m.have}: "
            f"add {at}{m.field}={m.want}."
        )


def lines(path: Path, objective: ObjectiveSpec, kept: bool = True) -> list[str]:
    """What is to be said of weights that are taken: prefixes, fields that nobody knows, what is
    assumed where no config lies beside them.
    """
    spec, at = target(objective)
    found = compare(path)
    beside = found.beside
    if spec is None or not beside.library:
        return []
    told = []
    if beside.prefix:
        told.append(f"its names begin with {beside.prefix}, which is left out")
    name = Path(beside.file).name
    if beside.body is None:
        told.append(
            f"no {name} of {beside.library} lies beside it, so the recipe is taken at its word: "
            f"{', '.join(assumed(spec, at))}, square pictures"
        )
    if found.unknown:
        told.append(f"its {name} has fields that are not known here: {', '.join(found.unknown)}")
    for m in misfits(found, spec, kept):
        if m.soft:
            told.append(f"{at}{m.field} is {m.have} here, and {m.words} there")
    if beside.pixels and (kind := pixels_of(found)) != objective.pixels and objective.pixels:
        mean, std = beside.pixels
        there = kind or f"mean {mean}, deviation {std}"
        told.append(f"objective.pixels is {objective.pixels} here, and {there} there")
    return told


def assumed(spec: Spec, at: str) -> list[str]:
    """What no shape shows of a network, or of those of an objective."""
    networks: dict[str, Spec] = {f"{at}{name}": part for name, part in networks_of(spec).items()}
    networks = networks or {at.rstrip("."): spec}
    found = [
        f"{key}.{name}={getattr(network, name)}"
        for key, network in networks.items()
        for name in DECIDED
        if hasattr(network, name)
    ]
    return found or [f"{key} is {network.title()}" for key, network in networks.items()]


def pixels_of(found: Found) -> str | None:
    """The name of the statistics that a config has, None where there is none."""
    return next((k for k, v in STATISTICS.items() if v == found.beside.pixels), None)


def applied(path: Path, objective: ObjectiveSpec, kept: bool) -> tuple[ObjectiveSpec, list[str]]:
    """The objective with what the config beside weights decides in the recipe's stead, and a line
    for each field that changed.
    """
    spec, at = target(objective)
    if spec is None:
        return objective, []
    found = compare(path)
    told = []
    for m in misfits(found, spec, kept):
        if m.soft or m.want is None or found.refused:
            continue
        spec = changed(spec, m.field.split("."), m.want)
        told.append(f"{at}{m.field}={m.want} in place of {m.have}, for it says {m.words}")
    if spec is not target(objective)[0]:
        objective = spec if objective.interop else replace(objective, **{"net": spec})  # type: ignore[assignment]
    kind = pixels_of(found)
    settable = "pixels" in {f.name for f in fields(objective)}
    if kind is not None and settable and objective.pixels and kind != objective.pixels:
        told.append(f"objective.pixels={kind} in place of {objective.pixels}, as its pixels are")
        objective = replace(objective, **{"pixels": kind})
    return objective, told


def changed(spec: Any, names: list[str], value: Any) -> Any:
    """A spec with another value in a field, or in one of a spec that it holds."""
    first, *rest = names
    return replace(spec, **{first: changed(getattr(spec, first), rest, value) if rest else value})
