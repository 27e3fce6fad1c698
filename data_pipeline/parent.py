"""What the end of a parent does to its child. Standard library alone."""

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def signalled(number: int) -> None:
    """The kernel sends this signal when the thread that started this process ends; only Linux's
    can. Elsewhere a child outlives a parent that was killed.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def die_with_parent(parent: int) -> None:
    """SIGKILL of the parent ends this process too; checked once more because the parent may
    be gone already.
    """
    signalled(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def leave_with_parent() -> None:
    """The end of the parent asks this process to leave, as its SIGTERM would."""
    signalled(signal.SIGTERM)
