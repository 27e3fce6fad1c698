"""One writer of a run: epochs over any storage. Standard library alone.

An epoch is one object, `00000007`, that only one process can put; the newest is the holder's. The
holder renews it, with a number that grows, and says at the end that it is released. No two
machines' clocks are compared: who waits takes over when the newest epoch has not changed for `TTL`
seconds of its own monotonic clock. A save is committed only while its epoch is the newest, so who
lost the lease writes nothing that counts.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from vtx_scale.data_pipeline.storage import Storage

TTL = 30.0  # seconds without renewal after which a holder counts as gone
KEPT = 4  # epochs before the newest that stay, for people who look
NAME = re.compile(r"\d{8}")

Words = tuple[int, dict[str, Any]]  # an epoch, and what its holder says of itself


class Lost(Exception):
    """Another job writes here; the text names it."""


class Lease:
    """The right to write, from `acquire` until `close`; renewed by a thread of its own while it is
    held, which whoever writes asks `check`.

    epoch: from 1 on, the same for nobody else. taken: who has taken it over, "" as far as is known.
    """

    def __init__(self, storage: Storage, epoch: int, body: dict[str, Any], ttl: float) -> None:
        self.storage, self.epoch, self.body = storage, epoch, body
        self.taken, self._turn = "", threading.Lock()
        self._next: dict[str, Any] = {}  # the body of a newer epoch that may be stored
        self._pause = ttl / 3
        self._start(None)

    def _start(self, before: threading.Thread | None) -> None:
        self._ended = threading.Event()
        about = (self._ended, before)
        self._thread = threading.Thread(target=self._renew, args=about, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def without_thread(self) -> Iterator[None]:
        """Nothing renews it inside, for a short time, so that the process may be forked; where the
        storage does not answer, the thread is still there.
        """
        self._ended.set()
        self._thread.join(1)
        try:
            yield
        finally:
            self._start(self._thread)

    def renew(self) -> None:
        """Say that the holder lives. Raises Lost where another has the run, OSError where the
        storage does not answer.
        """
        with self._turn:
            self._settle()
            check(self.storage, self.epoch)
            self.body["beat"] += 1
            name, body = name_of(self.epoch), json.dumps(self.body).encode()
            head = self.storage.head(name)
            if head is None:  # somebody has cleared the folder: nobody else has it yet
                self.storage.put_if_absent(name, body)
            elif self.storage.replace_if(name, body, head.tag) is None:
                raise Lost(f"epoch {self.epoch} was changed by another job")

    def advance(self) -> int:
        """A newer epoch for the same holder: what ranks of before, that nobody can reach any more,
        still write does not count from here on.

        Raises Lost where another has the run, OSError where the storage does not answer.
        """
        with self._turn:
            before = self.epoch
            if not self._next:
                self._next = {**self.body, "beat": self.body["beat"] + 1, "after": before}
            name, body = name_of(before + 1), json.dumps(self._next).encode()
            self.storage.put_if_absent(name, body)
            self._settle()
            if self.epoch == before:
                raise Lost(f"epoch {before + 1} is another job's")
            check(self.storage, self.epoch)
            clear(self.storage, self.epoch - 1 - KEPT)
            return self.epoch

    def _settle(self) -> None:
        """Hold the newer epoch that was put, where it is stored: an answer that was lost hides it.
        Raises OSError where the storage does not answer.
        """
        if self._next and newest(self.storage) > self.epoch:
            if said(self.storage, self.epoch + 1) == self._next:
                self.epoch, self.body, self._next = self.epoch + 1, self._next, {}

    def close(self) -> None:
        """Give it back; a second time is no error."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(5)  # a dead file system must not hold up the end
        self.body["state"] = "released"
        try:
            self.renew()
        except (Lost, OSError):
            pass  # there is nothing to give back, or it runs out by itself

    def _renew(self, ended: threading.Event, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        while not ended.wait(self._pause):
            try:
                self.renew()
            except OSError:
                continue  # until another takes it, it is held
            except Lost as e:
                self.taken = str(e)
                return

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def name_of(epoch: int) -> str:
    return f"{epoch:08d}"


def newest(storage: Storage) -> int:
    """The newest epoch, 0 where there was none."""
    return max((int(name) for name in storage.list("") if NAME.fullmatch(name)), default=0)


def holder(storage: Storage, epoch: int) -> dict[str, Any]:
    """What the holder of an epoch says of itself; nothing where that cannot be read."""
    try:
        return said(storage, epoch)
    except OSError:
        return {}


def said(storage: Storage, epoch: int) -> dict[str, Any]:
    """The same; nothing where it is no JSON. Raises OSError where it cannot be read."""
    with storage.open(name_of(epoch)) as file:
        try:
            return dict(json.loads(file.read(0, file.size)))
        except (ValueError, TypeError):
            return {}


def check(storage: Storage, epoch: int) -> None:
    """Raises Lost where an epoch is not the newest; of a folder that was cleared it still is."""
    now = newest(storage)
    if now not in (0, epoch):
        who = holder(storage, now).get("who", "another job")
        raise Lost(f"{who} has taken the run over (epoch {now}, this job's is {epoch})")


def lost(storage: Storage, epoch: int) -> str:
    """Who has taken the run over, "" where an epoch still counts. Raises OSError where the storage
    does not answer.
    """
    try:
        check(storage, epoch)
    except Lost as e:
        return str(e)
    return ""


def acquire(
    storage: Storage,
    who: dict[str, str],
    gone: Callable[[dict[str, Any]], bool] = lambda body: False,
    wait: Callable[[str], None] = lambda holder: None,
    ttl: float = TTL,
    poll: float = 0.2,
    *,
    silent: Words | None = None,
) -> Lease:
    """The lease, as soon as no other job holds it.

    who: "who" for people, and what `gone` looks at, which says of a holder's own words whether it
    is known to be gone. wait: is called once, with the holder's name, where it may have died and
    time must show. ttl, poll: in seconds. silent: what somebody has found unchanged for `ttl`
    seconds already: where it still stands nobody waits once more.

    Raises Lost where another job holds it and renews it.
    """
    told, seen, since = False, None, time.monotonic()
    while True:
        epoch = newest(storage)
        body = holder(storage, epoch) if epoch else {"state": "released"}
        name, state = str(body.get("who", "another job")), body.get("state")
        if seen is None:
            seen, since = (epoch, body), time.monotonic()
            if seen == silent:
                since -= ttl
        elif seen != (epoch, body) and state == "held":
            raise Lost(name)
        free = state == "released" or gone(body)
        if free or time.monotonic() - since >= ttl:
            mine = {**who, "state": "held", "beat": 0}
            stored = storage.put_if_absent(name_of(epoch + 1), json.dumps(mine).encode())
            # an epoch of long ago, which was cleared away, could be put once more
            if stored and newest(storage) == epoch + 1:
                clear(storage, epoch - KEPT)
                return Lease(storage, epoch + 1, mine, ttl)
            seen = None  # another was quicker
        elif not told:
            told = True
            wait(name)
        time.sleep(poll)


def clear(storage: Storage, until: int) -> None:
    """Remove the epochs up to one."""
    for name in list(storage.list("")):
        if NAME.fullmatch(name) and int(name) <= until:
            storage.delete(name)
