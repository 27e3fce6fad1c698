"""How fast samples come, and what bounds them: the work on each, or the bytes."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.cache import NodeCache
from vtx_scale.data_pipeline.cached import whole_chunks
from vtx_scale.data_pipeline.system import processors

FETCHES = 4  # at a time, as a prefetcher has
CHUNKS = 32  # that are fetched to measure it
ENOUGH = 2.0  # CPU-seconds of reading samples


def bench(batches: Batches, cache: NodeCache | None) -> dict[str, Any]:
    """Samples a CPU-second of this process, with reading and decoding; bytes a second that come
    from where the shards lie, `FETCHES` chunks at a time, and from the cache; and whether `cpu` or
    `fetch` bounds a node of this machine's cores.

    cache: None where there is none. Raises UserError where a shard is gone or another, OSError
    where a chunk cannot be read.
    """
    index = batches.index
    chunks = np.linspace(0, len(index.chunk_bytes) - 1, CHUNKS).astype(int)
    chunks = np.unique([k for k in chunks.tolist() if not index.only_bad(k)]).astype(int)
    fetch, took = whole_chunks(index), []

    def timed(k: int) -> int:
        begin = time.perf_counter()
        body = fetch(k)
        took.append(time.perf_counter() - begin)
        if cache is not None:
            file = cache.get(k, len(body), lambda: body)
            if file is not None:
                file.close()
        return len(body)

    begin, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(FETCHES) as pool:
        total = sum(pool.map(timed, chunks.tolist()))
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    each = float(index.chunk_bytes.sum()) / int(index.chunk_samples_all.sum())
    found = {
        "fetch_mb_per_second": total / wall / 1e6,
        "fetch_cpu_ms": cpu / len(chunks) * 1e3,
        "fetch_ms_median": float(np.median(took)) * 1e3,
        "fetch_ms_slowest": max(took) * 1e3,
    }
    if cache is not None:
        found["cache_mb_per_second"] = cache_rate(cache, index.chunk_bytes, chunks.tolist()) / 1e6
    samples = samples_rate(batches)
    cores = processors()
    by_cpu, by_fetch = samples * cores, total / wall / each
    return {
        "samples_per_cpu_second": samples,
        "bytes_per_sample": each,
        **found,
        "cores": cores,
        "samples_per_second_by_cpu": by_cpu,
        "samples_per_second_by_fetch": by_fetch,
        "bound": "cpu" if by_cpu < by_fetch else "fetch",
    }


def cache_rate(cache: NodeCache, lengths: Any, chunks: list[int]) -> float:
    """Bytes a second of chunks that are in the cache, one after the other; 0 where none is."""
    begin, total = time.perf_counter(), 0
    for k in chunks:
        file = cache.open(k, int(lengths[k]))
        if file is not None:
            with file:
                total += len(file.read(0, file.size))
    return total / (time.perf_counter() - begin)


def samples_rate(batches: Batches) -> float:
    """Samples a CPU-second of this process, of the first batches of one rank."""
    done, step = 0, 0
    batches[0]  # tables and descriptors are made once
    begin, late = time.process_time(), time.monotonic() + 5 * ENOUGH
    while time.process_time() - begin < ENOUGH and time.monotonic() < late:
        step += 1
        done += int((batches[step]["ids"] >= 0).sum())
    taken = time.process_time() - begin
    batches.close()
    return done / taken
