"""The token of a cluster: a file of this user's, that nobody else can read.

Where the user has said where theirs is (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`), that stands. The
token itself is read where a request is made, and stands in no command, environment or message.
"""

import os
import secrets
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError

RAYS_OWN = Path(".ray") / "auth_token"  # in the home folder, where `ray get-auth-token` puts it


def token_file() -> Path:
    """Where this user's token lies, whether it is there or not."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else own_file()


def own_file() -> Path:
    """Where it lies if nobody says otherwise."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "vtx-scale" / "ray-token"


def write_token(path: Path) -> None:
    """A new token that its owner alone can read. Raises FileExistsError where there is a file."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def ensure_token() -> Path:
    """The file of this user's token, which is made where there is none. Raises OSError."""
    path = token_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_token(path)
    return path


def token() -> str:
    """The token for a cluster, "" where this user has none or has switched tokens off.

    Raises UserError where others may read the file that is ours to keep.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return ""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    for path in (token_file(), Path.home() / RAYS_OWN):
        try:
            found, mode = path.read_text().strip(), path.stat().st_mode
        except OSError:
            continue
        if found and path == own_file() and mode & 0o077:
            raise UserError(f"{path} can be read by others: chmod 600 {path}")
        if found:
            return found
    return ""
