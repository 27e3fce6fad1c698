"""Which rows of a source go to the validation set of it, and in which order files are packed:
decided by what names each of them.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.shards import encoded


@dataclass(frozen=True)
class Side:
    """The rows whose hash, in [0, 1), is below `share`, or the others.

    The hash is of a picture's path, or of its bytes where a table holds them, so that other rows
    move none, and rows of one picture lie on one side.
    """

    share: float = 0.0
    held: bool = False

    def takes(self, picture: Any) -> bool:
        """Whether a row lies on this side. picture: what its cell holds."""
        if not self.share:
            return not self.held
        if isinstance(picture, dict):
            picture = picture.get("bytes") or picture.get("path")
        body = picture if isinstance(picture, bytes) else encoded(str(picture))
        word = int.from_bytes(hashlib.sha256(body).digest()[:8], "big") / 2.0**64
        return (word < self.share) == self.held

    def about(self) -> dict[str, Any]:
        """What of it decides the bytes of a set, as JSON; nothing where all rows are taken."""
        return {"side": [self.share, self.held]} if self.share else {}


ALL = Side()
ORDER = b"order of vtx data build\0"  # another hash than that of the sides


def shuffled(names: list[str]) -> list[str]:
    """Names by a hash of each: the same order each time, whatever stands beside them.

    Names of one folder come to lie apart; the order says nothing of the side on which one lies.
    """
    return sorted(names, key=lambda name: hashlib.sha256(ORDER + encoded(name)).digest())
