"""`vtx submit`: the same worker on the machines of a Ray cluster, started again when a process or a
machine dies.

This process holds the run folder and speaks to the user; what the workers say comes through
the folder's log.txt.
"""

import contextlib
import math
import os
import time

from vtx_scale.checkpoints.lease import Words
from vtx_scale.cluster.job import GaveUp, Job, Limits
from vtx_scale.cluster.ray_settings import settings
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import on_node, override, recipes, run_folder
from vtx_scale.launch.banner import Banner
from vtx_scale.launch.datasets import resolve_epochs
from vtx_scale.launch.paths import absolute
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.rounds import newest
from vtx_scale.launch.tail import Lines
from vtx_scale.specs.run import Run
from vtx_scale.trainer.control import stop_file
from vtx_scale.trainer.leave import Leave, requests
from vtx_scale.trainer.output import Ledger, guarded_stderr, say, send_rest

SILENCE = 20.0  # seconds; less where collectives have less time


def submit(
    run: Run,
    folder: AnyPath,
    address: str,
    patience: float = math.inf,
    debug: bool = False,
    silent: Words | None = None,
) -> int:
    """Train until the end, or until SIGTERM, SIGUSR1 or Ctrl-C asks to save and leave (75);
    a second one ends the run at once.

    address: "local" for a Ray of its own, "auto" or HOST:PORT to join one. patience: minutes to
    wait for machines. silent: see `lease.acquire`. Raises UserError for wrong input.
    """
    if not patience >= 0:
        raise UserError(f"--patience={patience:g}: give 0 or more minutes.")
    folder = folder.resolve()
    requests.announces, requests.patience = False, math.inf
    requests.repeated = lambda number: None
    with guarded_stderr(), requests.listen():
        try:
            return prepared(run, folder, address, patience, debug, silent)
        except Leave:
            say("vtx: asked to leave before the first step: run the same command again.")
            return 75


def prepared(
    run: Run,
    folder: AnyPath,
    address: str,
    patience: float,
    debug: bool,
    silent: Words | None,
) -> int:
    """Prepare the folder, then train."""
    lease = None
    try:
        with requests.at_once():
            plain = absolute(run)  # every machine resolves it: toy data is made on each
            run, banner = resolve_epochs(resolve_data(run, say, folder), say), Banner("", say)
            data = refuse(run, folder, run.system.least, lambda: banner.recipe(run))
            banner.data(run, data.n)
            lease = run_folder.acquire_lease(folder, silent=silent)
            prepare_folder(run, folder, data)
            banner.keep(folder)
        requests.stop_file = stop_file(folder)
        return on_ray(plain, folder, address, patience, debug, lease)
    except GaveUp as e:
        Ledger(folder).write(kind="gave_up", reason=str(e), step=newest(folder), time=time.time())
        say(f"vtx: {e}")
        return 1
    finally:
        send_rest()
        if lease is not None:
            lease.close()


def on_ray(
    run: Run,
    folder: AnyPath,
    address: str,
    patience: float,
    debug: bool,
    lease: run_folder.Held,
) -> int:
    """The exit code of the run. Raises GaveUp where it cannot go on, UserError where no cluster
    answers, or a machine lacks what the run needs.
    """
    payload = {
        "recipe": override.to_dict(run),
        "folder": str(folder),
        "paths": recipes.STRANGERS,
        "debug": debug,
        "environment": worker_environment(run),
    }
    with settings(address) as home:
        say("starting Ray on this machine" if home else f"joining the Ray cluster at {address}")
        # Ray reads its settings when it is imported
        from vtx_scale.cluster.ray_nodes import Cluster, connected
        from vtx_scale.launch.driver import Driver

        system, here = run.system, os.cpu_count() or 1
        cpus = system.worlds[1] if system.worlds else here
        job = Job(on_node.start, payload, system.device != "cpu")
        limits = Limits(silence=min(SILENCE, system.timeout))
        with connected(address, home, cpus), Cluster(job, limits, home) as cluster:
            gpus = cluster.total("GPU") if cluster.kind == "GPU" else 0
            if home is not None and 0 < gpus < system.least:
                raise UserError(
                    f"system.world={system.world}, but this machine has {gpus} GPUs: "
                    "lower it, or add system.device=cpu."
                )
            if home is not None and not gpus and cpus > here:
                say(crowded(cpus, here))
            news = News(folder / "log.txt", debug)
            memory = run.checkpoint.memory != 0
            driver = Driver(
                cluster, system, folder, lease, patience, memory, news.show, news.written
            )
            return driver.drive()


def crowded(ranks: int, cpus: int) -> str:
    """That a machine of our own cluster has fewer CPUs than ranks."""
    have = "1 CPU" if cpus == 1 else f"{cpus} CPUs"
    return f"up to {ranks} ranks share the {have} of this machine, and its memory"


class News:
    """The new lines of log.txt, for the terminal. written: those that it has heard already."""

    def __init__(self, path: AnyPath, debug: bool) -> None:
        self.lines, self.debug = Lines(path), debug
        self.written: set[str] = set()

    def show(self) -> None:
        """What has come; nothing where a bucket does not answer."""
        with contextlib.suppress(OSError):
            for line in self.lines.new():
                date, _, rest = line.partition(" ")
                clock, _, text = rest.partition(" ")
                if len(date) == 10 and len(clock) == 8 and date[:4].isdigit():
                    if text not in self.written:
                        say(text)
                elif self.debug:  # a traceback
                    say(line)


def worker_environment(run: Run) -> dict[str, str]:
    """What the workers' environment needs and a cluster's nodes do not have."""
    ours = {
        k: v
        for k, v in os.environ.items()
        if k.startswith("VTX_") and k not in ("VTX_PARENT", "VTX_MEET")
    }
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(run.system.threads)), **ours}
