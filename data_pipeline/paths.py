"""Paths of this machine: a URL is refused wherever one is taken. Standard library alone."""

import re
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def local_path(path: str | Path, what: str = "") -> Path:
    """The path of a file or folder that a user gave.

    what: "--run " or "init.from=", what the user wrote before it. Raises UserError for a URL, which
    a path would take for a folder of that name.
    """
    scheme = SCHEME.match(str(path))
    if scheme:
        raise UserError(
            f"{what}{path}: this version reads and writes local files alone, not {scheme[1]}:; "
            "give a path of this machine."
        )
    return Path(path)
