"""Where values come from at a run's first start: `init.from`,
and the networks that an objective takes from elsewhere (its pretrained parts, such as a teacher).
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from vtx_scale.blocks.rules import rule_of
from vtx_scale.checkpoints.read import Opened
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.interop.files import FILES, read_weights
from vtx_scale.interop.weights import import_network, import_weights, resize_positions
from vtx_scale.launch.places import place_at
from vtx_scale.launch.pretrained import absent, held
from vtx_scale.launch.restore import read_common
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.specs import walk
from vtx_scale.specs.foreign.compare import lines
from vtx_scale.specs.objective import ObjectiveSpec, Pretrained
from vtx_scale.specs.run import Run
from vtx_scale.strategies.base import Base


def load_initial(run: Run, strategy: Base, say: Callable[[str], None]) -> None:
    """Fill what comes from elsewhere. Raises UserError where it does not fit."""
    if run.init.from_:
        load_source(run.init.from_, run, strategy, say)
    for part in run.objective.pretrained:
        load_part(part, run.objective, strategy, say)
    strategy.settled()


def stored(path: AnyPath, strategy: Base, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Parameters and buffers of the newest checkpoint of a run folder, the same on every rank.

    Raises UserError where it has none, or a run in it removes them faster than the ranks open them.
    """
    found = read_common(path, strategy, values, say)
    if found is None:
        raise UserError(f"{path} has no whole checkpoint: run its training first.")
    return found


def values(checkpoint: Opened) -> dict[str, Tensor]:
    """Parameters, averaged where the run keeps an average, and buffers by their names."""
    tensors = checkpoint.tensors()
    names = [k.partition("/")[2] for k in tensors.keys() if k.startswith("param/")]
    used = {name: tensors.tensor(tensors.weight(name)) for name in names}
    return used | tensors.state("buffer")


def load_source(source: str, run: Run, strategy: Base, say: Callable[[str], None] = print) -> None:
    """`init.from`: parameters and running statistics of a run folder or of exported weights.

    A plain network starts from the teacher of a run that has one (DINO). Pretrained parts come from
    elsewhere, and under `init.head=new` heads start anew.
    """
    path = place_at(source)
    if not path.exists():
        raise UserError(absent("init.from", source))
    here, label, new_heads = (
        (path / "run.json").exists(),
        f"init.from={source}",
        run.init.head == "new",
    )
    state = (
        stored(path, strategy, say)
        if here
        else import_weights(weights_at(path, label), run.objective, label, not new_heads)
    )
    resized = resize_positions(state, run.objective)
    if resized is not state and strategy.all.rank == 0:
        say(f"{label}: its position embeddings are resized to the recipe's resolution")
    elsewhere = tuple(f"{part.part}." for part in run.objective.pretrained)
    if new_heads and not any(rule.group == "head" for rule in strategy.rules.values()):
        raise UserError(
            f"init.head=new: {run.objective.title()} has no head that could start anew, "
            "leave it out."
        )

    def wanted(name: str) -> bool:
        return not (name.startswith(elsewhere) or (new_heads and is_head(strategy, name)))

    if strategy.all.rank == 0:
        there = lines(weights_at(path, label), run.objective, not new_heads) if not here else []
        for line in differences(path, run) if here else there:
            say(f"{label}: {line}")
    refuse_rest(resized, strategy, wanted, label)
    fill(strategy, resized, lambda name: (name, f"teacher.{name}"), wanted, label)


def weights_at(path: AnyPath, source: str) -> Path:
    """A file or folder of weights, which lie on this machine alone. Raises UserError elsewhere."""
    if not isinstance(path, Path):
        raise UserError(f"{source}: is no run folder; copy weights to a folder and give that.")
    return path


def is_head(strategy: Base, name: str) -> bool:
    """Whether a name, of this model or of another of the same kind, belongs to a classifier."""
    try:
        return rule_of(strategy.objective.parameter_rules, name).group == "head"
    except LookupError:
        return False


def key_of(objective: ObjectiveSpec, prefix: str, field: str) -> str:
    """The key of a field of the network whose names begin so ("net." or "teacher.net.");
    "" where it has none.
    """
    for names in (prefix, prefix.removeprefix("teacher.")):
        owner: object = objective
        for name in names.split(".")[:-1]:
            owner = getattr(owner, name, None)
        if hasattr(owner, field):
            return f"objective.{names}{field}"
    return ""


BLOCK = re.compile(r"(.*?\bblocks)\.(\d+)\.")


def depth_advice(
    name: str, theirs: str, state: Iterable[str], here: Iterable[str], objective: ObjectiveSpec
) -> str:
    """What makes the recipe as deep as a source, of a block that one of them lacks: `name` here,
    `theirs` there; "" where both are as deep or it is no block.
    """
    at, there = BLOCK.match(name), BLOCK.match(theirs)
    if at is None or there is None:
        return ""

    def count(prefix: str, names: Iterable[str]) -> int:
        return len({m[2] for n in names if (m := BLOCK.match(n)) and m[1] == prefix})

    has, wants = count(there[1], state), count(at[1], here)
    if not has or has == wants:
        return ""
    key = key_of(objective, at[1].removesuffix("blocks"), "depth")
    return (
        f"the source has {has} block{'s' if has > 1 else ''}, the recipe {wants}: "
        f"{f'{key}={has}' if key else 'make the recipe as deep'}"
    )


LIST = re.compile(r"(.*?\b(?:blocks|stages))\.")  # what a network has several of


def differences(path: AnyPath, run: Run) -> list[str]:
    """What the networks of a run folder and of a recipe compute differently with
    the same weights.
    """
    theirs, ours, lines = recipe_of(path).objective, run.objective, []
    for field, network in ours.networks().items():
        if (there := theirs.networks().get(field)) is not None:
            a, b = ({key: value for key, value, _ in walk.walk(net)} for net in (there, network))
            common = (key for key in b if key in a and key not in network.training_only)
            lines += [
                f"objective.{field}.{key} was {a[key]} there and is {b[key]} here"
                for key in common
                if a[key] != b[key]
            ]
    if len({p for spec in (theirs, ours) if (p := getattr(spec, "palette", ""))}) > 1:
        lines.append("objective.palette has other colours there than here")
    if ours.pixels and theirs.pixels not in ("", ours.pixels):
        lines.append(f"objective.pixels was {theirs.pixels} there and is {ours.pixels} here")
    return lines


def norm_advice(name: str, state: dict[str, Tensor], objective: ObjectiveSpec) -> str:
    """The keys of a network that has the norm before its blocks, and the bias of its patches or
    none, as the source has them.
    """
    prefix = name.removesuffix("norm_pre.weight")
    key = key_of(objective, prefix, "pre_norm")
    bias = key_of(objective, prefix, "patch_bias")
    if not key:
        return "set its pre_norm=true"
    wanted = f" {bias}={str(f'{prefix}patch.bias' in state).lower()}" if bias else ""
    return f"add {key}=true{wanted}"


def refuse_rest(
    state: dict[str, Tensor], strategy: Base, wanted: Callable[[str], bool], source: str
) -> None:
    """Raises UserError where a part that the recipe has holds more there:
    blocks that would be left out in silence, or a norm before them.
    """
    here = {s.key.partition("/")[2] for s in strategy.slices()}
    lists = {m[1] for name in here if (m := LIST.match(name))}
    for name in state:
        both = (name, name.removeprefix("teacher."))  # a plain network takes a DINO's teacher
        deeper = any((m := LIST.match(n)) and m[1] in lists for n in both)
        if deeper and here.isdisjoint(both) and wanted(name):
            objective = strategy.objective.spec
            ours = next((n for n in both if (m := LIST.match(n)) and m[1] in lists), name)
            advice = depth_advice(ours, name, state, here, objective)
            raise UserError(
                f"{source}: it has {name}, which the recipe's network has not: "
                f"make the recipe as deep{f' ({advice})' if advice else ''}."
            )
        if name.endswith("norm_pre.weight") and here.isdisjoint(both) and wanted(name):
            raise UserError(
                f"{source}: it has {name}, a norm before the blocks, which the recipe's network "
                f"has not: {norm_advice(name, state, strategy.objective.spec)}."
            )
        layer = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and name not in here and layer in here and wanted(name):
            anew = ", or init.head=new" if is_head(strategy, name) else ""
            raise UserError(
                f"{source}: it has {name}, and the recipe's layer has no bias: "
                f"set the field of the network that gives it one{anew}."
            )


def load_part(
    part: Pretrained,
    objective: ObjectiveSpec,
    strategy: Base,
    say: Callable[[str], None] = print,
) -> None:
    """Fill the module of a part from a run folder or an export whose network it is or that has it
    as a part too, or from exported weights of the network alone.

    Raises UserError where there is nothing, or where it does not fit.
    """
    source, prefix = getattr(objective, part.source), f"{part.part}."
    path = place_at(source)
    if not path.exists():
        raise UserError(absent(f"objective.{part.source}", source))
    there = held(path, objective, part)
    if there is None:
        network, at = getattr(objective, part.part), f"objective.{part.part}."
        state = import_network(weights_at(path, source), network, source, at)
    elif (path / "run.json").exists():
        state = stored(path, strategy, say)
    else:
        state = read_weights(weights_at(path, source), FILES)

    def candidates(name: str) -> Iterable[str]:
        return ((there.prefix if there else "") + name.removeprefix(prefix),)

    fill(
        strategy,
        state,
        candidates,
        lambda name: name.startswith(prefix),
        source,
        statistics=True,
    )


@torch.no_grad()
def fill(
    strategy: Base,
    state: dict[str, Tensor],
    candidates: Callable[[str], Iterable[str]],
    wanted: Callable[[str], bool],
    source: str,
    statistics: bool = False,
) -> None:
    """Copy into every wanted parameter and buffer the first of its candidates.

    Raises UserError for a shape that differs.

    statistics: whether running statistics must be there; else those of another kind of
    run begin anew.
    """
    for s in strategy.slices():
        kind, _, name = s.key.partition("/")
        if not wanted(name):
            continue
        there = next((c for c in candidates(name) if c in state), None)
        if there is None and kind == "buffer" and not statistics:
            continue
        if there is None:
            here = [o.key.partition("/")[2] for o in strategy.slices()]
            spec = strategy.objective.spec
            advices = (depth_advice(name, c, state, here, spec) for c in candidates(name))
            if advice := next(filter(None, advices), ""):
                raise UserError(f"{source}: {name} is not there, for {advice}.")
        if there is None or tuple(state[there].shape) != s.shape:
            have = tuple(state[there].shape) if there else "nothing"
            head = is_head(strategy, name)
            raise UserError(
                f"{source}: {name} is {s.shape} in the recipe and {have} there"
                f"{'; init.head=new lets it start anew' if head else ''}."
            )
        s.tensor.copy_(state[there][tuple(slice(a, b) for a, b in s.box)])
