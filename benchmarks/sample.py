"""Codes a second of DALL-E's sampling, a pattern each, and the decoder's answer to codes.

    python benchmarks/sample.py [--codes 64] [--rounds 5] [--out benchmarks/results/sample.json]

One thread, two pictures of 1,024 codes behind 256 tokens, 8 layers of width 256, all of one
pattern; codes evenly over the picture. `cached` is a step that reads, of the keys and values of all
places before, those that its place sees; `mask of a row` reads all of them under the row of the
pattern; `whole pattern` makes that of all places and cuts the row out, as it was before; `uncached`
is one forward pass over caption and picture, which gives one code without a cache. The decoder: 8
pictures of 32 x 32 codes of 8,192, looked up, and by shares of 0 and 1. Each round times every way
in seconds of this process's CPU; times are the fastest round's.
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
from vtx_scale.blocks.attention import KVCache
from vtx_scale.blocks.rules import initial_values
from vtx_scale.specs.dalle import TextToCodesConfig
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.trainer.init import initialise

BATCH = 2


def row_of(self: dalle.Attention, at: int) -> torch.Tensor:
    """(1, G G) bool: the row of a place."""
    return dalle.sees(self.kind, self.spec.grid, self.spec.reach, place=at)


def row_of_all(self: dalle.Attention, at: int) -> torch.Tensor:
    """The same, cut out of the pattern of all places."""
    return dalle.sees(self.kind, self.spec.grid, self.spec.reach)[at : at + 1]


def by_mask(row: Callable[[dalle.Attention, int], torch.Tensor]) -> Any:
    """`Attention.forward` of a step that reads all keys under a mask."""
    plain = dalle.Attention.forward

    def forward(
        self: dalle.Attention, x: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        B, N, C = x.shape
        if cache is None or N > 1:
            return plain(self, x, cache)
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        k, v = cache.add(k, v)
        T = 1 + self.spec.context
        at = cache.length - 1 - T
        mask = torch.cat([torch.ones(1, T).bool(), row(self, at)[:, : at + 1]], 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(B, N, C))
        return out

    return forward


def network(spec: Any) -> Any:
    net = build_network(spec)
    initialise(net, initial_values(net), 0)
    return net.eval()


def seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def sampling(kind: str, count: int, rounds: int) -> dict[str, float]:
    """Codes a second."""
    spec = TextToCodesConfig(width=256, heads=4, depth=8, vocab=512)
    with mock.patch.object(dalle, "kind_of", lambda layer, depth: kind):
        net = network(spec)
    tokens = torch.zeros(BATCH, spec.context, dtype=torch.int64)
    unused = torch.zeros(BATCH, spec.context, dtype=torch.bool)
    codes = torch.zeros(BATCH, spec.grid**2, dtype=torch.int64)

    cache = net.prefill(tokens, unused)
    for kept in cache:
        for values in (kept.k, kept.v):
            values[:, :, kept.length :] = 0  # nobody has written there

    def steps() -> None:
        for place in range(spec.grid**2 // count - 1, spec.grid**2, spec.grid**2 // count):
            for kept in cache:
                kept.length = 1 + spec.context + place
            net.step(codes[:, place - 1] if place else None, place, cache, BATCH)

    ways = {"mask of a row": by_mask(row_of), "whole pattern": by_mask(row_of_all)}
    times: dict[str, list[float]] = {name: [] for name in ("cached", *ways, "uncached")}
    for _ in range(rounds):
        times["cached"].append(seconds(steps) / count)
        for name, forward in ways.items():
            with mock.patch.object(dalle.Attention, "forward", forward):
                times[name].append(seconds(steps) / count)
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
