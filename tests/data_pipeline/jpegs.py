"""JPEGs that no encoder at hand writes: any sampling, several scans, every marker by hand."""

import struct

import numpy as np

AC = bytes((k + 42) % 255 for k in range(255))  # symbol of each code: the end of a block is no zero
FACTORS = list[tuple[int, int]]  # (horizontal, vertical) a component


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


class Bits:
    def __init__(self) -> None:
        self.text: list[str] = []

    def put(self, value: int, length: int) -> None:
        if length:
            self.text.append(f"{value:0{length}b}")

    def number(self, value: int, size: int) -> None:
        """A coefficient's bits: negative ones as their complement."""
        self.put(value if value > 0 else value + (1 << size) - 1, size)

    def bytes(self) -> bytes:
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


def block(bits: Bits, rng: np.random.Generator, flat: bool) -> None:
    """A difference and a few coefficients; codes are 4 bits of DC symbols and 8 of AC symbols."""
    for k in range(1 + (0 if flat else int(rng.integers(0, 6)))):
        value = int(rng.integers(-60, 61))
        size = abs(value).bit_length()
        if k:
            size = max(size, 1)
            value = value or 1
            bits.put(AC.index(int(rng.integers(0, 4)) << 4 | size), 8)
        else:
            bits.put(size, 4)
        bits.number(value, size)
    bits.put(AC.index(0), 8)


def tables(count: int) -> bytes:
    """Codes of equal length, of which all ones is none. Quantizers of 4 to 11."""
    quantizers = bytes([0]) + bytes(4 + k // 9 for k in range(64))
    dc = bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))
    ac = bytes([0] * 7 + [255] + [0] * 8) + AC
    both = b"".join(bytes([k]) + dc + bytes([16 + k]) + ac for k in range(count))
    return segment(0xDB, quantizers) + segment(0xC4, both)


def coded(
    rng: np.random.Generator, factors: FACTORS, rows: int, columns: int, restart: int, flat: bool
) -> bytes:
    """The coded data of rows x columns units with all of these components."""
    out, bits = [], Bits()
    for unit in range(rows * columns):
        if restart and unit and unit % restart == 0:
            out += [bits.bytes(), bytes([0xFF, 0xD0 + (unit // restart - 1) % 8])]
            bits = Bits()
        for h, v in factors:
            for _ in range(h * v):
                block(bits, rng, flat)
    return b"".join([*out, bits.bytes()])


def written(
    seed: int,
    factors: FACTORS,
    height: int = 40,
    width: int = 56,
    *,
    adobe: int | None = None,
    restart: int = 0,
    apart: bool = False,
    flat: bool = False,
) -> bytes:
    """A sound sequential JPEG of noise; apart: with a scan for each component."""
    rng = np.random.default_rng(seed)
    wide, tall = max(h for h, _ in factors), max(v for _, v in factors)
    out = b"\xff\xd8" + tables(2)
    if adobe is not None:
        out += segment(0xEE, b"Adobe\x00d\x00\x00\x00\x00" + bytes([adobe]))
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    for k, (h, v) in enumerate(factors):
        frame += bytes([k + 1, h << 4 | v, 0])
    out += segment(0xC0, frame)
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    head = [bytes([k + 1, 0x11 if k else 0]) for k in range(len(factors))]
    if not apart and len(factors) > 1:
        units = -(-height // (8 * tall)), -(-width // (8 * wide))
        body = bytes([len(head)]) + b"".join(head) + b"\x00\x3f\x00"
        return out + segment(0xDA, body) + coded(rng, factors, *units, restart, flat) + b"\xff\xd9"
    for (h, v), ids in zip(factors, head, strict=True):
        blocks = -(-height * v // (8 * tall)), -(-width * h // (8 * wide))
        out += segment(0xDA, b"\x01" + ids + b"\x00\x3f\x00")
        out += coded(rng, [(1, 1)], *blocks, restart, flat)
    return out + b"\xff\xd9"


def of_scans(count: int, height: int = 32, width: int = 48) -> bytes:
    """A lawful grey progressive JPEG of so many scans (at most 883): DC, then each coefficient bit
    by bit, all of them zero.
    """
    blocks = -(-width // 8) * -(-height // 8)
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    out = b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64)) + segment(0xC2, frame)
    out += segment(0xC4, bytes([0, 1] + [0] * 15 + [0]))  # category 0
    out += segment(0xC4, bytes([16, 0, 1] + [0] * 14 + [0]))  # the end of a block
    dc, ac = Bits(), Bits()
    for _ in range(blocks):
        dc.put(0, 1), ac.put(0, 2)
    out += segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + dc.bytes()
    for n in range(count - 1):
        k, step = 1 + n // 14, n % 14
        bits = 0x0D if step == 0 else (14 - step) << 4 | (13 - step)
        out += segment(0xDA, bytes([1, 1, 0, k, k, bits])) + ac.bytes()
    return out + b"\xff\xd9"
