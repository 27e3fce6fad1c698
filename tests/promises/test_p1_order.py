"""P1, the same samples: golden vectors of the order."""

import hashlib

import numpy as np
import pytest

from data_pipeline.order import Order, draws


def chunks(shards, size):
    out = []
    for n in shards:
        while n > 0:
            out.append(min(size, n))
            n -= size
    return out


def test_words():
    assert [f"{x:016x}" for x in draws(0, 1, 0, 0, 0, 5)] == [
        "d037f8c3f9a1d176", "c057419b4c210765", "abf13115117b0065", "7bae035dea6ea5c0", "b487ac82e7ddd46f"]


@pytest.mark.parametrize(("shards", "c", "lanes", "window", "seed", "digest"), [
    ((5, 3, 4), 2, 2, 3, 0, "9bf4ca821274a1d3e6dda9e2b5ab5a6185da76849c06cbcf1bf623ef5575c769"),
    ((7,), 3, 4, 2, 2**63 + 5, "43e12b93f4c0ae6c2f3a646a6d0d19d227cfaafdaf878839edacf4be3d4e960a"),
    ((*[10] * 10, 1, 1, 1), 4, 8, 5, 42, "87f6b494d469509c51a0753a3b6d4c744dac8ad88764359c47bb962d8068f597"),
])
def test_golden_vectors(shards, c, lanes, window, seed, digest):
    order = Order(chunks(shards, c), seed, lanes, window)
    ids = order.ids(np.arange(2 * order.n))
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == digest
