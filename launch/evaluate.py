"""Evaluators on the validation samples: in the loop over all ranks,
and on a finished run in one process.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import Ranks, gathered_json
from vtx_scale.evaluators.features import Features, extract
from vtx_scale.launch import checks, override
from vtx_scale.launch.build import eval_batches
from vtx_scale.launch.codec import check_codec
from vtx_scale.launch.datasets import coding, open_data
from vtx_scale.launch.open_run import open_run
from vtx_scale.launch.places import place_at
from vtx_scale.launch.reading import KEYS, Reading, reading_of
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.launch.several import is_rank, run_together, speaks
from vtx_scale.launch.tables import print_json, print_values
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import Run
from vtx_scale.trainer.leave import Leave, requests

AHEAD = 16  # batches of a rank from which on loader processes are worth their start
TEXT = 1000  # characters of a rank's fault that the others hear


def evaluator(name: str) -> Callable[..., dict[str, Any]]:
    """The function `name` of `vtx_scale.evaluators.name`,
    or of a stranger's "package.module:function".

    Raises UserError where there is none.
    """
    checks.check_evaluator(name)
    function: Callable[..., dict[str, Any]] = import_object(
        name if ":" in name else f"vtx_scale.evaluators.{name}:{name}"
    )
    return function


def constants_of(name: str) -> tuple[str, ...]:
    """The numbers of an evaluator, beside its counts, that say nothing of the model."""
    module = sys.modules[evaluator(name).__module__]
    return tuple(getattr(module, "CONSTANTS", ()))


def each(
    run: Run,
    objective: Objective,
    names: list[str],
    note: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """What each evaluator says, one after the other: numbers and pictures, or what it lacks.

    A rank looks at its share of the samples, and all ranks get the same numbers (a picture is of a
    rank's own samples). Evaluators marked `on_features` share one pass over the training and the
    validation samples, the first of them says its `bad`: how many samples were left out because
    they cannot be read. note: takes a ledger entry of each of this rank's. Yields nothing where the
    run names no validation samples.
    """
    data = open_data(run, False)
    if data is None:
        return
    was, ranks = objective.training, objective.context.ranks
    objective.eval()
    shared: dict[
        str, tuple[Features, Features] | UserError
    ] = {}  # by the probe whose features they are
    bad: list[dict[str, Any]] = []

    def counted(values: dict[str, Any]) -> dict[str, Any]:
        for entry in bad:
            note(entry)
        total = int(ranks.sum(torch.tensor(len(bad))))
        bad.clear()
        return values | ({"bad": total} if total else {})

    try:
        for name in names:
            try:
                function = evaluator(name)
                if getattr(function, "on_features", False):
                    probe = probe_for(name, objective)
                    if probe not in shared:
                        shared[probe] = features(run, objective, probe, bad)
                    both = shared[probe]
                    if isinstance(both, UserError):
                        raise both
                    yield name, counted(function(*both, data.classes, ranks))
                else:
                    batches, count = eval_batches(run, data, ranks.rank, ranks.world)
                    looked = watched(Loader(batches, stop=count), bad, ranks)
                    yield name, counted(function(objective.probes, looked, data.classes, ranks))
            except UserError as e:  # on every rank alike
                for entry in bad:
                    note(entry)
                bad.clear()  # the next one reads them again
                yield name, e
    finally:
        objective.train(was)


def probe_for(name: str, objective: Objective) -> str:
    """The probe whose features an evaluator gets: an objective may have richer ones for
    linear probes (DINO's).
    """
    wanted = (["features_linear"] if name.startswith("linear") else []) + [
        "features",
        "encode_image",
    ]
    found = next((probe for probe in wanted if probe in objective.probes), None)
    if found is None:
        have = ", ".join(objective.probes)
        raise UserError(
            f"This objective has neither a probe 'features' nor 'encode_image' (it has {have}): "
            "evaluators on features cannot be had."
        )
    return found


def watched(batches: Iterable[Batch], bad: list[dict[str, Any]], ranks: Ranks) -> Iterator[Batch]:
    """The batches; ledger entries of samples that cannot be read are added to `bad`.

    On all ranks before the same batch it raises Leave, where one of them is asked to leave, or
    UserError, where one of them cannot read its share.
    """
    rest = iter(batches)
    while True:
        batch, fault = None, None
        try:
            with PHASES.within("evaluate.data"), requests.at_once():
                batch = next(rest)
        except StopIteration:
            return
        except Leave:
            pass
        except UserError as e:
            fault = e
        leave, failed = float(batch is None and fault is None), float(fault is not None)
        if ranks.world > 1:
            flags = torch.tensor([leave or float(requests.asked), failed])
            leave, failed = ranks.sum(flags).tolist()
        if leave:
            raise Leave
        if failed or batch is None:
            raise common_fault(fault, ranks) from fault
        bad += batch.bad
        yield batch


def common_fault(fault: UserError | None, ranks: Ranks) -> UserError:
    """What the first rank with a fault says, on every rank."""
    if fault is not None and ranks.world == 1:
        return fault
    texts = gathered_json(str(fault)[:TEXT] if fault is not None else "", ranks)
    return UserError(next((text for text in texts if text), "a rank cannot read its samples"))


def features(
    run: Run, objective: Objective, probe: str, bad: list[dict[str, Any]]
) -> tuple[Features, Features] | UserError:
    """(train, val) `Features` of this rank's shares, in tar order and as the evaluation reads them;
    or the UserError.
    """
    parts = []
    for train, key in ((True, "data.shards"), (False, "data.val_shards")):
        data = open_data(run, train)
        assert data is not None  # `each` has seen that there are validation samples
        ranks = objective.context.ranks
        batches, count = eval_batches(run, data, ranks.rank, ranks.world)
        loader = Loader(batches, stop=count, workers=run.system.workers if count >= AHEAD else 0)
        try:
            parts.append(extract(objective.probes[probe], watched(loader, bad, ranks), ranks, key))
        except UserError as e:
            return e
        except Leave:
            loader.abandon()
            raise
        finally:
            loader.close()
    train_features, val_features = parts
    return train_features, val_features


def scores(run: Run, objective: Objective, names: list[str]) -> dict[str, dict[str, Any]]:
    """All that `each` yields; empty where the run names no validation samples.

    Raises UserError where an evaluator lacks what it needs.
    """
    out = {}
    for name, result in each(run, objective, names):
        if isinstance(result, UserError):
            raise result
        out[name] = result
    return out


def evaluate(
    folder: AnyPath, names: list[str], run: Run | None = None, reading: Reading | None = None
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """`vtx evaluate`: evaluators on the newest checkpoint of a run folder, one after the other;
    a picture is the path of its file, and one that cannot be had is what it lacks.

    run: the recipe, of which the data may be others. reading: where and how it computes. Raises
    UserError for a name that is none and without validation samples, before weights are read.
    """
    run, reading = run or recipe_of(folder), reading or Reading()
    for name in names:
        evaluator(name)
    data = open_data(run, False)
    if data is None:
        raise UserError(f"{folder} names no validation samples: add data.val_shards=FOLDER.")
    check_codec(run, {"data.val_shards": coding(run, data)}, folder, False)
    opened = open_run(folder, reading.device, reading.precision)
    for name, values in each(
        run, opened.model, names or [e.name for e in run.evaluate] or ["zero_shot"]
    ):
        if not isinstance(values, UserError):
            pictures = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
            values = {k: v for k, v in values.items() if k not in pictures}
            if speaks():  # the other ranks keep none
                values |= {
                    k: keep_picture(folder, name, k, opened.step, v) for k, v in pictures.items()
                }
        yield name, values


def check_tokenizer(folder: AnyPath, trained: str, given: str) -> None:
    """Raises UserError for a tokenizer that gives other ids than the one a run was trained with."""
    if given != trained and tokenizer(given).fingerprint != tokenizer(trained).fingerprint:
        raise UserError(
            f"data.tokenizer={given} gives other ids than {trained}, with which {folder} was "
            "trained: leave it out."
        )


def keep_picture(folder: AnyPath, name: str, key: str, step: int, pixels: NDArray[np.uint8]) -> str:
    """uint8 (H, W, 3) as RUN/pictures/NAME-STEP.png; NAME-KEY-STEP.png where its key is
    not plainly "picture".
    """
    stem = name.replace(":", ".") + ("" if key == "picture" else f"-{key}")
    path = folder / "pictures" / f"{stem}-{step:08d}.png"
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "png")
    storage_of(path.parent).put(path.name, body.getvalue())
    return str(path)


def run(args: argparse.Namespace) -> int:
    folder = place_at(args.folder)
    reading = reading_of(args.keys, also=("system.workers", "data."))
    if (reading.world or 1) > 1 and not is_rank():
        return run_together(args.words, reading.world or 1)
    rest = [key for key in args.keys if key.partition("=")[0] not in KEYS]
    trained = recipe_of(folder)
    recipe = override.override(trained, rest)
    check_tokenizer(folder, trained.data.tokenizer, recipe.data.tokenizer)
    lacking = None
    names = [n for n in args.names.split(",") if n]
    for name, values in evaluate(folder, names, recipe, reading):
        if isinstance(values, UserError):
            lacking = lacking or values
        elif args.json:
            print_json({"name": name, **values})
        else:
            print_values(name, values)
    if lacking is not None:  # after all that can be had
        raise lacking
    return 0
