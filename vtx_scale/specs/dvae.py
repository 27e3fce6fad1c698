"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, A.1, A.2).

Standard library only.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from vtx_scale.specs.network import Input, Network
from vtx_scale.specs.objective import PICTURES, ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class CodecConfig(Network):
    """Encoder and decoder: residual convolutions in groups, each half as fine as the one before."""

    build: ClassVar[str] = "vtx_scale.backbones.dvae:Codec"
    interop: ClassVar[str] = "vtx_scale.interop.dvae"

    width: int = 256  # of the first group; doubles with each
    groups: int = 4  # each half as fine as the one before
    blocks: int = 2  # of a group
    vocab: int = 8_192  # how many codes there are
    stem: int = 128  # channels that the decoder starts with
    resolution: int = 256  # pixels of a side
    gain: float | None = None  # of a residual path; None: 1 / (groups blocks)^2

    @property
    def grid(self) -> int:
        """Codes of a side."""
        return self.resolution >> (self.groups - 1)

    def inputs(self) -> tuple[Input, ...]:
        return (((3, self.resolution, self.resolution), "pixels"),)

    def faults(self) -> list[str]:
        found = [
            f"{n}={getattr(self, n)}: give 1 or more."
            for n in ("groups", "blocks", "vocab", "stem")
            if getattr(self, n) < 1
        ]
        if self.width < 4 or self.width % 4:
            found.append(f"width={self.width}: give a multiple of 4.")
        if not found and self.resolution % (1 << (self.groups - 1)):
            found.append(
                f"resolution={self.resolution}: give a multiple of {1 << (self.groups - 1)}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DvaeConfig(ObjectiveSpec):
    """Pictures through codes: their likelihood, and how far the codes are from equally likely.

    Schedules count steps.

    `average` is the momentum of the weights' moving average, which evaluations and exports
    use; 0 for none.
    """

    build: ClassVar[str] = "vtx_scale.objectives.dvae:Dvae"
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    places: ClassVar[tuple[str, ...]] = ("net.", "average.")
    pixels = "unit"  # of what is exported: from 0 to 1, as they are

    net: CodecConfig
    kl: float = 6.6  # the weight of the codes' divergence from equally likely ones
    kl_start: float = 0.0  # where that weight starts
    kl_steps: int = 5_000  # until that weight is there, on half a cosine
    temperature: float = 1 / 16  # of the relaxed draws, from 1
    temperature_steps: int = 150_000  # until that temperature is there
    # share of itself that the weights' moving average keeps at a step; 0 for none
    average: float = 0.999

    def exported(self) -> tuple[str, Network]:
        return ("average." if self.average else "net."), self.net

    def faults(self) -> list[str]:
        found = []
        if self.kl < 0 or self.kl_start < 0:
            found.append(f"kl={self.kl}: give weights of 0 or more.")
        if self.temperature <= 0:
            found.append(f"temperature={self.temperature}: give a temperature above 0.")
        if not 0 <= self.average < 1:
            found.append(f"average={self.average}: give a share from 0 to below 1.")
        return found


def half_cosine(start: float, end: float, step: int, steps: int) -> float:
    """From start to end within `steps`, and there it stays."""
    done = min(1.0, step / steps) if steps else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def published() -> dict[str, CodecConfig]:
    """Name -> spec: encoder and decoder."""
    return {"dvae_dalle": CodecConfig()}
