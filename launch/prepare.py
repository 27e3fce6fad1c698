"""What happens before the first rank starts: what cannot be is refused, the data is indexed,
run.json is written.

No torch.
"""

from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.launch import checks, run_folder
from vtx_scale.launch.datasets import DataSet, fingerprint_of, hash_of, open_data, training_data
from vtx_scale.specs.network import networks_of
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def refuse(run: Run, folder: Path, world: int) -> DataSet:
    """The training samples of a run that can be.

    Raises UserError for one that cannot; nothing has been written then.

    run: resolved, so that a teacher's run or a palette's file has said what it knows.
    """
    checks.check(run)
    checks.check_micro_batch(run, world)
    for misfit in run.objective.misfits():
        raise UserError(f"objective.{misfit}")
    if not run_folder.begun(folder):  # a run that has begun has them in its checkpoints
        check_sources(run)
    check_vocabulary(run)
    parts = (run.objective, *networks_of(run.objective).values())
    if any(not part.build.startswith("vtx_scale.") for part in parts):
        from vtx_scale.launch.strangers import check_buildable

        check_buildable(run)
    data = training_data(run, say)
    if run.evaluate and open_data(run, False, say) is None:
        say(f"no data.val_shards: {', '.join(e.name for e in run.evaluate)} will be left out")
    return data


def prepare_folder(run: Run, folder: Path, data: DataSet, fork: bool = False) -> None:
    """Write run.json, or see that the folder's run is this one. Raises UserError."""
    (folder / "control" / "stop").unlink(missing_ok=True)  # a request to the start before this one
    run_folder.prepare(run, folder, fingerprint_of(run, data), hash_of, fork)


def check_sources(run: Run) -> None:
    """Raises UserError where a file or folder that values come from is not there."""
    sources = {"init.from": run.init.from_}
    sources |= {
        f"objective.{part.source}": getattr(run.objective, part.source)
        for part in run.objective.pretrained
    }
    for key, source in sources.items():
        if source and not Path(source).exists():
            raise UserError(f"{key}={source}: there is no such file or folder.")


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
