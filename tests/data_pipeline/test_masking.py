"""Whatever is raised for a sample masks that sample, in a run as in `vtx data verify`."""

import json
import re

import numpy as np
import pytest
import torch

from tests.data_pipeline.make import Pixels, jpeg, small_index, small_set
from vtx_scale.data_pipeline import decode
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.errors import DETAIL, BadSample, UserError, described, judged
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.tools.verify import fault


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


class Shouts(Pixels):
    """Raises at every third sample."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, members, draw):
        if int(members["cls"]) % 3 == 1:
            raise self.error
        return super().__call__(members, draw)


class Shapes(Pixels):
    """At every third sample another array than `blank` has, behind one that is right."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value

    def __call__(self, members, draw):
        row = super().__call__(members, draw)
        if int(members["cls"]) % 3 == 1:
            row[self.name] = self.value
        return row


ODD = [
    KeyError(6),
    ZeroDivisionError("division by zero"),
    RuntimeError("a\nb\x1b[2Jc" + "x" * 5000),
    AssertionError(),
    StopIteration(3),
    RecursionError("deep"),
    OSError(5, "Input/output error"),
    EOFError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    torch.cuda.OutOfMemoryError("of a device"),
    np.linalg.LinAlgError("singular"),
    Mute(),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return small_index(small_set(tmp_path_factory.mktemp("set")))


def batch_of(index, reader):
    return Batches(index, InOrder(15), reader, 15, 0, 1)[0]


@pytest.mark.parametrize("error", ODD, ids=lambda e: type(e).__name__)
def test_what_a_reader_raises_masks_its_sample(index, error):
    plain, batch = batch_of(index, Pixels()), batch_of(index, Shouts(error))
    bad = [int(e["key"][-2:]) % 3 for e in batch["bad"]]
    assert len(bad) == 5 and set(bad) == {1} and int(batch["valid"].sum()) == 10
    assert batch["ids"].tolist() == plain["ids"].tolist()
    assert torch.equal(
        batch["data"]["image"][batch["valid"]], plain["data"]["image"][batch["valid"]]
    )
    for entry in batch["bad"]:
        assert entry["reason"] == "reader_error" and len(entry["detail"]) <= DETAIL
        assert entry["detail"].startswith(type(error).__name__) and entry["detail"].isprintable()
        assert re.search(r" \(test_masking\.py:\d+\)$", entry["detail"]), "where it was raised"
        json.loads(json.dumps(entry))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", np.zeros((2, 12, 13, 3), np.uint8)),
        ("image", None),
        ("length", np.zeros(3)),
        ("depth", np.zeros((2, 12, 12), np.float32)),
        ("length", "seven"),
    ],
)
def test_arrays_that_are_not_those_of_blank_mask_their_sample(index, name, value):
    """What was written of it before is taken back: a masked slot holds zeros."""
    batch = batch_of(index, Shapes(name, value))
    assert len(batch["bad"]) == 5 and {e["reason"] for e in batch["bad"]} == {"reader_error"}
    for array in batch["data"].values():
        assert not array[~batch["valid"]].any() and array[batch["valid"]].any()


@pytest.mark.parametrize("error", [MemoryError(), UserError("Give a palette."), SystemExit(1)])
def test_what_is_no_fault_of_a_sample_is_not_masked(index, error):
    with pytest.raises(type(error)):
        batch_of(index, Shouts(error))
    with pytest.raises(type(error)):
        judged("reader_error", Shouts(error), {"cls": b"1"}, None)


def test_a_readers_own_word_stays(index):
    batch = batch_of(index, Shouts(BadSample("too_dark", "mean 3")))
    assert {(e["reason"], e["detail"]) for e in batch["bad"]} == {("too_dark", "mean 3")}


def test_loader_processes_mask_as_well(index):
    batches = Batches(index, InOrder(15), Shouts(KeyError(6)), 15, 0, 1)
    loader = Loader(batches, stop=1, workers=1)
    try:
        batch = loader.next()
    finally:
        loader.close()
    assert [e["reason"] for e in batch.bad] == ["reader_error"] * 5


def test_a_decoder_that_raises_gives_the_same_verdict_to_both(index, monkeypatch):
    """A decoder for which somebody else's library has a surprise."""

    def decoder(body, *more):
        raise KeyError(6)

    monkeypatch.setattr(decode, "decode_jpeg", decoder)
    batch = batch_of(index, Pixels())
    verdict = fault({"jpg": jpeg(), "txt": b"x"})
    assert {e["reason"] for e in batch["bad"]} == {verdict} and len(batch["bad"]) == 15


def test_described_is_short_and_plain():
    assert described(KeyError("a")) == "KeyError: 'a'"
    assert described(Mute()) == "Mute:"
    assert len(described(ValueError("é\N{BELL}\u2028" * 400))) == DETAIL
