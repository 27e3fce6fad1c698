"""`vtx sample RUN DIR`: pictures that a run draws, as PNG files;
for captions where it reads them.
"""

import argparse

from vtx_scale.launch.commands import reading_arguments

HELP = (
    "draw pictures with a run of DALL-E or iGPT; --rerank keeps those that a CLIP run finds fit "
    "a caption best"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("out", metavar="DIR", help="where the pictures go")
    parser.add_argument(
        "--text", action="append", default=[], metavar="CAPTION", help="may be given several times"
    )
    parser.add_argument("--count", type=int, default=4, help="pictures a caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rerank", metavar="RUN", help="a run of CLIP or SigLIP")
    parser.add_argument("--keep", type=int, help="of a caption's pictures, with --rerank (1)")
    reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.sample import run

    return run(args)
