"""Codes a second of DALL-E's sampling, a pattern each, and the decoder's answer to codes.

    python benchmarks/sample.py [--codes 64] [--rounds 5] [--out benchmarks/results/sample.json]

One thread, two pictures of 1,024 codes behind 256 tokens, 8 layers of width 256, all of one
pattern. `cached` is a step with the keys and values of all places before; `whole pattern` the same
step with a mask that is made for all places and then cut, which a row of its own replaced;
`uncached` one forward pass over caption and picture, which gives one code without a cache. The
decoder: 8 pictures of 32 x 32 codes of 8,192, looked up, and by shares of 0 and 1. Each round times
every way; times are the fastest round's.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from vtx_scale.backbones import build_network, dalle
from vtx_scale.blocks.rules import initial_values
from vtx_scale.specs.dalle import TextToCodesConfig
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.trainer.init import initialise

BATCH = 2


def whole_pattern(self: dalle.Attention, place: int, device: torch.device) -> torch.Tensor | None:
    """As `Attention.seen_from`, from the pattern of all places."""
    T = 1 + self.spec.context
    if place < T:
        return None
    at = place - T
    row = dalle.sees(self.kind, self.spec.grid, self.spec.reach, device)[at, : at + 1]
    return torch.cat([row.new_ones(T), row])[None]


def network(spec: Any) -> Any:
    net = build_network(spec)
    initialise(net, initial_values(net), 0)
    return net.eval()


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def sampling(kind: str, count: int, rounds: int) -> dict[str, float]:
    """Codes a second."""
    spec = TextToCodesConfig(width=256, heads=4, depth=8, vocab=512)
    with mock.patch.object(dalle, "kind_of", lambda layer, depth: kind):
        net = network(spec)
    tokens = torch.zeros(BATCH, spec.context, dtype=torch.int64)
    unused = torch.zeros(BATCH, spec.context, dtype=torch.bool)
    codes = torch.zeros(BATCH, spec.grid**2, dtype=torch.int64)

    def steps() -> None:
        cache = net.prefill(tokens, unused)
        for place in range(count):
            net.step(codes[:, place - 1] if place else None, place, cache, BATCH)

    times: dict[str, list[float]] = {"cached": [], "whole pattern": [], "uncached": []}
    for _ in range(rounds):
        times["cached"].append(seconds(steps) / count)
        with mock.patch.object(dalle.Attention, "seen_from", whole_pattern):
            times["whole pattern"].append(seconds(steps) / count)
        times["uncached"].append(seconds(lambda: net(tokens, unused, codes)))
    return {name: round(BATCH / min(found), 1) for name, found in times.items()}


def decoding(rounds: int) -> dict[str, float]:
    """Milliseconds of the decoder's first layer."""
    decoder = network(CodecConfig()).decoder
    codes = torch.randint(decoder.input.in_channels, (8, 32, 32))
    decoder.groups = decoder.groups[:0]
    decoder.output = torch.nn.Identity()

    def by_shares() -> torch.Tensor:
        shares = F.one_hot(codes, decoder.input.in_channels).permute(0, 3, 1, 2).float()
        return decoder(shares)

    assert torch.equal(decoder.of_codes(codes), by_shares())
    looked_up = min(seconds(lambda: decoder.of_codes(codes)) for _ in range(rounds))
    return {
        "looked up": round(1e3 * looked_up, 2),
        "by shares": round(1e3 * min(seconds(by_shares) for _ in range(rounds)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    body: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine()}
    with torch.no_grad():
        for kind in ("row", "column", "conv"):
            body[kind] = sampling(kind, args.codes, args.rounds)
            print(f"{kind:7}", body[kind], flush=True)
        body["decoder, ms"] = decoding(args.rounds)
    print("decoder", body["decoder, ms"])
    if args.out:
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
