"""The `vtx` command. Standard library only at the top: help and refusals must be quick."""

import argparse
import contextlib
import errno
import importlib
import io
import os
import platform
import sys
import traceback
from importlib import metadata
from typing import NoReturn

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import typed
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
# what a line looks like that has the word which is missing
EXAMPLES = {
    "recipe": ", as in '{} clip_vit_b32 --smoke' ('vtx show recipes' lists them)",
    "WHAT": ", as in '{} recipes'",
    "RUN": ", as in '{} runs/first'",
}
VERSION = ("version", "-V", "--version")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence and leaves with 2."""

    def error(self, message: str) -> NoReturn:
        message = typed.no_choice(message).replace(", key=value", "")  # which may be left out
        hint = EXAMPLES.get(message.rpartition(": ")[2].split(",")[0], "")
        raise UserError(
            f"{message[0].upper()}{message[1:]}{hint.format(self.prog)}: "
            f"'{self.prog} --help' shows how."
        )


def parser() -> Parser:
    top = Parser(
        prog="vtx",
        description="Distributed pretraining of vision and vision-language models.",
        epilog="exit codes: 0 finished, 2 wrong input, 3 not finite, 4 out of memory, "
        "75 asked to leave and saved, 130 ended at once, 1 anything else",
    )
    top.add_argument("--debug", action="store_true", help="show the traceback behind an error")
    top.add_argument("--version", action="store_true", help="print what is installed, and end")
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
    line = typed.line_of(top, argv)
    if "-h" not in line.rest and "--help" not in line.rest:
        typed.check(line)
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
        odd = next((i for i, x in enumerate(args.keys) if "=" not in x), None)
        if odd is not None:
            raise UserError(typed.no_equals(args.keys[odd:], typed.recipe_in(line)))
    return args


def answer(argv: list[str]) -> bool:
    """Whether it was a question for help or for the version, which is answered then.

    Raises UserError for a word that is no command, and, behind the help, where none is given.
    """
    words = [word for word in argv if word != "--debug"]
    if words and words[0] in VERSION:
        print(versions())
        return True
    asked = words[:1] == ["help"]
    line = typed.line_of(parser(), words[asked:])
    if not asked and (line.rest or not line.commands):
        return False
    line.parser.print_help()
    if not asked:
        sys.stdout.flush()
        raise UserError(f"Give a command: '{line.parser.prog} --help' lists them.")
    return True


def versions() -> str:
    """What is installed, on one line."""
    found = {}
    for name in ("vtx-scale", "torch", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    own = found.pop("vtx-scale", "not installed")
    beside = [f"Python {platform.python_version()}", *(f"{k} {v}" for k, v in found.items())]
    return f"vtx-scale {own} ({', '.join(beside)})"


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    # torchrun takes --run for one of its own options unless "--" stands before our words
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    command = ""
    caught: Exception | None = None
    try:
        if answer(arguments):
            return 0
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
