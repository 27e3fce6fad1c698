"""Whether the coded data of a sequential JPEG are sound: each code is known, and there are as many
as the frame has blocks.

For the few files of a sampling that the strict decoder does not take. Another one gives their
pixels, which passes over broken data in silence; so they are walked through here, in Python, at
about a megabyte a second.
"""

import re
from itertools import islice

from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.jpeg import AFTER_CODED, DHT, DRI, SOS, Frame, segments

RESTART = re.compile(rb"\xff([\xd0-\xd7])")
Table = list[int]  # by the next 16 bits: bits of code and value + 256 x coefficients; 0: no code


def left_over(body: bytes, frame: Frame) -> int:
    """Bytes that stand between the coded data of the last scan and the end, in a sequential,
    Huffman coded JPEG that has its end.

    Raises BadSample jpeg_corrupt where the coded data are not what the frame says.
    """
    tables: dict[int, Table] = {}
    interval, components, left = 0, 0, 0
    for s in segments(body):
        payload = body[s.start : s.end]
        if s.marker == DHT:
            tables |= tables_of(payload)
        elif s.marker == DRI:
            interval = int.from_bytes(payload[:2], "big")
        elif s.marker == SOS:
            behind = AFTER_CODED.search(body, s.end)
            data = body[s.end : behind.start() if behind else None]
            plan, units = blocks_of(payload, body, frame, tables)
            if left:
                raise BadSample("jpeg_corrupt", f"{left} bytes left in front of a scan")
            left = left_of_scan(data.rstrip(b"\xff"), plan, units, interval or units)
            components += payload[0]
    if components != len(frame.sampling):
        raise BadSample("jpeg_corrupt", f"coded data of {components} components")
    return left


def tables_of(payload: bytes) -> dict[int, Table]:
    """Number (16 and up: of AC coefficients) -> table, of a DHT segment."""
    out: dict[int, Table] = {}
    while len(payload) >= 17:
        number, counts, symbols = payload[0], payload[1:17], iter(payload[17:])
        table: Table = []
        for length, count in enumerate(counts, 1):
            for symbol in islice(symbols, count):
                entry = length + (symbol & 15) + 256 * coefficients(number, symbol)
                table += [entry] * (1 << (16 - length))
            if len(table) > 65536:
                raise BadSample("jpeg_corrupt", "more Huffman codes than there can be")
        out[number] = table + [0] * (65536 - len(table))
        payload = payload[17 + sum(counts) :]
    return out


def coefficients(number: int, symbol: int) -> int:
    """How many coefficients of a block a symbol stands for."""
    if number < 16:
        return 1
    return 64 if symbol & 15 == 0 and symbol >> 4 != 15 else (symbol >> 4) + 1


def blocks_of(
    payload: bytes, body: bytes, frame: Frame, tables: dict[int, Table]
) -> tuple[list[tuple[Table, Table]], int]:
    """The tables of each block of a scan's unit, and how many units the scan has."""
    ids = [body[frame.at + 6 + 3 * k] for k in range(len(frame.sampling))]
    plan = []
    try:
        chosen = [(payload[1 + 2 * k], payload[2 + 2 * k]) for k in range(payload[0])]
        for name, numbers in chosen:
            h, v = frame.sampling[ids.index(name)]
            pair = tables[numbers >> 4], tables[16 + (numbers & 15)]
            plan += [pair] * (h * v if len(chosen) > 1 else 1)
        one = ids.index(chosen[0][0])
    except (KeyError, ValueError, IndexError) as e:
        raise BadSample("jpeg_corrupt", f"no table or component of a scan: {e}") from None
    rows, columns = frame.units() if len(chosen) > 1 else frame.own_blocks(one)
    return plan, rows * columns


def left_of_scan(data: bytes, plan: list[tuple[Table, Table]], units: int, interval: int) -> int:
    """Bytes left by a scan of so many units with a restart after each `interval` of them."""
    parts = RESTART.split(data)
    if len(parts[::2]) != -(-units // interval):
        raise BadSample("jpeg_corrupt", f"{len(parts) // 2} restart markers")
    left = 0
    for k, part in enumerate(parts[::2]):
        if left or (k and parts[2 * k - 1][0] != 0xD0 + (k - 1) % 8):
            raise BadSample("jpeg_corrupt", "a restart marker out of turn")
        left = walk(part.replace(b"\xff\x00", b"\xff"), plan, min(interval, units - k * interval))
        if left < 0:
            raise BadSample("jpeg_corrupt", "coded data too short")
    return left


def walk(data: bytes, plan: list[tuple[Table, Table]], units: int) -> int:
    """The bytes that so many units leave of the data; negative where they are too few.

    Raises BadSample jpeg_corrupt for bits that are no code.
    """
    held = n = at = 0  # n bits are held of those before `at`
    size = len(data)
    for _ in range(units):
        if at - n // 8 > size:
            return -1
        for dc, ac in plan:
            table, k = dc, 0
            while k < 64:
                if n < 32:
                    held = (held & 0xFFFFFFFF) << 32 | int.from_bytes(
                        data[at : at + 4].ljust(4, b"\x00"), "big"
                    )
                    at += 4
                    n += 32
                entry = table[held >> (n - 16) & 0xFFFF]
                if not entry:
                    raise BadSample("jpeg_corrupt", "no Huffman code")
                n -= entry & 255
                k += entry >> 8
                table = ac
    return size - (at - n // 8)
