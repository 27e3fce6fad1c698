"""Toy shards and toy runs in the cache: made once, whole or not at all."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.publish import whole_folder
from vtx_scale.data_pipeline.tools.toy import make_toy
from vtx_scale.launch.places import cache_folder as cache_folder

VERSION = "v1"  # part of the folder's name: another content is another folder


@contextmanager
def unless_there(folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes `folder`, unless another process was first."""
    try:
        with whole_folder(folder) as part:
            yield part
    except OSError:
        if not folder.exists():
            raise


def toy_shards(say: Callable[[str], None]) -> tuple[Path, Path]:
    """Folders of 256 training and 64 validation samples."""
    folder = cache_folder() / f"toy-{VERSION}"
    if not folder.exists():
        say(f"making toy shards in {folder}")
        with unless_there(folder) as part:
            make_toy(part / "train", samples=256, shards=4, seed=0)
            make_toy(part / "val", samples=64, shards=2, seed=1)
    return folder / "train", folder / "val"


def toy_run(recipe: str, say: Callable[[str], None], steps: int = 60) -> Path:
    """The run folder of a recipe's smoke size on the toy shards,
    from which other smoke sizes learn or go on.
    """
    folder = cache_folder() / f"toy-{recipe}-{VERSION}"
    if not folder.exists():
        say(f"training a toy {recipe} in {folder}")
        toy_shards(say)
        plain = {
            k: v
            for k, v in os.environ.items()
            if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "VTX_KILL")
        }
        with unless_there(folder) as part:
            command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", recipe, "--smoke"]
            keys = [f"steps={steps}", "system.world=1", "system.workers=0", "system.device=cpu"]
            done = subprocess.run(
                [*command, "--run", str(part), *keys], env=plain, capture_output=True, text=True
            )
            if done.returncode:
                raise UserError(
                    f"The toy {recipe} could not be trained: {done.stderr.strip()[-200:]}"
                )
    return folder
