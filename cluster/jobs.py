"""Ray's Jobs API of one cluster, by Ray's own client: over HTTP alone, so that nothing of Ray has
to run on this machine.

What Ray's client leaves to chance is settled here: it waits for ever for an address that is
silent, prefers RAY_ADDRESS to the address that it is given, and answers with tracebacks.
"""

import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from vtx_scale.cluster.ray_settings import DRIVER_CPUS
from vtx_scale.cluster.token import token, token_file
from vtx_scale.data_pipeline.errors import UserError

LIMIT = 3.0  # seconds for an address to answer at all
PATIENCE = 60.0  # seconds for any answer after that
STOP_WAIT = 300  # seconds between Ray's SIGTERM and its SIGKILL: a save must fit in
ALIVE = ("PENDING", "RUNNING")
UNKNOWN = "UNKNOWN"  # of an id that a cluster does not know
FAILING = re.compile(r"Request failed with status code (5\d\d)")  # by Ray's client
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Silent(UserError):
    """Nobody answers at an address, or only that there is no answer now."""


@dataclass(frozen=True)
class Seen:
    """What Ray says of a job. status: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED or UNKNOWN.
    metadata: as it was submitted. started: unix seconds, 0 where it has not.
    """

    id: str
    status: str
    message: str = ""
    started: float = 0.0
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def alive(self) -> bool:
        """Whether it runs or will, as Ray has it."""
        return self.status in ALIVE


class Client(JobSubmissionClient):
    """Ray's client with a limit to its patience."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": PATIENCE, **options})


class Jobs:
    """The jobs of the cluster whose dashboard is at an address.

    Raises `Silent` where nobody answers within seconds, or with an HTTP status of 500 and above, as
    a dashboard whose head is away does; UserError where one is not let in.
    """

    def __init__(self, address: str) -> None:
        """address: http(s)://HOST:PORT."""
        self.address = address.rstrip("/")
        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("dashboard_sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        reach(self.address)
        word = token()
        headers = {"Authorization": f"Bearer {word}"} if word else {}
        with self._answer(), without(VARIABLES):
            self.client = Client(self.address, headers=headers)

    def submit(self, id: str, entrypoint: str, package: Path, metadata: dict[str, str]) -> None:
        """Submit a job. package: a zip of what it imports, put first on the path of the job and of
        all that it starts. Raises FileExistsError where a job of this id was there ever.
        """
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT)}
        with self._answer():
            try:
                self.client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=id,
                    runtime_env={"working_dir": str(package), "env_vars": environment},
                    metadata=metadata,
                    entrypoint_num_cpus=DRIVER_CPUS,
                )
            except RuntimeError as e:
                if f"submission_id {id} already exists" in str(e):
                    raise FileExistsError(f"a job {id}") from None
                raise

    def look(self, id: str) -> Seen:
        """What Ray says of a job."""
        with self._answer():
            try:
                return seen(self.client.get_job_info(id))
            except RuntimeError as e:
                if "status code 404" in str(e):
                    return Seen(id, UNKNOWN)
                raise

    def listed(self) -> list[Seen]:
        """All jobs that were submitted, the oldest first."""
        with self._answer():
            jobs = [job for job in self.client.list_jobs() if job.submission_id]
            return [seen(job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]

    def stop(self, id: str) -> None:
        """Have Ray send SIGTERM, and SIGKILL after `STOP_WAIT`; an id that is over is no error."""
        with self._answer():
            try:
                self.client.stop_job(id)
            except RuntimeError as e:
                if "status code 404" not in str(e):
                    raise

    def log(self, id: str) -> str:
        """What a job's driver has written, "" where that cannot be had: a head that has come back
        has it no longer.
        """
        with self._answer():
            try:
                return str(self.client.get_job_logs(id))
            except RuntimeError:
                return ""

    @contextmanager
    def _answer(self) -> Iterator[None]:
        """What Ray's client raises as one sentence."""
        try:
            yield
        except FileExistsError:
            raise
        except AuthenticationError as e:
            wrong = "Invalid" in str(e) or "failed" in str(e)[:40]
            raise UserError(
                f"The cluster at {self.address} does not let us in (HTTP "
                f"{'403: it has another token' if wrong else '401: it wants a token'}): copy its "
                f"token to {token_file()}, or set RAY_AUTH_TOKEN_PATH to it."
            ) from None
        except OSError as e:
            raise silent(self.address, type(e).__name__) from None
        except RuntimeError as e:
            if status := FAILING.match(str(e)):
                raise failing(self.address, status[1], last_line(e)) from None
            raise UserError(f"Ray at {self.address} refuses: {last_line(e)}") from e


def seen(info: Any) -> Seen:
    """Ray's details of a job, in our words."""
    return Seen(
        id=str(info.submission_id),
        status=str(getattr(info.status, "value", info.status)),
        message=str(info.message or ""),
        started=(info.start_time or 0) / 1000,
        metadata=tuple(sorted((info.metadata or {}).items())),
    )


def reach(address: str) -> None:
    """Raises `Silent` where nobody answers within `LIMIT`, whatever holds the answer up: names too
    are looked up within it.
    """
    fault: list[str] = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=LIMIT).close()
        except urllib.error.HTTPError:
            pass  # an answer, by somebody who wants to know who we are
        except Exception as e:
            reason = getattr(e, "reason", e)
            fault[:] = [str(getattr(reason, "strerror", None) or reason)]
            return
        fault.clear()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LIMIT)
    if fault:
        raise silent(address, fault[0])


def silent(address: str, why: str) -> Silent:
    """The sentence on an address where no dashboard is."""
    return Silent(
        f"No Ray dashboard answers at {address} ({why}): give the head's as http://HOST:8265, or "
        "an ssh tunnel to it (ssh -L 8265:localhost:8265 HEAD)."
    )


def failing(address: str, status: str, why: str) -> Silent:
    """The sentence on a dashboard that cannot answer. why: a line of its own, or of a web page."""
    cause = "" if why.startswith("<") else f": {why}"
    return Silent(f"The Ray dashboard at {address} cannot answer now (HTTP {status}{cause}).")


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """These variables are not there within the block."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def last_line(e: BaseException) -> str:
    """Of what Ray says, which begins with a traceback."""
    lines = [line.strip() for line in str(e).strip().splitlines() if line.strip(" .")]
    return lines[-1] if lines else type(e).__name__
