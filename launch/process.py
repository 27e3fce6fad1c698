"""One rank among the others: its device, its process group, and who speaks for all."""

import contextlib
import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore

from vtx_scale.checkpoints.memory import BESIDE
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import torchrun
from vtx_scale.launch.beats import BEATS
from vtx_scale.launch.node import WORDS
from vtx_scale.specs.run import System
from vtx_scale.trainer.output import append


def rank_and_world() -> tuple[int, int]:
    """As the launcher says in the environment; 0 of 1 where there is none."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def device_of(system: System) -> torch.device:
    """The device of this rank, made the current one.

    Raises UserError for a GPU where there is none.
    """
    cuda = system.device == "cuda" or (system.device == "auto" and torch.cuda.is_available())
    if system.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "system.device=cuda, but torch sees no GPU: run 'vtx doctor', or leave the device out."
        )
    if system.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if not cuda:
        torch.set_num_threads(system.threads)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    return device


MEETINGS: list[tempfile.TemporaryDirectory[str]] = []  # of a process that is alone


def leave_process_group(well: bool) -> None:
    """After a run. well: the other ranks end too, and can be waited for."""
    if dist.is_initialized() and well:
        dist.destroy_process_group()
    while MEETINGS:
        MEETINGS.pop().cleanup()


def init_process_group(system: System, device: torch.device, rank: int, world: int) -> None:
    """Meet the other ranks, where there are any or the strategy shards.

    In VTX_MEET's file where the launcher names one, else at MASTER_ADDR and MASTER_PORT.
    """
    if world == 1 and not system.meets_alone:
        return
    where, seconds = os.environ.get("VTX_MEET"), float(system.timeout)
    if BEATS in os.environ:  # whoever reads them finds a hang first, and can say whose
        seconds = 1.5 * seconds + 10
    limit = timedelta(seconds=seconds)
    store = None
    if where is None and "MASTER_ADDR" not in os.environ:
        MEETINGS.append(tempfile.TemporaryDirectory(prefix="vtx-"))
        where = f"file://{MEETINGS[-1].name}/store"
    elif where is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps one store over its restarts, where a new rank may find the address
        # of a dead one
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        agents = dist.TCPStore(address, port, world, False, limit)  # type: ignore[attr-defined]
        store = PrefixStore(torchrun.round_name(agents, rank, world, system.timeout), agents)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=where, store=store, rank=rank, world_size=world, timeout=limit
    )
    PHASES.counter = collectives


def collectives() -> int:
    """How many this process has entered so far, in all its groups but those of other threads."""
    try:
        groups: list[Any] = list(distributed_c10d._world.pg_map) if dist.is_initialized() else []
        own = [group for group in groups if group.group_desc != BESIDE]
        return sum(group._get_sequence_number_for_group() for group in own)
    except (AttributeError, RuntimeError):  # private; a group may go away meanwhile
        return 0


def common_attempt(device: torch.device, world: int) -> str:
    """A name of this start of the run, the same on every rank."""
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
    word = torch.randint(1 << 30, (1,), generator=generator).to(device)
    if world > 1:
        with PHASES.collective():
            dist.broadcast(word, 0)
    return f"{word.item():08x}"


def speaks(code: int) -> bool:
    """Whether no other rank has said why the run ends: the first to fail knows best.

    Where ranks did not meet in a file (torchrun), what all of them see alike is rank 0's to say.
    """
    meeting = os.environ.get("VTX_MEET", "")
    if not meeting.startswith("file://"):
        return rank_and_world()[0] == 0 or code in (1, 4)
    try:
        Path(meeting.removeprefix("file://")).with_name("said").touch(exist_ok=False)
        return True
    except OSError:
        return False


def keep_words(text: str) -> None:
    """Why this rank ends, for a launcher that does not see its stderr."""
    folder = os.environ.get(WORDS)
    if folder:
        with contextlib.suppress(OSError):
            (Path(folder) / str(rank_and_world()[0])).write_text(text)


def keep_traceback(folder: AnyPath) -> None:
    """The traceback of the exception that is being handled, in log.txt."""
    try:
        append(
            folder / "log.txt",
            f"rank {rank_and_world()[0]}\n{traceback.format_exc()}".rstrip().encode(),
        )
    except OSError:
        pass  # the sentence still reaches stderr
