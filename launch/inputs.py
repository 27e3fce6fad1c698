"""What a submitted run takes from files of one machine, on the machines that train it.

Where it is submitted, `send` puts small files into the run's folder, `inputs/1a2b3c4d-NAME`, and
names them there. On a node, `here` gives a recipe in this machine's terms: such files from its
cache, where the folder lies in a bucket; toy data, which every machine makes for itself; the
tokenizer that the run keeps.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from vtx_scale.checkpoints.format import folder_name, sha256_file, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath, storage_of
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.launch.paths import absolute, changed, checkpoints_of, given
from vtx_scale.launch.places import cache_folder
from vtx_scale.launch.toy_data import VERSION, toy_run, toy_shards
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import silent

INPUTS = "inputs"
MOST = 50 * 10**6  # bytes of one file or folder
ON_THE_NODES = ("system.", "checkpoint.")  # keys of places that each node has for itself
TOY = re.compile(rf".*/toy-(?:(\w+)-)?{VERSION}(/train|/val)?")


def send(run: Run, folder: AnyPath, say: Callable[[str], None], really: bool = True) -> Run:
    """The recipe as the nodes can read it; the files of this machine that it names are put into the
    run folder, unless they lie on one file system with that: who sees it sees them. really: False
    to put nothing.

    Raises UserError, naming the key, for what is larger than `MOST`.
    """
    run = absolute(run)
    where: dict[str, str] = {}
    for key, value, several in given(run):
        if key.startswith(ON_THE_NODES) or SCHEME.match(value):
            continue
        if several:
            say(f"{key}={value} is read on the nodes: each must see it there")
        elif Path(value).exists() and not beside(Path(value), folder):
            where[value] = sent(key, Path(value), folder, really)
            say(f"{key}={value} goes along, as {where[value]}")
    return changed(run, lambda path: where.get(path, path)) if where else run


def beside(path: Path, folder: AnyPath) -> bool:
    """Whether a path and a run folder lie on one file system of this machine."""
    if not isinstance(folder, Path):
        return False
    at = folder
    while not at.exists():
        at = at.parent
    return path.stat().st_dev == at.stat().st_dev


def sent(key: str, path: Path, folder: AnyPath, really: bool) -> str:
    """Where a file or folder of this machine is from now on. Raises UserError."""
    files = dict(files_of(path))
    size = sum(file.stat().st_size for file in files.values())
    if size > MOST:
        raise UserError(
            f"{key}={path} is of this machine alone and has {size / 1e6:.0f} MB, more than the "
            f"{MOST / 1e6:.0f} MB that go along with a job: put it where every node sees it, "
            "s3:// or a shared folder, and name it there."
        )
    listed = "".join(f"{name} {sha256_file(file)}\n" for name, file in sorted(files.items()))
    name = f"{INPUTS}/{hashlib.sha256(listed.encode()).hexdigest()[:12]}-{path.name}"
    storage = storage_of(folder)
    for file, source in files.items() if really else ():
        target = f"{name}/{file}" if path.is_dir() else name
        if storage.head(target) is None:
            storage.put(target, source.read_bytes())
    return str(folder / name)


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """(name below it, path) of the files of an input: of a run folder what a start from it reads,
    of a folder of weights those and their tables.
    """
    if path.is_file():
        yield "", path
        return
    if not (path / "run.json").is_file():
        for file in sorted(path.iterdir()):
            if file.is_file() and file.suffix in (".safetensors", ".json"):
                yield file.name, file
        return
    yield "run.json", path / "run.json"
    there = steps(checkpoints_of(path))
    parts = ["tokenizer", *([f"checkpoints/{folder_name(max(there))}"] if there else [])]
    for part in parts:
        for file in sorted((path / part).rglob("*")):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file


def here(run: Run, folder: AnyPath) -> Run:
    """A recipe with the paths of this machine. Raises OSError where an input cannot be read."""
    return changed(run, partial(local, folder), local_shards)


def local(folder: AnyPath, path: str) -> str:
    """One path of a recipe on this machine."""
    if (toy := TOY.fullmatch(path)) and toy[1]:
        return str(toy_run(toy[1], silent))
    if not isinstance(folder, ObjectPath):
        return path
    at = cache_folder() / INPUTS / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    name = name_in(path, str(folder / INPUTS), at)
    if not name or (folder / INPUTS / name / "run.json").is_file():  # which is read where it is
        return path
    storage, prefix = storage_of(folder / INPUTS), f"{name}/"
    for file in [n for n in storage.list(name) if n == name or n.startswith(prefix)]:
        if not (at / file).exists():
            with whole(at / file) as part, storage.open(file) as source:
                part.write_bytes(source.read(0, source.size))
    return str(at / name)


def name_in(path: str, folder: str, cache: Path) -> str:
    """The name of an input by its path in the run's folder, or in the cache of any node; "" of what
    is none.
    """
    if path.startswith(f"{folder}/"):
        return path.removeprefix(f"{folder}/").strip("/")
    tail = PurePosixPath(*cache.parts[-2:]).as_posix()
    _, found, name = path.rpartition(f"/{tail}/")
    return name if found else ""


def local_shards(shards: str) -> str:
    """A list of shards on this machine."""
    toy = TOY.fullmatch(shards)
    if toy is None or not toy[2]:
        return shards
    train, val = toy_shards(silent)
    return str(train if toy[2] == "/train" else val)
