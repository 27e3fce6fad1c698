"""What happens before the first rank starts: what cannot be is refused, the data is indexed,
run.json is written.

No torch.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256

from vtx_scale.checkpoints.format import sha256_file, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.data_pipeline.text import tokenizer, tokenizer_file
from vtx_scale.launch import checks, run_folder
from vtx_scale.launch.amendments import plan
from vtx_scale.launch.class_counts import class_misfits
from vtx_scale.launch.datasets import (
    DataSet,
    coding,
    fingerprint_of,
    hash_of,
    open_data,
    thin_sources,
    training_data,
)
from vtx_scale.launch.decided import read
from vtx_scale.launch.outside import TOKENIZER, Entry, copy_of, held
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at, shards_at
from vtx_scale.launch.pretrained import absent
from vtx_scale.specs.network import networks_of
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def refuse(
    run: Run, folder: AnyPath, world: int, before: Callable[[], None] = lambda: None
) -> DataSet:
    """The training samples of a run that can be.

    Raises UserError for one that cannot; nothing has been written then.

    run: resolved, so that a teacher's run or a palette's file has said what it knows. before: is
    called when nothing stands against it as far as that is known without its samples.
    """
    checks.check(run)
    checks.check_strategy(run, world)
    checks.check_micro_batch(run, run.system.sharers(world))
    check_steps(run, folder)
    plan(run, read(folder))
    for misfit in run.objective.misfits():
        raise UserError(f"objective.{misfit}")
    if not run_folder.begun(folder):  # a run that has begun has them in its checkpoints
        check_sources(run)
    check_vocabulary(run)
    if run.checkpoint.best:
        from vtx_scale.launch.retention import stays

        stays(run, folder)  # it knows whether its evaluator has such a number
    parts = (run.objective, *networks_of(run.objective).values())
    if any(not part.build.startswith("vtx_scale.") for part in parts):
        from vtx_scale.launch.strangers import check_buildable

        check_buildable(run)
    if (axis := run.system.axis(world)) > 1:
        from vtx_scale.launch.build import check_cuts

        check_cuts(run, axis, say)
    for shards in [s.shards for s in run.data.sources] or [run.data.shards]:
        shards_at(shards)
    before()
    data = training_data(run, say)
    places = [s.shards for s in run.data.sources] or [run.data.shards]
    listed = {at: source.listed for at, source in zip(places, data.sources, strict=True)}
    told = class_misfits(run, listed, run_folder.begun(folder))
    for sentence in (*told, *thin_sources(run, data)):
        say(sentence)
    val = open_data(run, False, say) if run.evaluate else None
    if run.evaluate and val is None:
        names = ", ".join(e.name for e in run.evaluate)
        say(
            f"no data.val_shards: {names} will be left out; data.hold_out=0.05 keeps a share of "
            "the samples for it"
        )
    if run.stop.patience and val is None:
        raise UserError(
            f"stop.number={run.stop.number} needs validation samples: add data.val_shards=FOLDER."
        )
    refuse_codes(run, folder, data, val)
    return data


def refuse_codes(run: Run, folder: AnyPath, data: DataSet, val: DataSet | None) -> None:
    """Raises UserError where shards hold codes of another codec than the run's."""
    codings = {"data.shards": coding(run, data), "data.val_shards": coding(run, val)}
    if any(codings.values()):
        from vtx_scale.launch.codec import check_codec, codec_part

        begun = run_folder.begun(folder)  # it has the codec in its checkpoints
        source = getattr(run.objective, codec_part(run.objective).source)
        check_codec(run, codings, folder if begun else place_at(source), begun)


def prepare_folder(run: Run, folder: AnyPath, data: DataSet, fork: bool = False) -> Run:
    """Write run.json, or see that the folder's run is this one; the run as it is trained, with the
    tokenizer that lies in the folder. Raises UserError.
    """
    (folder / "control" / "stop").unlink(missing_ok=True)  # a request to the start before this one
    entry = tokenizer_entry(run, folder)
    run_folder.prepare(
        run,
        folder,
        fingerprint_of(run, data),
        hash_of,
        fork,
        entry,
        partial(keep_tokenizer, run, folder, entry),
    )
    if (folder / "tokenizer").is_dir():  # what a fork has left behind
        for path in (folder / "tokenizer").iterdir():
            if path.is_file() and f"tokenizer/{path.name}" != (entry or {}).get("file"):
                path.unlink(missing_ok=True)
    return held(run, folder, run_folder.outside_of(folder))


def tokenizer_entry(run: Run, folder: AnyPath) -> Entry | None:
    """What a run keeps of its tokenizer; None of one that has no file.

    Raises UserError where the file is not there.
    """
    path, known = tokenizer_file(run.data.tokenizer), run_folder.outside_of(folder).get(TOKENIZER)
    if path is None:
        return None
    here = folder.absolute() / "tokenizer"
    if known is not None and path == copy_of(folder, known):
        return known
    digest, name = sha256_file(path), path.name
    if (here / name).exists() and sha256((here / name).read_bytes()).hexdigest() != digest:
        name = f"{digest[:8]}-{name}"  # run.json still names the other one
    return {"path": run.data.tokenizer, "digest": digest, "file": f"tokenizer/{name}"}


def keep_tokenizer(run: Run, folder: AnyPath, entry: Entry | None) -> None:
    """Copy the tokenizer's file into the run folder, byte for byte, unless it is there.

    Raises UserError where it changed since it was looked at.
    """
    path = tokenizer_file(run.data.tokenizer)
    if entry is None or path is None or (folder / entry["file"]).exists():
        return
    body = path.read_bytes()
    if sha256(body).hexdigest() != entry["digest"]:
        raise UserError(f"{path} is being written: wait for that, and start again.")
    storage_of(folder).put(entry["file"], body)


def check_steps(run: Run, folder: AnyPath) -> None:
    """Raises UserError where a run has gone further than it should go."""
    at = max(steps(checkpoints_of(folder)), default=0)
    if run.steps < at:
        raise UserError(
            f"steps={run.steps}: {folder} has a checkpoint of step {at}; give more steps than "
            "that, or another --run folder."
        )


def check_sources(run: Run) -> None:
    """Raises UserError where a file or folder that values come from is not there."""
    sources = {"init.from": run.init.from_}
    sources |= {
        f"objective.{part.source}": getattr(run.objective, part.source)
        for part in run.objective.pretrained
    }
    for key, source in sources.items():
        if source and not place_at(source).exists():
            raise UserError(absent(key, source))


def check_vocabulary(run: Run) -> None:
    """Raises UserError where the tokenizer has another number of ids than the network."""
    field = run.objective.vocabulary
    if not field:
        return
    have = tokenizer(run.data.tokenizer).vocab
    wanted: object = run.objective
    for name in field.split("."):
        wanted = getattr(wanted, name)
    if have != wanted:
        key = f"objective.{field}"
        raise UserError(
            f"data.tokenizer={run.data.tokenizer} has {have} ids and {key} is {wanted}: "
            f"set {key}={have}."
        )
