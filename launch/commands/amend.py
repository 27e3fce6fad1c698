"""`vtx amend RUN KEY=VALUE --at STEP`: a run goes on with other rates or weights."""

import argparse

HELP = (
    "change rates, clip, decay or floor of a run's optimizer, or the weights of its mix, from a "
    "step on"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "changes",
        nargs="+",
        metavar="KEY=VALUE",
        help="optim.lr=3e-4, optim.lr=*0.5 for half of what holds, data.weights=a:0.7,b:0.3, ...",
    )
    parser.add_argument(
        "--at",
        type=int,
        required=True,
        metavar="STEP",
        help="the first step that is computed with it, as metrics.jsonl counts them",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.amend import run

    return run(args)
