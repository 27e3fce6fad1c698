"""The two ways in which input is wrong: a user can mend one, the ledger records the other."""

from collections import Counter

# what this process let pass and counts: animated, text_replaced, text_cut
notes: Counter[str] = Counter()


class UserError(Exception):
    """Wrong input.

    Its text is one sentence that says what to do; the command line prints it and exits 2.
    """


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
