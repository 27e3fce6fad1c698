"""The two ways in which input is wrong: a user can mend one, the ledger records the other."""

from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

DETAIL = 200  # letters of what was found that are kept
BLANK = "blank()"  # of a reader, as what it says of a sample that is not like it names it
P = ParamSpec("P")
T = TypeVar("T")

# what this process let pass and counts: animated, jpeg_mended, text_replaced, text_cut
notes: Counter[str] = Counter()


class UserError(Exception):
    """Wrong input.

    Its text is one sentence that says what to do; the command line prints it and exits 2.
    """


class NotShards(UserError):
    """What a user has are no shards, and shards can be made of it.

    found: what it is, a clause. source: as `vtx data build` takes it. command: that makes shards of
    it, to be pasted.
    """

    def __init__(self, found: str, source: str, command: str) -> None:
        super().__init__(f"{found}: '{command}' makes shards of it.")
        self.found, self.source, self.command = found, source, command

    def __reduce__(self) -> tuple[type["NotShards"], tuple[str, str, str]]:
        return NotShards, (self.found, self.source, self.command)


class BadSample(Exception):
    """A sample that cannot be used: its slot is masked, and the ledger says why.

    `reason` is a short word of the detection table (docs/data.md), `detail` what was found, for
    people. A `Reader` raises it; it goes from process to process.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadSample"], tuple[str, str]]:
        return BadSample, (self.reason, self.detail)


def judged(reason: str, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `read(*args)` gives for a sample; whatever it raises masks that sample.

    A run and `vtx data verify` both read samples through it, so that their verdicts are one.
    Raises BadSample: its own, and `reason` with type, text and place of any other exception;
    UserError and MemoryError, which are no fault of the sample, as they are.
    """
    try:
        return read(*args, **kwargs)
    except (BadSample, UserError, MemoryError):
        raise
    except Exception as e:
        raise BadSample(reason, described(e)) from e


def described(error: BaseException) -> str:
    """`KeyError: 6 (decode.py:50)`: type, text and place of an exception, on one line of at most
    `DETAIL` letters.
    """
    try:
        text = str(error)
    except Exception:  # of a stranger's class
        text = ""
    at, place = error.__traceback__, ""
    while at is not None:
        code = at.tb_frame.f_code
        place = f" ({code.co_filename.rpartition('/')[2]}:{at.tb_lineno})"
        at = at.tb_next
    room = DETAIL - len(place)
    line = " ".join(f"{type(error).__name__}: {text[:DETAIL]}".split())
    return "".join(c if c.isprintable() else "?" for c in line)[:room] + place
