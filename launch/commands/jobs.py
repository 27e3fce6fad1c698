"""`vtx jobs`: watch, stop and resume what `vtx submit` gave to a cluster."""

import argparse

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.address import WEB
from vtx_scale.launch.extras import need

HELP = "the jobs of a cluster: list, status, logs, stop, resume, supervise"
ACTIONS = {
    "list": "a cluster's jobs",
    "status": "what a run is doing",
    "logs": "its log, with -f until it ends",
    "stop": "have it save and leave",
    "resume": "go on from its newest checkpoint, where none of its jobs is alive",
    "supervise": "resume whenever none is alive, until the run has ended",
    "token": "make this user's token, and print what a head and its nodes need",
}
ALONE = ("list", "token")  # which need no run


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="ACTION [RUN|ID]",
        help=f"a run by its folder, or by a job's id; {'; '.join(map(': '.join, ACTIONS.items()))}",
    )
    parser.add_argument(
        "--address",
        default="",
        metavar="http://HOST:8265",
        help="of the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or where "
        "the run was submitted)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    args.action, *rest = args.names or ["list"]
    args.target = "".join(rest[:1])
    if args.action not in ACTIONS:
        raise UserError(f"vtx jobs has no {args.action!r}: it has {', '.join(ACTIONS)}.")
    if rest and args.action == "token":
        raise UserError(f"vtx jobs token takes no run: leave {' '.join(rest)} out.")
    if rest[1:]:
        raise UserError(f"vtx jobs {args.action} takes one run: leave {' '.join(rest[1:])} out.")
    if not rest and args.action not in ALONE:
        raise UserError(f"vtx jobs {args.action} needs a run folder, or the id of a job.")
    if args.address and not args.address.startswith(WEB):
        raise UserError(f"--address={args.address}: give the dashboard's, http://HOST:8265.")
    need("ray", "'vtx jobs'")
    from vtx_scale.launch.jobs import run

    return run(args)
