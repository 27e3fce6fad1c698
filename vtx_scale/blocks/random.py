"""Random numbers on the device that belong to (seed, step, purpose, slot):
the same for every world, micro-batch and device.

Counter-based: a number is a hash of what it belongs to, made by integer arithmetic that is exact
everywhere, so there is no state to save. Uniforms are equal to the last bit on every device,
normals to rounding.
"""

import hashlib
import math
import zlib

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers (in int64) in which every bit of the input moves half
    of the output's.
    """
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK
    return x ^ (x >> 16)


def step_key(seed: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """() int64 in [0, 2^62): what all numbers of a step share.
    A tensor, so that compiled code does not see a new constant.
    """
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8]
    return torch.tensor(int.from_bytes(digest, "little") >> 2, device=device)


def uniform(key: Tensor, purpose: str, rows: Tensor, *shape: int) -> Tensor:
    """(len(rows), *shape) float32 in [0, 1), 24 bits. rows:
    int64 numbers that are the same wherever the row lies.
    """
    word = zlib.crc32(purpose.encode())
    row = mix((rows & MASK) ^ mix((key & MASK) ^ word)) ^ mix((rows >> 32) ^ (key >> 32))
    per_row = math.prod(shape)
    if not shape:
        return (mix(row) >> 8).float() * 2.0**-24
    count = torch.arange(per_row, device=rows.device) * 0x9E3779B1 & MASK
    bits = mix(mix((row[:, None] ^ count[None]) & MASK) + row[:, None] & MASK)
    return ((bits >> 8).float() * 2.0**-24).view(len(rows), *shape)


def bits(key: Tensor, purpose: str, at: Tensor) -> Tensor:
    """32 random bits for each element of `at`, numbers of places in one tensor modulo 2^32: int32,
    as `at` is, whose memory is taken for them.

    Equal for a place however a tensor is cut. `mix` in 32-bit arithmetic, which wraps.
    """
    both = mix(mix((key & MASK) ^ zlib.crc32(purpose.encode())) ^ (key >> 32))
    x = at.mul_(signed(0x9E3779B1)).bitwise_xor_(both.to(torch.int32))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(signed(factor))
    return x


def signed(number: int) -> int:
    """A 32-bit number as int32 writes it."""
    return number - (1 << 32) if number >> 31 else number


def normal(key: Tensor, purpose: str, rows: Tensor, *shape: int) -> Tensor:
    """Standard normals by Box and Muller."""
    radius = (-2 * torch.log1p(-uniform(key, purpose + "/radius", rows, *shape))).sqrt()
    return radius * torch.cos(2 * math.pi * uniform(key, purpose + "/angle", rows, *shape))
