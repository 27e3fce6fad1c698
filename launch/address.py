"""Where a run is submitted to, and what cannot be: seen before anything is loaded. Standard library
alone.
"""

import argparse
import math
from pathlib import Path
from urllib.parse import urlsplit

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath

WEB = ("http://", "https://")


def check_submission(args: argparse.Namespace, folder: AnyPath) -> None:
    """Raises UserError for options of `vtx submit` that do not go together."""
    if args.patience < 0 or math.isnan(args.patience):
        raise UserError(f"--patience={args.patience:g}: give the minutes to wait for machines.")
    if args.address.startswith(WEB):
        web_address(args.address)
        check_shared(folder, args.run_folder)
    elif args.detach:
        raise UserError(
            "--detach needs the dashboard's address of a cluster (--address http://HOST:8265): "
            "otherwise the run is driven from here, and ends with this command."
        )


def web_address(address: str) -> str:
    """http(s)://HOST:PORT. Raises UserError for what is none, and for one with a password in it,
    which it does not repeat.
    """
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  (a property that refuses what is no number)
    except ValueError:  # which repeats a password
        raise UserError("--address: give the dashboard's as http://HOST:8265.") from None
    if "@" in parts.netloc:
        raise UserError(
            "--address: a name or password in it would be kept with the run: leave it out; the "
            "token is read from its file."
        )
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise UserError(f"--address={address}: give the dashboard's as http://HOST:8265.")
    return f"{parts.scheme}://{parts.netloc}"


def check_shared(folder: AnyPath, given: str | None) -> None:
    """Raises UserError for the run folder of a job that the nodes cannot see."""
    if not given:
        raise UserError(
            f"The nodes of a cluster cannot see {folder} of this machine: give --run "
            "s3://BUCKET/NAME, or the path of a folder that all of them share with it."
        )
    folder = folder.absolute()
    if isinstance(folder, Path) and not folder.parent.is_dir():
        raise UserError(
            f"--run {given}: {folder.parent} is not there; the run folder of a job is s3://, or "
            "lies in a folder that all nodes share with this machine."
        )
