"""A run folder: who may write in it, and what it was made from. Standard library alone.

run.json metrics.jsonl ledger.jsonl events.jsonl evaluations.jsonl log.txt tensorboard/ pictures/
tokenizer/ checkpoints/step-00000120/ decisions/ control/ lease/ stacks/
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from vtx_scale.checkpoints import lease
from vtx_scale.checkpoints.format import steps
from vtx_scale.checkpoints.lease import Lease
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath, storage_of
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.publish import machine
from vtx_scale.launch import decided, outside, override, recipes
from vtx_scale.launch.amendments import check_fork
from vtx_scale.launch.outside import Entry, Outside
from vtx_scale.launch.paths import absolute, checkpoints_of, lease_of
from vtx_scale.launch.places import cache_folder, place_at
from vtx_scale.specs import walk
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import Ledger, say
from vtx_scale.trainer.segments import SEGMENTS

SHOWN = 200  # letters of a value in a refusal
HashOf = Callable[[Run, str], str]  # (run, fingerprint of its data) -> the run's name


def write_whole(path: AnyPath, body: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    storage_of(path.parent).put(path.name, body.encode())


class Held:
    """The right to write in a folder, until `close` or for as long as its process lives.

    epoch: of the lease, the same for nobody else.
    """

    def __init__(self, lease: Lease, local: IO[str], folder: AnyPath) -> None:
        self.lease, self.local, self.folder, self.epoch = lease, local, folder, lease.epoch

    @property
    def taken(self) -> str:
        """Who has taken the run over, "" as far as is known."""
        return self.lease.taken

    def advance(self) -> None:
        """Take a newer epoch, so that ranks which nobody can reach any more write nothing that
        counts. Raises UserError where another job has the run, OSError as the storage does.
        """
        try:
            self.epoch = self.lease.advance()
        except lease.Lost as e:
            raise refusal(self.folder, str(e)) from None
        send_while_held(self.folder, self.epoch)

    def close(self) -> None:
        """Give it back."""
        self.lease.close()
        self.local.close()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def acquire_lease(
    folder: AnyPath, say: Callable[[str], None] = say, silent: lease.Words | None = None
) -> Held:
    """The right to write in a folder. One whose holder on this host is gone is taken over at once;
    of another host's, time must show. silent: see `lease.acquire`.

    Raises UserError, naming the holder, where another process has it.
    """
    local, alone = lock_of(folder).open("a+"), True
    try:
        fcntl.flock(local, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        local.seek(0)
        raise refusal(folder, local.read().strip() or "another process") from None
    except OSError:  # a file system without locks: epochs alone count
        alone = False
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.suppress(OSError):  # the lock is what counts: a full disk has no room for words
        local.truncate(0)
        os.write(local.fileno(), me.encode())
    about = os.fstat(local.fileno())
    # of a bucket: other containers of this machine may have another file for it
    lock = "" if isinstance(folder, Path) else f"{about.st_dev:x}-{about.st_ino:x}"
    here = {"machine": machine(), **({"lock": lock} if lock else {})}

    def gone(body: dict[str, Any]) -> bool:
        same = all(body.get(key) == value for key, value in here.items())
        return alone and same and here["machine"] != "unknown"

    def wait(name: str) -> None:
        say(f"{folder} was left by {name} without a word: seeing for {lease.TTL:.0f} s if it lives")

    try:
        held = lease.acquire(lease_of(folder), {"who": me, **here}, gone, wait, silent=silent)
    except lease.Lost as e:
        local.close()
        raise refusal(folder, str(e)) from None
    except BaseException:
        local.close()
        raise
    send_while_held(folder, held.epoch)
    return Held(held, local, folder)


def send_while_held(folder: AnyPath, epoch: int) -> None:
    """What grows in a run's folder in a bucket is sent by this process while an epoch of the lease
    is the newest, and no longer. On a disk nothing changes. epoch: 0 where nobody took one.
    """
    if epoch and isinstance(folder, ObjectPath):
        SEGMENTS.guard(str(folder), partial(lease.lost, lease_of(folder), epoch))


def lock_of(folder: AnyPath) -> Path:
    """The file whose lock tells at once that a holder on this machine is gone; its folder is made.
    Of a bucket it lies in the cache, else in the temporary folder.

    Raises OSError where nothing can be written there.
    """
    lock = folder / "lease" / "local"
    if isinstance(lock, Path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    path = cache_folder() / "leases" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:  # a home that cannot be written
        path = Path(tempfile.gettempdir()) / f"vtx-leases-{os.getuid()}" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
    return path


def refusal(folder: AnyPath, holder: str) -> UserError:
    """Of a second writer."""
    return UserError(
        f"{folder} is being written by {holder}: wait for it, or choose another --run folder."
    )


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    out = {}
    for name in ("vtx-scale", "torch", "numpy", "safetensors"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def named(word: str) -> AnyPath | None:
    """The run folder that a word means in place of a recipe, by itself or by its run.json; None of
    a recipe, and where no run is.
    """
    if SCHEME.match(word) and (not word.startswith("s3://") or ".py" in word):
        return None
    place = place_at(word.removesuffix("/run.json") if word != "run.json" else ".")
    there = (place / "run.json").is_file()
    return place if there and word not in [name for name, _ in recipes.named()] else None


def read(folder: AnyPath) -> dict[str, Any]:
    """run.json. Raises UserError where the folder is no run folder."""
    try:
        body = json.loads((folder / "run.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        above = [at for at in Path(str(folder)).parents if (at / "run.json").is_file()]
        hint = f"give {above[0]}" if above else "give the folder of 'vtx train --run'"
        raise UserError(f"{folder} is no run folder (no run.json in it): {hint}.") from None
    except ValueError:
        raise UserError(
            f"{folder}/run.json is not JSON: restore it, or train in another folder."
        ) from None
    if not isinstance(body, dict) or "recipe" not in body:
        raise UserError(
            f"{folder}/run.json is not what a training wrote: restore it, or train in another "
            "folder."
        )
    return body


def recipe_of(folder: AnyPath) -> Run:
    """The recipe of a run, with the tokenizer that lies in its folder; the folders of a stranger's
    recipe come on the path.

    Raises UserError where the folder is no run folder, or its tokenizer is not what it was.
    """
    body = read(folder)
    recipes.let_import(body.get("paths", []))
    run: Run = override.from_dict(body["recipe"])
    return outside.held(run, folder, body.get("outside", {}))


def outside_of(folder: AnyPath) -> Outside:
    """What a run folder keeps of what lies beside it; nothing where there is no run yet."""
    found: Outside = {}
    if (folder / "run.json").exists():
        found = read(folder).get("outside", {})
    return found


def prepare(
    run: Run,
    folder: AnyPath,
    fingerprint: str,
    hash_of: HashOf,
    fork: bool = False,
    tokenizer: Entry | None = None,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Write run.json, or see that the run in the folder is this one.

    A run that has saved nothing yet may become another. tokenizer: what the run keeps of its
    tokenizer. keep: is called when nothing stands against the run, before run.json is written.

    Raises UserError with the fields that differ where the recipe is another and `fork` is false,
    and where an amendment would undo what a fork changes.
    """
    before = read(folder) if (folder / "run.json").exists() else {}
    now = outside.weights_now(run, before.get("outside", {}))
    if tokenizer is not None:
        now[outside.TOKENIZER] = tokenizer
    digest = hash_of(outside.by_digest(run, now), fingerprint)
    forks, batches = before.get("forks", []), before.get("batches", {})
    same = before.get("hash") == digest
    if begun(folder) and before:
        old: Run = override.from_dict(before["recipe"])
        same = same_run(before, old, folder, run, now, fingerprint, hash_of)
        if not same and not fork:
            raise another_run(folder, before, old, run, now, fingerprint)
        batches = {before["hash"]: old.global_batch, **batches}
        if not same:
            newest = max(steps(checkpoints_of(folder)), default=0)
            check_fork(old, run, decided.read(folder), newest)
            forks = [*forks, before["hash"]]
            Ledger(folder).write(kind="fork", **{"from": before["hash"], "to": digest})
    keep()
    body = {
        "recipe": override.to_dict(outside.as_named(run, now)),
        "hash": digest,
        "forks": forks,
        "batches": {**batches, digest: run.global_batch},
        "data": fingerprint,
        "outside": now,
        "paths": recipes.STRANGERS,
        "versions": versions(),
        **name_of(run, before if same else {}),
    }
    write_whole(folder / "run.json", json.dumps(body, indent=1) + "\n")


def name_of(run: Run, before: dict[str, Any]) -> dict[str, str]:
    """What tells a run from all others elsewhere, where it is told of there: made once."""
    if known := before.get("id"):
        return {"id": known}
    return {"id": secrets.token_hex(4)} if run.log.to else {}


def same_run(
    before: dict[str, Any],
    old: Run,
    folder: AnyPath,
    run: Run,
    now: Outside,
    fingerprint: str,
    hash_of: HashOf,
) -> bool:
    """Whether the run in the folder, by its run.json and its recipe, is this one.

    The hash that an old run.json would get today counts as well: fields that did not exist then
    have their defaults. One without digests names weights by their paths, in the words of the
    folder that it was started in or as they are read from this one.
    """
    if before["data"] != fingerprint:
        return False
    known = before.get("outside")
    if known is None:
        mine, theirs = run, [old, absolute(old)]
    else:
        mine = outside.by_digest(run, now)
        theirs = [outside.by_digest(outside.held(old, folder, known), known)]
    digests = {before["hash"]}
    for recipe in theirs:
        with contextlib.suppress(UserError):  # its tokenizer is no longer there
            digests.add(hash_of(recipe, fingerprint))
    return hash_of(mine, fingerprint) in digests


def another_run(
    folder: AnyPath, before: dict[str, Any], old: Run, run: Run, now: Outside, fingerprint: str
) -> UserError:
    """What differs, field by field; what lies outside by its path and digest."""
    known = {k: v for k, v in before.get("outside", {}).items() if k in now}
    differ = walk.differences(absolute(old), outside.as_named(run, now))
    changes = [
        f"{key} was {short(a)}, is {short(b)}"
        for key, (a, b) in differ.items()
        if counted(key) and key not in known
    ]
    changes += outside.changes(known, now)
    if before["data"] != fingerprint:
        changes.append(f"the data set was {before['data']}, is {fingerprint}")
    return UserError(
        f"{folder} holds another run ({'; '.join(changes) or 'its tokenizer has changed'}): choose "
        "another --run folder, or pass --fork to go on from its checkpoint with the new recipe."
    )


def short(value: Any) -> str:
    """A value as it is shown, of a long one both ends."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


def begun(folder: AnyPath) -> bool:
    """Whether there is a checkpoint, even one that is damaged."""
    return bool(steps(checkpoints_of(folder)))


def counted(key: str) -> bool:
    """Whether a field counts in the hash."""
    if key.startswith("data.sources."):  # their samples count by the fingerprint
        return key.endswith(".weight")
    return (
        key.split(".")[0] not in ("system", "checkpoint", "evaluate", "log")
        and key not in override.UNCOUNTED
    )
