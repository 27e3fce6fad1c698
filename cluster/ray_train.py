"""A worker function on every rank, under Ray Train v2:
started, watched, started again when one dies, ended together.

The worker finds the variables of torchrun in its environment (on a cluster of our own VTX_MEET in
place of an address) and meets the others by itself, so that it is the same under every launcher. It
runs in a thread of an actor: it must install no signal handlers. It returns `Ended` where the run
is over by decision and raises `Died` where it should be started again. Everything of Ray that is
not stable API is imported at the top of this file; tests/cluster imports each name.
"""

import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from vtx_scale.cluster.job import Died, Ended, Event, GaveUp, Job
from vtx_scale.cluster.policy import Failures, after_failure, give_up
from vtx_scale.data_pipeline.errors import UserError

GRACE = 10.0  # seconds that the other ranks have to follow one that ended by decision
LOOK = 0.3  # seconds between two looks of the driver


# Ray says no types of these
own_address: Callable[[], str] = ray.util.get_node_ip_address
resources: Callable[[], dict[str, float]] = ray.cluster_resources


@contextmanager
def connected(address: str, home: Path | None, cpus: int, env: Mapping[str, str]) -> Iterator[None]:
    """This process in a given cluster, or in one of its own (loopback;
    its files in `home`), until the block ends.

    `env` is for the workers. Raises UserError where no cluster answers, GaveUp where our own
    does not start.
    """
    options: dict[str, Any] = {"address": address}
    if home is not None:
        options |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
            "_temp_dir": str(home),
        }
    with quiet():
        try:
            if home is None:
                knock(address)
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": dict(env)},
                **options,
            )
        except Exception as e:
            ray.shutdown()
            if home is not None:
                raise GaveUp(f"Ray did not start on this machine ({first_line(e)})") from e
            raise UserError(
                f"No Ray cluster lets us in at --address={address} ({first_line(e)}): see "
                "that its head runs and that this machine is a part of it ('ray start'), or "
                "leave --address out."
            ) from e
        try:
            yield
        finally:
            ray.shutdown()


def knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray takes half a minute to find out."""
    host, _, port = address.rpartition(":")
    if host:
        # Ray means this machine's address by that
        local = host in ("localhost", "127.0.0.1", "[::1]")
        where = own_address() if local else host.strip("[]")
        socket.create_connection((where, int(port)), 5).close()


@contextmanager
def quiet() -> Iterator[None]:
    """Errors alone on stderr, and nothing on stdout, where Ray prints its guesses about every
    worker that died.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        yield


def run(job: Job, home: Path | None) -> Iterator[Event | None]:
    """Events until the workers have ended, None where nothing happened for a moment.

    Raises GaveUp.
    """
    gpus = int(resources().get("GPU", 0)) if job.gpus else 0
    world = job.world or max(1, gpus)
    if home is not None and 0 < gpus < world:
        raise UserError(
            f"system.world={world}, but this machine has {gpus} GPUs: "
            "lower it, or add system.device=cpu."
        )
    with tempfile.TemporaryDirectory(prefix="vtx-train-", dir=home) as folder:
        events = Path(folder) / "events"
        events.touch()
        watch: Any = Watch(events, job.saved, job.failures)
        limits = FailureConfig(max_failures=job.failures, controller_failure_limit=job.failures)
        # a fresh name: under one that it knows, Ray would go on with its own record of an old run
        config: Any = RunConfig(
            name=secrets.token_hex(4), storage_path=folder, callbacks=[watch], failure_config=limits
        )
        trainer = DataParallelTrainer(
            job.worker,
            train_loop_config=job.payload,
            run_config=config,
            backend_config=Torchrun(str(home or "")),
            scaling_config=ScalingConfig(num_workers=world, use_gpu=gpus > 0),
        )
        raised: list[BaseException] = []
        # the main thread has the signals
        thread = threading.Thread(target=fit, args=(trainer, raised), daemon=True)
        thread.start()
        last: Event | None = None
        with events.open() as lines:
            while True:
                alive = thread.is_alive()
                for line in lines:
                    last = event_of(json.loads(line))
                    yield last
                if not alive:
                    break
                yield None
                thread.join(LOOK)
        if last is None or last.kind != "ended":
            raise GaveUp(reason(raised))


def event_of(row: dict[str, Any]) -> Event:
    return Event(**{**row, "codes": {int(rank): code for rank, code in row["codes"].items()}})


def fit(trainer: DataParallelTrainer, raised: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as e:
        raised.append(e)


def reason(raised: list[BaseException]) -> str:
    """Why there is no end, in one sentence."""
    e = raised[0] if raised else None
    inner = getattr(e, "controller_failure", e)
    return str(inner) if isinstance(inner, GaveUp) else f"Ray could not go on ({first_line(inner)})"


@dataclass
class Torchrun(BackendConfig):
    """Gives the workers what torchrun would, and nothing else:
    they join their process group themselves.
    """

    # a folder that all workers see: they meet in a file there, and nothing listens
    # beyond the loopback
    meet: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return TorchrunVariables


class TorchrunVariables(Backend):
    share_cuda_visible_devices = True  # LOCAL_RANK numbers the devices of the node

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, Torchrun)
        if backend_config.meet:
            folder = tempfile.mkdtemp(prefix="meet-", dir=backend_config.meet)
            where = {"VTX_MEET": f"file://{folder}/store"}
        else:
            where = worker_group.execute_single(0, master)
        workers = worker_group.get_workers()
        calls = []
        for i, worker in enumerate(workers):
            at = worker.distributed_context
            ranks = {
                "RANK": at.world_rank,
                "WORLD_SIZE": len(workers),
                "LOCAL_RANK": at.local_rank,
                "LOCAL_WORLD_SIZE": at.local_world_size,
                "NODE_RANK": at.node_rank,
            }
            calls.append(worker_group.execute_single_async(i, set_variables, ranks | where))
        ray.get(calls)


def master() -> dict[str, Any]:
    """Where rank 0 will listen.

    Somebody else may take the port until then: that start fails and the next goes on.
    """
    with socket.socket() as s:
        s.bind(("", 0))
        return {"MASTER_ADDR": own_address(), "MASTER_PORT": s.getsockname()[1]}


def set_variables(variables: Mapping[str, Any]) -> None:
    os.environ.update({k: str(v) for k, v in variables.items()})


class Watch(WorkerGroupCallback):
    """Lives in Ray's controller, on the driver's node:
    tells the driver, and ends what Ray would repeat for ever.
    """

    def __init__(self, events: Path, saved: Callable[[], int], allowed: int) -> None:
        self.events, self.saved, self.allowed = events, saved, allowed
        self.failures = Failures(best=saved())
        self.decided = float("inf")  # when the first rank ended by decision

    def send(self, event: Event) -> None:
        with self.events.open("a") as f:
            f.write(json.dumps(asdict(event)) + "\n")

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self.decided = float("inf")
        self.send(Event("asked"))

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.send(Event("started"))

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        statuses = worker_group_status.worker_statuses
        ended = {
            rank: s.return_value
            for rank, s in statuses.items()
            if isinstance(s.return_value, Ended)
        }
        errors = worker_group_status.errors
        stopped = any(e.code for e in ended.values())
        if stopped:
            self.decided = min(self.decided, time.monotonic())
        if len(ended) == len(statuses) or (
            stopped and (errors or time.monotonic() > self.decided + GRACE)
        ):
            message = next((e.message for e in ended.values() if e.code and e.message), "")
            self.send(Event("ended", message, codes={rank: e.code for rank, e in ended.items()}))
            if len(ended) < len(statuses):
                raise GaveUp("some ranks ended by decision")  # Ray would start all of them again
        elif errors:
            saved = self.saved()
            self.failures = after_failure(self.failures, saved)
            why = give_up(self.failures, self.allowed)
            if why is not None:
                raise GaveUp(f"{why}: {cause(errors)}")
            self.send(Event("failed", cause(errors), saved=saved, failures=self.failures.total))


def cause(errors: Mapping[int, Exception]) -> str:
    """What happened first, as far as one can tell: a lost rank takes the others with it."""
    lost = {rank: e for rank, e in errors.items() if not isinstance(e, Died)}
    rank, e = next(iter((lost or errors).items()))
    if not lost:
        return f"rank {rank}: {e}"
    if "low on memory" in str(e):
        return f"rank {rank} was ended because its machine ran out of memory"
    return f"rank {rank} died"


def first_line(e: BaseException | None) -> str:
    return next(iter(str(e).strip().splitlines()), type(e).__name__)
