"""The `vtx` command. Standard library only at the top: help and refusals must be quick."""

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from typing import NoReturn

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.trainer.output import code_of, open_missing_descriptors, say, sentence, why

COMMANDS = (
    "train",
    "submit",
    "jobs",
    "worker",
    "evaluate",
    "export",
    "sample",
    "amend",
    "watch",
    "report",
    "show",
    "plan",
    "data",
    "checkpoints",
    "doctor",
    "demo",
)
TRAINING = (
    "train",
    "submit",
    "worker",
    "demo",
)  # what they print is no result: to be read by nobody is no end


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence and leaves with 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}: '{self.prog} --help' shows how.")


def parser() -> Parser:
    top = Parser(
        prog="vtx",
        description="Distributed pretraining of vision and vision-language models.",
        epilog="exit codes: 0 finished, 2 wrong input, 3 not finite, 4 out of memory, "
        "75 asked to leave and saved, 130 ended at once, 1 anything else",
    )
    top.add_argument("--debug", action="store_true", help="show the traceback behind an error")
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for name in COMMANDS:
        module = importlib.import_module(f"vtx_scale.launch.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback behind an error",
        )
        module.arguments(command)
        command.set_defaults(run=module.run)
    return top


def parse(argv: list[str]) -> argparse.Namespace:
    """Options, key=value and names in any order."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    keys = [x for x in rest if not x.startswith("-")]
    if isinstance(getattr(args, "names", None), list):  # in others a word of its own
        args.names, rest = [*args.names, *keys], [x for x in rest if x.startswith("-")]
        keys = []
    if len(keys) < len(rest) or (keys and not hasattr(args, "keys")):
        wrong = next(x for x in rest if x.startswith("-") or x in keys)
        raise UserError(
            f"'vtx {args.command}' does not take {wrong!r}: "
            f"'vtx {args.command} --help' shows what it takes."
        )
    if hasattr(args, "keys"):
        args.keys = [*args.keys, *keys]
        odd = [x for x in args.keys if "=" not in x]
        if odd:
            raise UserError(f"{odd[0]!r} is not key=value: 'vtx show keys' lists the keys.")
    return args


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    # torchrun takes --run for one of its own options unless "--" stands before our words
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    command = ""
    caught: Exception | None = None
    try:
        args = parse(arguments)
        command, args.words = args.command, arguments
        return int(args.run(args) or 0)
    except UserError as e:
        caught = e
        code, text = 2, str(e)
    except BrokenPipeError as e:
        caught = e
        if command not in TRAINING:  # `vtx ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        code, text = 1, why(e)
    except KeyboardInterrupt:
        code, text = 130, "interrupted"
    except OSError as e:
        caught = e
        code, text = code_of(e), sentence(e)
        if e.errno == errno.ENOSPC and e.filename is None and command not in TRAINING:
            text = f"stdout: {text}"  # the files that a command writes have names
    except Exception as e:  # ours to mend: a sentence all the same
        caught = e
        code, text = 1, f"{type(e).__name__}: {e} ('vtx --debug ...' shows where)"
    if "--debug" in arguments and caught is not None:
        traceback.print_exception(caught)
    say(f"vtx: {text}")
    return code


def end() -> NoReturn:
    """The entry point: daemon threads of libraries must not hold up the end."""
    open_missing_descriptors()
    try:
        here = os.getcwd()
    except FileNotFoundError:  # libraries of torch's end a process there
        say("vtx: the folder that this was called in is gone: go to another one and call it again.")
        os._exit(2)
    if sys.path[0] not in ("", here):
        # what we start sees what we see: no random.py of the folder that a user stands in
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name of a shard may hold letters that a terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as e:  # a result that is not there must not look like one
        say(f"vtx: what was printed on stdout could not be written: {e.strerror}")
        code = code or 1
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end()
