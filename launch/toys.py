"""Toy shards in the cache: made once, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

VERSION = "v1"  # part of the folder's name: another content is another folder


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtx-scale"


def toy_shards(say: Callable[[str], None]) -> tuple[Path, Path]:
    """Folders of 256 training and 64 validation samples."""
    from data_pipeline.tools.toy import make_toy

    folder = cache_folder() / f"toy-{VERSION}"
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.{os.getpid()}")
        say(f"making toy shards in {folder}")
        make_toy(part / "train", samples=256, shards=4, seed=0)
        make_toy(part / "val", samples=64, shards=2, seed=1)
        try:
            os.rename(part, folder)
        except OSError:  # another process was first
            shutil.rmtree(part, ignore_errors=True)
    return folder / "train", folder / "val"
