"""What types cannot say of a run: refusals of a configuration, each one sentence.

Standard library and specs alone.
"""

import fnmatch
from dataclasses import fields

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.evaluators import NAMES
from vtx_scale.launch.extras import need
from vtx_scale.launch.paths import check_paths
from vtx_scale.launch.sinks import check_sink
from vtx_scale.specs.imports import import_object, optimizer_class
from vtx_scale.specs.objective import objective_fault
from vtx_scale.specs.run import Run
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import specs


def check(run: Run) -> None:
    """What a type cannot say. Raises UserError."""
    positive = {
        "steps": run.steps,
        "global_batch": run.global_batch,
        "optim.lr": run.optim.lr,
        "system.threads": run.system.threads,
        "system.timeout": run.system.timeout,
        "system.replicas": run.system.replicas,
        "checkpoint.fault_rate": run.checkpoint.fault_rate,
        "epochs": run.epochs if run.epochs is not None else 1,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key}={value}: give a number above 0.")
    for key, number in {
        "seed": run.seed,
        "system.workers": run.system.workers,
        "checkpoint.every": run.checkpoint.every if run.checkpoint.every != "auto" else 0,
        "checkpoint.memory": run.checkpoint.memory if run.checkpoint.memory != "auto" else 0,
        "checkpoint.keep_every": run.checkpoint.keep_every,
        "optim.decay": run.optim.decay,
        "schedule.warmup": run.schedule.warmup,
    }.items():
        if number < 0:
            raise UserError(f"{key}={number}: give 0 or more.")
    if run.checkpoint.keep < 1:
        raise UserError(f"checkpoint.keep={run.checkpoint.keep}: keep at least 1.")
    if not 0 <= run.data.hold_out < 1:
        raise UserError(f"data.hold_out={run.data.hold_out}: give a share from 0 to below 1.")
    if run.init.head == "new" and not run.init.from_:
        raise UserError("init.head=new: it says what to leave out of init.from, so give that too.")
    if (fault := objective_fault(run.objective)) is not None:
        raise UserError(fault)
    check_paths(run)
    check_specs(run)
    check_strategy(run, run.system.least)
    check_package(run)
    worlds = run.system.worlds
    if worlds and worlds[0] < 1:
        raise UserError(f"system.world={worlds[0]}: give 1 or more, or leave it out.")
    if worlds and (fault := run.system.world_fault(run.system.least)) is not None:
        raise UserError(fault)
    for key, maybe in {
        "system.micro_batch": run.system.micro_batch,
        "data.lanes": run.data.lanes,
        "data.window": run.data.window,
    }.items():
        if maybe is not None and maybe < 1:
            raise UserError(f"{key}={maybe}: give 1 or more, or leave it out.")
    check_data(run)
    check_profile(run)
    if worlds:
        check_micro_batch(run, run.system.sharers(run.system.least))
    check_evaluators(run)
    check_sink(run.log.to)
    if run.optim.elsewhere:
        optimizer_class(run.optim.kind)


def check_evaluators(run: Run) -> None:
    """Raises UserError for evaluators that there are not, and for keys that wait for none."""
    for evaluation in run.evaluate:
        check_evaluator(evaluation.name)
    if run.checkpoint.best:
        check_number(run, "checkpoint.best", run.checkpoint.best)
    if run.stop.patience:
        check_number(run, "stop.number", run.stop.number, more_than_at_the_end=True)


def check_package(run: Run) -> None:
    """Raises UserError where the strategy's package is not installed."""
    if run.system.package is not None:
        need(run.system.package, f"system.strategy={run.system.strategy}")


def check_specs(run: Run) -> None:
    """What each spec says of itself. Raises UserError."""
    for where, spec in specs(run):
        for fault in spec.faults():
            raise UserError(f"{where}{fault}")
        least = getattr(spec, "least", 0)  # a backbone's
        if least and least > (size := getattr(spec, "resolution", least)):
            raise UserError(
                f"{where}resolution={size}: {spec.title()} takes pictures of {least} px or more."
            )


def check_strategy(run: Run, world: int) -> None:
    """Raises UserError where the strategy cannot train this run on so many ranks."""
    if (fault := run.strategy_fault(world)) is not None:
        raise UserError(fault)
    if run.optim.elsewhere and run.system.cuts(world):
        optimizer_class(run.optim.kind, cut=True)


def check_data(run: Run) -> None:
    """Raises UserError for what the objective would leave out in silence."""
    data, kind = run.data, type(run.objective)
    if kind.data_fields is not None:
        unused = [
            name for name in data.optional if name not in kind.data_fields and changed(data, name)
        ]
        if unused:
            raise UserError(
                f"data.{unused[0]} is not for {kind.title()}, "
                "which cuts pictures and texts in its own way: leave it out."
            )
    elif changed(data, "decode"):
        # it counts in the hash, so that a reader that does not heed it would lie
        raise UserError(
            f"data.decode={data.decode} is not for {kind.title()}, which does not say that it "
            "decodes so: leave it out, or name decode in its data_fields."
        )
    allowed = kind.augmentations
    unused = [
        f.name
        for f in fields(data.augment)
        if not any(fnmatch.fnmatch(f.name, pattern) for pattern in allowed)
        and changed(data.augment, f.name)
    ]
    if unused:
        raise UserError(f"data.augment.{unused[0]} is not for {kind.title()}: leave it out.")


def changed(spec: Spec, name: str) -> bool:
    """Whether a field differs from its default."""
    return bool(getattr(spec, name) != next(f.default for f in fields(spec) if f.name == name))


def check_micro_batch(run: Run, world: int) -> None:
    """Raises UserError where batch statistics are to be taken of less than a batch, which `world`
    ranks share.
    """
    micro, share = run.system.micro_batch, -(-run.global_batch // world)
    if micro is not None and micro < share and run.objective.batch_statistics:
        raise UserError(
            f"system.micro_batch={micro} is less than a rank's {share} slots, but this model's "
            "batch norms are over the whole batch: leave it out, use more ranks, or set "
            "system.recompute=full to save memory."
        )


def check_profile(run: Run) -> None:
    """Raises UserError for a range of steps behind the end; those of epochs are not counted yet."""
    profiled = run.system.profiled
    if profiled and run.epochs is None and profiled[0] > run.steps:
        raise UserError(
            f"system.profile={run.system.profile}: the run has {run.steps} steps, give some of "
            "them."
        )


def check_number(run: Run, key: str, value: str, more_than_at_the_end: bool = False) -> None:
    """Raises UserError where a key names no evaluator of the loop, or one that looks at the model
    at the end alone where it must not.
    """
    names = [e.name for e in run.evaluate]
    evaluator, _, number = value.rpartition("/")
    if not number or evaluator not in names:
        raise UserError(
            f"{key}={value}: give EVALUATOR/NUMBER of an evaluator in the loop "
            f"({', '.join(names) or 'this recipe has none'})."
        )
    if more_than_at_the_end and not any(e.every for e in run.evaluate if e.name == evaluator):
        k = names.index(evaluator)
        raise UserError(
            f"{key}={value}: {evaluator} looks at the model at the end alone; add "
            f"evaluate.{k}.every=STEPS."
        )


def check_evaluator(name: str) -> None:
    """Raises UserError where there is no evaluator of this name,
    or a stranger's cannot be imported.
    """
    if ":" in name:
        import_object(name)
    elif name not in NAMES:
        raise UserError(
            f"There is no evaluator {name!r}: choose of {', '.join(NAMES)}, "
            "or give package.module:function."
        )


def refuse_required(run: Run, name: str) -> None:
    """Raises UserError where a recipe leaves open what only its user can give.

    A pretrained part may come with `init.from`, which is read later.
    """
    sources = [part.source for part in run.objective.pretrained] if run.init.from_ else []
    for spec in (run.data, run.init, run.objective):
        for field, sentence in spec.needs.items():
            mixed = spec is run.data and field == "shards" and run.data.sources
            if getattr(spec, field) == "required" and field not in sources and not mixed:
                raise UserError(f"{name} {sentence}")
