"""`vtx jobs`: watch, stop and resume what `vtx submit` gave to a cluster."""

import argparse

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


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=tuple(ACTIONS),
        default="list",
        metavar="ACTION",
        help="; ".join(f"{name}: {text}" for name, text in ACTIONS.items()),
    )
    parser.add_argument(
        "target", nargs="?", default="", metavar="RUN|ID", help="a run folder, or a job's id"
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
    from vtx_scale.launch.jobs import run

    return run(args)
