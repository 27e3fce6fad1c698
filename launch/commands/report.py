"""`vtx report RUN [RUN2 ...] -o FILE`: a run as one page of HTML."""

import argparse

HELP = "write a run, or several over one another, as one page of HTML"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="run folders, on disk or s3://bucket/run"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where the page is written"
    )


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.report import run

    return run(args)
