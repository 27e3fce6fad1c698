"""key=value on frozen dataclasses; runs to JSON and back; the hash of what is learned. Standard library only."""

import difflib
import hashlib
import importlib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.specs.run import Run, Spec


def shown(name: str) -> str:
    """A field's name on the command line: `from_` is `from`."""
    return name.rstrip("_")


def hints(spec: Any) -> dict[str, Any]:
    """Field name as shown -> declared type."""
    kind = spec if isinstance(spec, type) else type(spec)
    made = typing.get_type_hints(kind)
    return {shown(f.name): made[f.name] for f in fields(kind)}


def parse(key: str, text: str, kind: Any) -> Any:
    """`text` as the declared type. Raises UserError."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() in ("none", "null", ""):
            if type(None) in args:
                return None
        return parse(key, text, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if text not in args:
            raise UserError(f"{key}: {text!r} is none of {', '.join(args)}.")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"{key}: {text!r} is not true or false.")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            value = kind(text.replace("_", ""))
        except ValueError:
            raise UserError(f"{key}: {text!r} is not {kind.__name__}.") from None
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
        near = difflib.get_close_matches(head, kinds, 1)
        nearest = f"; nearest: {near[0]}" if near else f"; it has {', '.join(kinds)}"
        raise UserError(f"{whole}: {type(spec).__name__} has no {head!r}{nearest}.")
    name = next(f.name for f in fields(spec) if shown(f.name) == head)
    now = getattr(spec, name)
    if len(path) > 1:
        if isinstance(now, tuple) and now and is_dataclass(now[0]):  # evaluate.0.every
            if not path[1].isdigit() or int(path[1]) >= len(now) or len(path) < 3:
                raise UserError(f"{whole}: give {head}.0 to {head}.{len(now) - 1} and a field of it.")
            k = int(path[1])
            changed = (*now[:k], set_key(now[k], path[2:], text, whole), *now[k + 1 :])
            return replace(spec, **{name: changed})
        if not is_dataclass(now):
            raise UserError(f"{whole}: {head} has no fields.")
        return replace(spec, **{name: set_key(now, path[1:], text, whole)})
    if is_dataclass(now) or (isinstance(now, tuple) and now and is_dataclass(now[0])):
        raise UserError(f"{whole} is a whole part of the recipe: set its fields, or name another recipe.")
    if get_origin(kinds[head]) is tuple and any(is_dataclass(a) for a in get_args(kinds[head])):
        raise UserError(f"{whole} is a whole part of the recipe: name another recipe.")
    return replace(spec, **{name: parse(whole, text, kinds[head])})


def override(run: Run, changes: Iterable[str]) -> Run:
    """Apply `key=value` strings. Raises UserError for a wrong key, type or value."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"{change!r} is not key=value.")
        run = set_key(run, key.split("."), text, key)
    check(run)
    return run


def check(run: Run) -> None:
    """What a type cannot say. Raises UserError."""
    positive = {"steps": run.steps, "global_batch": run.global_batch, "optim.lr": run.optim.lr,
                "system.threads": run.system.threads, "system.timeout": run.system.timeout,
                "system.replicas": run.system.replicas}
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key}={value}: give a number above 0.")
    for key, number in {"seed": run.seed, "system.workers": run.system.workers, "checkpoint.every": run.checkpoint.every,
                        "optim.decay": run.optim.decay, "schedule.warmup": run.schedule.warmup}.items():
        if number < 0:
            raise UserError(f"{key}={number}: give 0 or more.")
    if run.checkpoint.keep < 1:
        raise UserError(f"checkpoint.keep={run.checkpoint.keep}: keep at least 1.")
    if not 0 <= run.data.hold_out < 1:
        raise UserError(f"data.hold_out={run.data.hold_out}: give a share from 0 to below 1.")
    if run.init.head == "new" and not run.init.from_:
        raise UserError("init.head=new: it says what to leave out of init.from, so give that too.")
    for where, spec in specs(run):
        for fault in spec.faults():
            raise UserError(f"{where}{fault}")
    world, strategy = run.system.world, run.system.strategy
    if strategy == "single" and world and world > 1:
        raise UserError(f"system.strategy=single runs on one process, the world is {world}: choose ddp, fsdp or hsdp.")
    if strategy == "hsdp" and world and world % run.system.replicas:
        raise UserError(f"hsdp with system.replicas={run.system.replicas} needs a world that it divides, not {world}.")
    for key, maybe in {"system.world": run.system.world, "system.micro_batch": run.system.micro_batch,
                       "data.lanes": run.data.lanes, "data.window": run.data.window}.items():
        if maybe is not None and maybe < 1:
            raise UserError(f"{key}={maybe}: give 1 or more, or leave it out.")


def specs(spec: Any, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """Every spec in a spec, with the prefix of its keys."""
    for f in fields(spec):
        value = getattr(spec, f.name)
        if is_dataclass(value):
            where = f"{prefix}{shown(f.name)}."
            yield where, value  # type: ignore[misc]
            yield from specs(value, where)


def walk(spec: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, declared type) of every field that is not a spec itself."""
    kinds = hints(spec)
    for f in fields(spec):
        value, key = getattr(spec, f.name), prefix + shown(f.name)
        if is_dataclass(value):
            yield from walk(value, f"{key}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for i, v in enumerate(value):
                yield from walk(v, f"{key}.{i}.")
        else:
            yield key, value, kinds[shown(f.name)]


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Key -> (value in a, value in b) where they differ."""
    one, two = ({k: v for k, v, _ in walk(r)} for r in (a, b))
    return {k: (one.get(k), two.get(k)) for k in [*one, *(k for k in two if k not in one)] if one.get(k) != two.get(k)}


def to_dict(spec: Any) -> Any:
    """Plain JSON values; a spec carries the dotted path of its class."""
    if is_dataclass(spec) and not isinstance(spec, type):
        body = {shown(f.name): to_dict(getattr(spec, f.name)) for f in fields(spec)}
        return {"spec": f"{type(spec).__module__}:{type(spec).__qualname__}", **body}
    if isinstance(spec, tuple):
        return [to_dict(x) for x in spec]
    return spec


def from_dict(value: Any) -> Any:
    """The reverse of `to_dict`. Raises UserError for a class that is no spec or cannot be imported."""
    if isinstance(value, list):
        return tuple(from_dict(x) for x in value)
    if not isinstance(value, dict):
        return value
    module, _, name = str(value.get("spec", "")).partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"The recipe's {value.get('spec')!r} cannot be imported ({e}): put its folder on PYTHONPATH.") from None
    if not (isinstance(kind, type) and issubclass(kind, Spec)):
        raise UserError(f"The recipe names {value.get('spec')!r}, which is no spec.")
    names = {shown(f.name): f.name for f in fields(kind)}
    return kind(**{names[k]: from_dict(v) for k, v in value.items() if k in names})


UNCOUNTED = ("data.shards", "data.val_shards", "data.bad_limit", "data.centre")  # of what stands beside the data in a recipe


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def recipe_hash(run: Run, data: str = "", words: str = "") -> str:
    """16 hex digits over what is learned; data set and tokenizer count by their fingerprints, not by their paths."""
    body = to_dict(run)
    for key in ("system", "checkpoint", "evaluate"):
        body.pop(key)
    for key in UNCOUNTED:
        body["data"].pop(key.removeprefix("data."))
    body["data"]["tokenizer"] = words or run.data.tokenizer
    return hashlib.sha256(canonical({**body, "fingerprint": data}).encode()).hexdigest()[:16]
