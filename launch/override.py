"""key=value on frozen dataclasses; runs to JSON and back; the hash of what is learned.

Standard library only.
"""

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.weights import named_weights, shares
from vtx_scale.launch.checks import check
from vtx_scale.launch.nearest import no_key, part_of, value_of
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import DECODE, Guard, Run, Stop
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import hints, shown


class NoField(UserError):
    """A key that is none; `override` says what could be meant."""


def parse(key: str, text: str, kind: Any) -> Any:
    """`text` as the declared type. Raises UserError."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() in ("none", "null", ""):
            if type(None) in args:
                return None
        words = [w for a in args if get_origin(a) is Literal for w in get_args(a)]
        if text in words:
            return text
        if words and str in args and ":" not in text:  # a name of ours, or package.module:Class
            return parse(key, text, next(a for a in args if get_origin(a) is Literal))
        if int in args and str in args:  # a number, or a range
            return parse(key, text, int) if text.lstrip("-").isdigit() else text
        plain = (a for a in args if a is not type(None) and get_origin(a) is not Literal)
        return parse(key, text, next(plain, args[0]))
    if origin is Literal:
        if text not in args:
            near = value_of(key, text, kind)
            raise UserError(f"{key}: {text!r} is none of {', '.join(args)}{near}.")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"{key}: {text!r} is not true or false.")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            value = kind(text.replace("_", ""))
        except ValueError:
            near = value_of(key, text, kind)
            raise UserError(f"{key}: {text!r} is not {kind.__name__}{near}.") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}: {text!r} is not a finite number.")
        return value
    if kind is str:
        return text
    if origin is tuple:
        parts = [p for p in text.strip("()[] ").split(",") if p.strip()]
        if args[-1] is Ellipsis:
            args = args[:1] * len(parts)
        if len(parts) != len(args):
            raise UserError(f"{key}: {text!r} needs {len(args)} values with commas between.")
        return tuple(parse(key, p.strip(), a) for p, a in zip(parts, args, strict=True))
    raise UserError(f"{key} is a whole part of the recipe: set its fields, or name another recipe.")


def set_key(spec: Any, path: list[str], text: str, whole: str) -> Any:
    """A copy of `spec` with one field changed. Raises UserError, naming the nearest field."""
    kinds = hints(spec)
    head = path[0]
    if head not in kinds:
        raise NoField(f"{whole}: {spec.title()} has no {head!r}.")
    name = next(f.name for f in fields(spec) if shown(f.name) == head)
    now = getattr(spec, name)
    if len(path) > 1:
        if isinstance(now, tuple) and now and is_dataclass(now[0]):  # evaluate.0.every
            if not path[1].isdigit() or int(path[1]) >= len(now) or len(path) < 3:
                raise UserError(
                    f"{whole}: the recipe has {head}.0 to {head}.{len(now) - 1}; give one of them "
                    "and a field of it. More of them take a recipe of your own."
                )
            k = int(path[1])
            changed = (*now[:k], set_key(now[k], path[2:], text, whole), *now[k + 1 :])
            return replace(spec, **{name: changed})
        if not is_dataclass(now):
            raise NoField(f"{whole}: {head} has no fields.")
        return replace(spec, **{name: set_key(now, path[1:], text, whole)})
    if is_dataclass(now) or (isinstance(now, tuple) and now and is_dataclass(now[0])):
        raise UserError(
            f"{whole} is a whole part of the recipe: set its fields{part_of(whole, text)} or name "
            "another recipe."
        )
    if get_origin(kinds[head]) is tuple and any(is_dataclass(a) for a in get_args(kinds[head])):
        raise UserError(f"{whole} is a whole part of the recipe: name another recipe.")
    text = spec.former.get(name, {}).get(text.lower(), text)
    return replace(spec, **{name: parse(whole, text, kinds[head])})


def override(run: Run, changes: Iterable[str]) -> Run:
    """Apply `key=value` strings. Raises UserError for a wrong key, type or value."""
    changes = list(changes)
    given = {change.partition("=")[0] for change in changes}
    if {"steps", "epochs"} <= given:
        raise UserError("steps and epochs say the same: give one of them.")
    if "steps" in given:  # in place of a recipe's epochs
        run = replace(run, epochs=None)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"{change!r} is not key=value.")
        if key == WEIGHTS:
            run = with_weights(run, text)
        else:
            try:
                run = set_key(run, key.split("."), text, key)
            except NoField:
                raise UserError(no_key(run, key, text)) from None
    check(run)
    return run


WEIGHTS = "data.weights"  # of all sources of a mix, by their names: no field


def with_weights(run: Run, text: str) -> Run:
    """The sources of a mix with the weights of `a:0.7,b:0.3`. Raises UserError."""
    sources = run.data.sources
    if not sources:
        raise UserError(f"{WEIGHTS}={text}: this recipe is no mix, it has no data.sources.")
    weights = named_weights(text, [source.name for source in sources], WEIGHTS)
    changed = tuple(replace(s, weight=w) for s, w in zip(sources, weights, strict=True))
    return replace(run, data=replace(run.data, sources=changed))


def to_dict(spec: Any) -> Any:
    """Plain JSON values; a spec carries the dotted path of its class."""
    if is_dataclass(spec) and not isinstance(spec, type):
        body = {shown(f.name): to_dict(getattr(spec, f.name)) for f in fields(spec)}
        return {"spec": f"{type(spec).__module__}:{type(spec).__qualname__}", **body}
    if isinstance(spec, tuple):
        return [to_dict(x) for x in spec]
    return spec


def from_dict(value: Any) -> Any:
    """The reverse of `to_dict`, of folders of before too.

    Raises UserError for a class that is no spec or cannot be imported.
    """
    if isinstance(value, list):
        return tuple(from_dict(x) for x in value)
    if not isinstance(value, dict):
        return value
    path, value = moved(str(value.get("spec", "")), value)
    try:
        kind = import_object(path)
    except UserError as e:
        raise UserError(
            f"The recipe's {path!r} cannot be imported ({e.__cause__}): "
            "put its folder on PYTHONPATH."
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Spec)):
        raise UserError(f"The recipe names {path!r}, which is no spec.")
    names = {shown(f.name): f.name for f in fields(kind)}
    return kind(**{names[k]: from_dict(v) for k, v in value.items() if k in names})


# where the specs of d064e36 stand now; the key of a field that was renamed with its class
MOVED = {
    f"vtx_scale.specs.{old}": f"vtx_scale.specs.{new}"
    for old, new in {
        "backbones:ViT": "vit:ViTConfig",
        "resnet:ResNet": "resnet:ResNetConfig",
        "resnet:ClipResNet": "resnet:ClipResNetConfig",
        "clip:TextTower": "clip:TextTowerConfig",
        "clip:Clip": "clip:ClipConfig",
        "siglip:SiglipText": "siglip:SiglipTextConfig",
        "siglip:Siglip": "siglip:SiglipConfig",
        "supervised:Supervised": "supervised:SupervisedConfig",
        "supervised:Distill": "supervised:DistillConfig",
        "supervised:Masked": "supervised:MaskedConfig",
        "dino:Dino": "dino:DinoConfig",
        "dvae:Codec": "dvae:CodecConfig",
        "dvae:Dvae": "dvae:DvaeConfig",
        "dalle:TextToCodes": "dalle:TextToCodesConfig",
        "dalle:Dalle": "dalle:DalleConfig",
        "igpt:PixelGPT": "igpt:PixelGPTConfig",
        "igpt:Igpt": "igpt:IgptConfig",
        "virtex:Virtex": "virtex:VirtexConfig",
    }.items()
}
MOVED_FIELDS = {"vtx_scale.specs.resnet:ClipResNet": {"width": "stem"}}


def moved(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A spec's path and fields of before as they are today."""
    names = MOVED_FIELDS.get(path, {})
    body = {names.get(key, key): value for key, value in body.items()}
    if (
        path == "vtx_scale.specs.clip:Clip"
        and body["image"]["spec"] == "vtx_scale.specs.backbones:ViT"
    ):
        # CLIP's own initial values, whatever the tower's field said
        body["image"] = {**body["image"], "init": "clip"}
    if path.startswith("vtx_scale.specs.igpt:PixelGPT") and body.get("classes"):
        # a classifier had a bias when there was no field for it
        body = {"classifier_bias": True, **body}
    return MOVED.get(path, path), body


# of what stands beside the data in a recipe
UNCOUNTED = ("data.shards", "data.val_shards", "data.bad_limit", "data.centre")


def recipe_hash(run: Run, data: str = "", words: str = "") -> str:
    """16 hex digits over what is learned; data set and tokenizer count by their fingerprints,
    not by their paths, the weights of a mix by its shares of positions.

    The canonical JSON names a spec by its class and leaves out fields at their default, so that a
    new field changes no old hash and a module may move; a released default never changes its value.
    """
    counted = {
        name: getattr(run, name)
        for name in (
            "objective",
            "data",
            "optim",
            "schedule",
            "init",
            "steps",
            "global_batch",
            "seed",
        )
    }
    body = {name: compact(value) for name, value in counted.items()}
    if run.guard != Guard():  # it came later
        body["guard"] = compact(run.guard)
    if run.stop != Stop():
        body["stop"] = compact(run.stop)
    for key in UNCOUNTED:
        body["data"].pop(key.removeprefix("data."), None)
    sources = body["data"].pop("sources", [])
    if len(sources) > 1:  # a mix of one is that source
        body["data"]["sources"] = list(shares([source.weight for source in run.data.sources]))
    body["data"]["tokenizer"] = words or run.data.tokenizer
    if "decode" in body["data"]:
        body["data"]["decode"] = DECODE[run.data.decode]
    return hashlib.sha256(canonical({**body, "fingerprint": data}).encode()).hexdigest()[:16]


def compact(value: Any) -> Any:
    """Plain JSON values; of a spec its class name and what differs from the defaults."""
    if isinstance(value, tuple):
        return [compact(x) for x in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {
        shown(f.name): compact(getattr(value, f.name))
        for f in fields(value)
        if getattr(value, f.name) != default(f)
    }
    return {"spec": type(value).__name__, **changed}


def default(field: dataclasses.Field[Any]) -> Any:
    """Of a field; MISSING where it has none."""
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def canonical(value: Any) -> str:
    """JSON of one form: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
