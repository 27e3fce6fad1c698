"""`vtx train`: become one rank where a launcher says so,
else prepare the folder and start as many as the system wants.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vtx_scale.cluster.policy import admit
from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.signals import INTERRUPTION
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import opened, override, recipes, run_folder
from vtx_scale.launch.banner import Banner
from vtx_scale.launch.datasets import resolve_epochs
from vtx_scale.launch.local import launch
from vtx_scale.launch.next_step import next_step, offer, scoring
from vtx_scale.launch.node import keeps_warm
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.signs import Signs
from vtx_scale.launch.warm import Warm
from vtx_scale.specs.run import Run, System
from vtx_scale.trainer.leave import Leave, requests
from vtx_scale.trainer.output import guarded_stderr, say, send_rest, silent


def train(
    run: Run,
    folder: AnyPath,
    fork: bool = False,
    debug: bool = False,
    name: str = "",
    words: Sequence[str] = (),
    yes: bool = False,
) -> int:
    """Train until the end, or go on with the run that is in the folder; the exit code.

    name: of the recipe, for people. words: of the command line, for what a refusal offers. yes:
    shards are made of what are none.

    Raises UserError for wrong input that is seen before a rank starts.
    """
    speak = say if os.environ.get("RANK", "0") == "0" else silent
    with guarded_stderr(), requests.listen():
        try:
            if yes:
                run = shards_here(run)  # it forks, and the signs are a thread
            with contextlib.closing(Signs(speak)) as signs:
                code = prepared(run, folder.resolve(), fork, debug, Banner(name, speak), signs)
            if not code and words and "RANK" not in os.environ and (then := scoring(run)):
                next_step(then[0], str(folder), *then[1:])
            return code
        except NotShards as fault:
            raise offer(fault, run, words) from None
        except Leave:
            say("vtx: asked to leave before the first step: run the same command again.")
            return 75


def shards_here(run: Run) -> Run:
    """The run on shards that this process makes of its data. Raises UserError in one of the
    processes of another launcher.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise UserError("--yes makes shards in one process: leave it out, and 'vtx data build'.")
    from vtx_scale.launch.raw_shards import shards_made  # it decodes pictures

    with requests.at_once():
        return shards_made(run, say)


def prepared(
    run: Run, folder: AnyPath, fork: bool, debug: bool, banner: Banner, signs: Signs
) -> int:
    """Prepare the folder, then train."""
    opened.forget()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        banner.recipe(run)
        return in_this_process(run, folder, fork, debug, None, signs)
    signs.doing = "opening the data"
    lease = warm = None
    try:
        with PHASES.within("start.load"), requests.at_once():
            run = resolve_data(run, say, folder)
            if run.epochs is not None:
                banner.recipe(run)
                run = resolve_epochs(run, say)
            world = world_of(run.system)
            if world > 1 and keeps_warm(run.system.spare):
                with INTERRUPTION.held():
                    warm = Warm()  # it imports while the data is looked at
            data = refuse(run, folder, world, lambda: banner.recipe(run))
            banner.data(run, data.n)
            lease = run_folder.acquire_lease(folder)
            run = prepare_folder(run, folder, data, fork)
            banner.keep(folder)
        if world == 1:
            return in_this_process(run, folder, False, debug, lease, signs)
        signs.close()  # the first rank has its own
        return in_processes(run, folder, world, debug, lease.epoch, warm)
    finally:
        if warm is not None:
            warm.close()
        send_rest()
        if lease is not None:
            lease.close()


def in_this_process(
    run: Run,
    folder: AnyPath,
    fork: bool,
    debug: bool,
    lease: run_folder.Held | None,
    signs: Signs,
) -> int:
    """This process is a rank; lease: None where another launcher started it."""
    signs.doing = "importing torch"
    # torch: a launcher of many ranks and a refusal do without
    from vtx_scale.launch.worker import begin_loaders, work

    signs.close()  # a thread of its own, which no fork may meet
    with contextlib.nullcontext() if lease is None else lease.lease.without_thread():
        begin_loaders(run)
    epoch = 0 if lease is None else lease.epoch
    return work(run, folder, fork=fork, debug=debug, prepare=lease is None, epoch=epoch)


def in_processes(
    run: Run, folder: AnyPath, world: int, debug: bool, epoch: int, warm: Warm | None
) -> int:
    """Processes of their own are the ranks; what they must know stands in a file
    while they live.
    """
    body = {
        "recipe": override.to_dict(run),
        "folder": str(folder),
        "debug": debug,
        "paths": recipes.STRANGERS,
        "epoch": epoch,
    }
    with tempfile.TemporaryDirectory(prefix="vtx-request-") as asked:
        request, kept = Path(asked) / "request.json", Path(asked) / "opened"
        request.write_text(json.dumps(body))
        kept.mkdir()
        opened.keep(kept, run.data.hold_out)
        environment, limit = {opened.KEPT: str(kept)}, run.system.timeout
        return launch(request, folder, world, say, environment, warm, timeout=limit, epoch=epoch)


def world_of(system: System) -> int:
    """How many processes: as said, of a range as many as there are GPUs for, else the fewest.

    Raises UserError for none.
    """
    if system.world == 0:
        raise UserError("system.world=0: give the number of processes, 1 or more.")
    if system.worlds is None:
        return automatic_world()
    low, high = system.worlds
    if low == high:
        return low
    here = automatic_world() if system.device != "cpu" else 1
    return admit(here, low, high, system.unit) or system.least


def automatic_world() -> int:
    """A process for each GPU, else one."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        return 1
    import torch  # a machine with GPUs alone is asked how many

    return max(1, torch.cuda.device_count())
