"""What a checkpoint costs: the time of a save beside plain writes of the same bytes, and how long
one that is written in the background holds up the step.

    python benchmarks/checkpoint.py [--mib 384] [--rounds 7] [--folder DIR] [--deepspeed]
                                    [--out benchmarks/results/checkpoint.json]

One process, on the disk of DIR (a temporary folder). The state is a transformer's: parameters and
two moments, float32. All kinds are measured in every round, in another order each time, and each
removes what it wrote before the next begins:

    plain       the same bytes in one file, 4 MiB at a time, and fsync of file and folder
    save        our Writer until the manifest is committed: copy, digest, write, fsync, read back
    stall       our Writer until it returns to the step; the rest goes on in its thread
    dcp         torch.distributed.checkpoint.save, which neither syncs nor verifies unless asked
    dcp stall   torch.distributed.checkpoint.async_save until it returns
    deepspeed   DeepSpeed's engine.save_checkpoint of a model of this size (with --deepspeed)

Shown are the median and the fastest round, and the seconds of this process's CPUs: on a machine
that others use, the fastest rounds are nearest to what a quiet one gives. The spread is (90 % -
10 %) / median. The ratios are given of medians within a round, and of the fastest.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from vtx_scale.checkpoints.tensor_file import CHUNK, bytes_of
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.publish import sync
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.sharding import Slice

WIDTH = 1024


def state_of(mib: int) -> dict[str, torch.Tensor]:
    """About so many MiB: blocks of a transformer, their parameters and both moments."""
    shapes = {
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        "ln_1.weight": (WIDTH,),
    }
    block = sum(torch.Size(s).numel() for s in shapes.values()) * 12 / 2**20
    return {
        f"{kind}/blocks.{i}.{name}": torch.rand(shape)
        for i in range(max(1, round(mib / block)))
        for kind in ("param", "exp_avg", "exp_avg_sq")
        for name, shape in shapes.items()
    }


class Bench:
    """The kinds, each a function of a folder that returns the seconds that count."""

    def __init__(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        self.state, self.folder = state, folder
        self.bytes = sum(t.numel() * t.element_size() for t in state.values())
        self.writer = Writer(Folder(folder / "ours"), 0, 1, "bench", 1)
        self.step = 0
        self.kinds: dict[str, Callable[[], float]] = {
            "plain": self.plain,
            "save": self.save,
            "stall": self.stall,
            "dcp": self.dcp,
            "dcp stall": self.dcp_stall,
        }

    def plain(self) -> float:
        began = time.perf_counter()
        path = self.folder / "plain"
        with path.open("wb", buffering=0) as file:
            for tensor in self.state.values():
                body = bytes_of(tensor)
                for start in range(0, len(body), CHUNK):
                    file.write(body[start : start + CHUNK])
            os.fsync(file.fileno())
        sync(self.folder)
        return time.perf_counter() - began

    def slices(self) -> list[Slice]:
        return [
            Slice(key, tuple(t.shape), tuple((0, n) for n in t.shape), t)
            for key, t in self.state.items()
        ]

    def save(self) -> float:
        began = time.perf_counter()
        self.stall()
        return time.perf_counter() - began

    def stall(self) -> float:
        self.step += 1
        began = time.perf_counter()
        self.writer.save(self.step, self.slices(), {})
        took = time.perf_counter() - began
        self.writer.wait()
        assert self.writer.committed == self.step, self.writer.error
        return took

    def dcp(self) -> float:
        began = time.perf_counter()
        dcp.save(self.state, checkpoint_id=self.folder / "dcp")
        return time.perf_counter() - began

    def dcp_stall(self) -> float:
        began = time.perf_counter()
        ends = dcp.async_save(self.state, checkpoint_id=self.folder / "dcp")
        took = time.perf_counter() - began
        ends.result()
        return took

    def clear(self) -> None:
        """Nothing of one kind weighs on the next."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()


def with_deepspeed(bench: Bench) -> Callable[[], float]:
    """Its own checkpoint of a model whose parameters and moments are as large as the state."""
    import deepspeed

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    params = [t for key, t in bench.state.items() if key.startswith("param/")]
    model = torch.nn.Module()
    for i, tensor in enumerate(params):
        model.register_parameter(f"p{i}", torch.nn.Parameter(tensor.clone()))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={"train_batch_size": 1, "zero_optimization": {"stage": 1}},
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    engine.backward(sum(p.sum() for p in model.parameters()))
    engine.step()

    def save() -> float:
        began = time.perf_counter()
        engine.save_checkpoint(str(bench.folder / "deepspeed"), tag="bench")
        return time.perf_counter() - began

    return save


def spread(values: list[float]) -> float:
    low, *_, high = statistics.quantiles(values, n=10)
    return (high - low) / statistics.median(values)


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--mib", type=int, default=384)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--folder", type=Path, default=None)
    ask.add_argument("--deepspeed", action="store_true")
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        bench = Bench(state_of(args.mib), Path(name))
        if args.deepspeed:
            bench.kinds["deepspeed"] = with_deepspeed(bench)
        first = bench.stall()  # it makes the room that later ones write into
        found: dict[str, list[float]] = {kind: [] for kind in bench.kinds}
        cpu: dict[str, list[float]] = {kind: [] for kind in bench.kinds}
        for k in range(args.rounds):
            order = list(bench.kinds)
            for kind in order[k % len(order) :] + order[: k % len(order)]:
                bench.clear()
                began = time.process_time()
                found[kind].append(bench.kinds[kind]())
                cpu[kind].append(time.process_time() - began)
        bench.clear()
    mib = bench.bytes / 2**20
    rows = {
        kind: {
            "seconds": statistics.median(values),
            "fastest": min(values),
            "cpu_seconds": statistics.median(cpu[kind]),
            "mib_per_second": mib / statistics.median(values),
            "spread": spread(values),
        }
        for kind, values in found.items()
    }
    ratio = statistics.median(
        plain / save for plain, save in zip(found["plain"], found["save"], strict=True)
    )
    stalled = statistics.median(
        stall / save for stall, save in zip(found["stall"], found["save"], strict=True)
    )
    for kind, row in rows.items():
        print(
            f"{kind:10} {row['seconds']:7.3f} s {row['mib_per_second']:8.0f} MiB/s  fastest "
            f"{row['fastest']:.3f} s  CPU {row['cpu_seconds']:.3f} s  spread {row['spread']:.0%}"
        )
    best = {kind: min(values) for kind, values in found.items()}
    fastest = {"of_plain": best["plain"] / best["save"], "stall": best["stall"] / best["save"]}
    print(
        f"{mib:.0f} MiB; a save has {ratio:.0%} of the throughput of plain writes "
        f"({fastest['of_plain']:.0%} of the fastest rounds)"
    )
    print(
        f"in the background it holds up {stalled:.1%} of it ({fastest['stall']:.1%}; the first "
        f"one {first:.3f} s)"
    )
    if args.out:
        body = {"mib": mib, "rounds": args.rounds, "rows": rows, "of_plain": ratio}
        body |= {"stall": stalled, "first_stall": first, "all": found, "fastest": fastest}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
