"""What every process of a run does, under `vtx train`, torchrun, srun and Ray alike:
join, assemble, restore, fit, exit code.

0 finished 2 wrong input 3 not finite 4 out of memory 75 asked to leave, saved 1 anything else
"""

import contextlib
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from vtx_scale.data_pipeline import fork_server
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.parent import die_with_parent, leave_with_parent
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import (
    override,
    recipes,
    run_folder,
    torchrun,
)
from vtx_scale.launch.banner import Banner
from vtx_scale.launch.beats import BEGAN, Heart
from vtx_scale.launch.datasets import resolve_epochs
from vtx_scale.launch.estimate import system_line
from vtx_scale.launch.fit import fit
from vtx_scale.launch.outside import held
from vtx_scale.launch.parts import assemble, restore_or_initialise
from vtx_scale.launch.places import place_at
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.process import (
    device_of,
    init_process_group,
    keep_traceback,
    keep_words,
    leave_process_group,
    rank_and_world,
    speaks,
)
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.sharing import let_go, share_opened
from vtx_scale.launch.signs import Signs
from vtx_scale.specs.run import Run
from vtx_scale.trainer.control import Control, Elsewhere, NotFinite
from vtx_scale.trainer.goodput import TIMES
from vtx_scale.trainer.leave import Leave, requests
from vtx_scale.trainer.loop import Drifted
from vtx_scale.trainer.output import (
    append_text,
    code_of,
    guarded_stderr,
    open_missing_descriptors,
    say,
    send_rest,
    sentence,
)

RUNS: list[str] = []  # that this process has worked on


def work(
    run: Run,
    folder: AnyPath,
    *,
    fork: bool = False,
    debug: bool = False,
    prepare: bool = False,
    message: Callable[[str], None] = say,
    epoch: int = 0,
) -> int:
    """One rank from start to exit code; a sentence to `message` in place of a
    traceback unless `debug`.

    prepare: no launcher of ours has prepared the folder, rank 0 does. epoch: of the lease that
    a launcher of ours holds on it, 0 for none.
    """
    if RUNS:  # a process that trains again begins anew
        PHASES.reset()
    elif began := os.environ.get(BEGAN):
        PHASES.reset(float(began))
    RUNS.append(str(folder))
    with guarded_stderr(), requests.listen(), contextlib.closing(Heart(rank_and_world()[0])):
        code, text = outcome(lambda: train(run, folder, fork, prepare, epoch), folder, debug)
        keep_words(text)
        if text and (message is not say or speaks(code)):
            message(f"vtx: {text}")
        TIMES.close(code)
        send_rest()
        torchrun.tell(code)
        return code


def outcome(attempt: Callable[[], int], folder: AnyPath, debug: bool) -> tuple[int, str]:
    """(exit code, the sentence that says why, "" where there is nothing to say)."""
    try:
        return attempt(), ""
    except Leave:
        return 75, "asked to leave, and no step is lost by it: run the same command again."
    except UserError as e:
        code, text = 2, str(e)
    except Elsewhere as e:
        return e.code, ""
    except NotFinite as e:
        code, text = 3, str(e)
    except (torch.cuda.OutOfMemoryError, MemoryError) as e:
        first = str(e).splitlines()[0] if str(e) else "host"
        code, text = (
            4,
            (
                f"out of memory ({first}): lower system.micro_batch, set system.recompute=full, "
                "or use system.strategy=fsdp on more ranks."
            ),
        )
    except Drifted as e:
        code, text = 1, str(e)
    except OSError as e:
        code, text = 1, sentence(e)
    except Exception as e:
        if requests.asked and not requests.unsaved():  # a peer has left already
            return 75, ""
        code, text = 1, f"{type(e).__name__}: {e} (log.txt has the traceback; --debug shows it)"
        keep_traceback(folder)
    if debug:
        traceback.print_exc()
    return code, text


def train(run: Run, folder: AnyPath, fork: bool, prepare: bool, epoch: int) -> int:
    """One rank from start to end; the exit code where no exception says another."""
    if "VTX_PARENT" in os.environ:
        die_with_parent(int(os.environ["VTX_PARENT"]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        leave_with_parent()
        torchrun.watch(run.system.timeout)
    rank, world = rank_and_world()
    control = Control(folder, rank, run.system.skip_limit)
    lease = shared = signs = None
    try:
        with control.at_once():
            device = device_of(run.system)
            with PHASES.within("start.rendezvous"):
                init_process_group(run.system, device, rank, world)
                if prepare:
                    run, lease, epoch = join(run, folder, fork, rank, world)
                shared = share_opened(run, device) if world > 1 else None
            run_folder.send_while_held(folder, epoch)
        if rank == 0:
            tell = partial(tell_people, folder)
            if os.environ.get("VTX_ROUND", "1") == "1":  # behind a fault nobody waits for it
                # the objective runs on the meta device, for as long as it takes
                with PHASES.within("start.load"), control.at_once():
                    tell(system_line(run, device, world))
            signs = Signs(tell)
        while (code := attempt(run, folder, device, world, control, epoch, signs)) is None:
            requests.unsaved = lambda: False  # what was computed is abandoned, and let go
            control.skipped = 0
            gc.collect()
        return code
    finally:
        if signs is not None:
            signs.close()
        if shared is not None:
            let_go(shared)
        if lease is not None:
            lease.close()
        leave_process_group(well=sys.exc_info()[0] is None)


def tell_people(folder: AnyPath, line: str) -> None:
    """A line of rank 0, before there is a `Log`."""
    say(line)
    append_text(folder, line)


def attempt(
    run: Run,
    folder: AnyPath,
    device: torch.device,
    world: int,
    control: Control,
    epoch: int,
    signs: Signs | None,
) -> int | None:
    """From the newest checkpoint on; the exit code, None where it was decided to go back."""
    with PHASES.within("start.load"), control.at_once():
        parts = assemble(run, folder, device, world, control)
        parts.epoch = epoch
        restored = restore_or_initialise(parts)
    code = fit(parts, restored, signs)
    parts.strategy.close()  # not after an error: it waits for the device, and a peer may be gone
    return code


def join(
    run: Run, folder: AnyPath, fork: bool, rank: int, world: int
) -> tuple[Run, run_folder.Held | None, int]:
    """What `vtx train` would have done before it started ranks: on rank 0, while the others wait;
    the run, the lease where it is rank 0 that holds it, and its epoch.
    """
    lease, fault, epoch = None, None, 0
    with contextlib.ExitStack() as taken:  # whatever ends this gives the lease back
        if rank == 0:
            try:
                banner = Banner("", say)
                banner.lines.append("")  # its first line was said before torch was imported
                run = resolve_epochs(resolve_data(run, say, folder), say)
                data = refuse(run, folder, world)
                banner.data(run, data.n)
                lease = taken.enter_context(run_folder.acquire_lease(folder))
                prepare_folder(run, folder, data, fork)
            except (UserError, OSError) as e:
                fault = e
            epoch = -1 if fault is not None or lease is None else lease.epoch
        if world > 1:
            common = torch.tensor([epoch])
            with PHASES.collective():
                dist.broadcast(common, 0)
            epoch = int(common.item())
            if epoch < 0 and fault is None:
                raise Elsewhere(2)
        if isinstance(fault, OSError) and code_of(fault) == 2:
            raise UserError(sentence(fault)) from fault
        if fault is not None:
            raise fault
        resolved = replace(resolve_epochs(resolve_data(run, folder=folder)), system=run.system)
        run = held(resolved, folder, run_folder.outside_of(folder))
        taken.pop_all()
    return run, lease, epoch


def begin_loaders(run: Run) -> None:
    """Fork the server of a rank's loader processes, before this process has a device or threads."""
    if run.system.workers:
        with requests.without_thread():
            fork_server.begin()


def main(argv: list[str]) -> int:
    """`python -m vtx_scale.launch.worker REQUEST.json`: one rank of `vtx_scale.launch.node`."""
    requests.repeated = lambda number: None  # the launcher hears of it too, and ends its ranks
    request = json.loads(Path(argv[0]).read_text())
    recipes.let_import(request["paths"])
    run = override.from_dict(request["recipe"])
    begin_loaders(run)
    return work(
        run,
        place_at(request["folder"]),
        debug=request["debug"],
        epoch=request["epoch"],
    )


if __name__ == "__main__":
    open_missing_descriptors()
    code = main(sys.argv[1:])
    fork_server.clear()
    os._exit(code)  # daemon threads of libraries must not hold up the end
