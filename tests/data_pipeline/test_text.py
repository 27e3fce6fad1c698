"""Tokenizers: there and back, framed, cut, and the same file from the same captions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import jpeg
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import byte_letters, of_merges, tokenizer
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer
from vtx_scale.data_pipeline.tools.toy import make_toy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = make_toy(tmp_path_factory.mktemp("toy"), samples=60, shards=2, size=16)
    return folder, train_tokenizer(str(folder), folder / "tokenizer.json", vocab=300)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A merges file of CLIP's form, with three merges."""
    path = tmp_path_factory.mktemp("merges") / "merges.txt"
    path.write_text("#version: 0.2\nd o\ndo g</w>\nc a\n")
    words = path.read_text().split("\n")
    assert words[1] == "d o"
    path.write_text("\n".join(words[:4]))
    return of_merges(path)


@settings(max_examples=100)
@given(st.text())
def test_bytes_there_and_back(text):
    words = tokenizer("bytes")
    sent = text.encode("utf-8", "replace").decode()
    row = words.encode(text, 4 * len(text) + 2)
    assert row.dtype == np.int32 and words.decode(row.tolist()) == sent
    assert (
        row[0] == words.start
        and (row == words.end).sum() == 1
        and row.argmax() == len(sent.encode()) + 1
    )


@settings(max_examples=60, deadline=None)
@given(text=st.text("aAzZ éÉЖж漢字🙂?!1\n\t\0", max_size=30))
def test_trained_there_and_back(trained, text):
    """Lower case and one leading blank aside, any text survives,
    also with letters never seen in training.
    """
    words = tokenizer(str(trained[1]))
    kept = text.lower()
    row = words.encode(text, 4 * len(kept.encode()) + 2)
    assert words.decode(row.tolist()).removeprefix(" ") == kept.removeprefix(" ")


def test_frame_and_cut(trained, merged):
    for words in (tokenizer("bytes"), tokenizer(str(trained[1])), merged):
        assert words.end == words.vocab - 1 and words.start == words.vocab - 2
        row = words.encode("a large red circle above a small blue square " * 20, 12)
        assert (
            row.shape == (12,)
            and row[0] == words.start
            and row[-1] == words.end
            and row.argmax() == 11
        )
        short = words.encode("a", 12)
        assert (
            (short[short.argmax() + 1 :] == 0).all()
            and 0 <= short.min()
            and short.max() < words.vocab
        )
        assert words.encode_all(["a", "b"], 5).shape == (2, 5)
        assert (
            words.encode("half \ud800 pair", 30).tolist()
            == words.encode("half ? pair", 30).tolist()
        )


def test_training_is_deterministic_and_learns(trained, tmp_path):
    folder, path = trained
    again = train_tokenizer(str(folder), tmp_path / "again.json", vocab=300)
    assert again.read_bytes() == path.read_bytes()
    words = tokenizer(str(path))
    assert words.vocab == 300 and words.fingerprint == tokenizer(str(again)).fingerprint
    assert len(words.ids("a small red circle")) < 10, "words of the captions became tokens"
    other = train_tokenizer(str(folder), tmp_path / "other.json", vocab=280)
    assert tokenizer(str(other)).fingerprint != words.fingerprint


def test_captions_of_json_train_a_tokenizer(tmp_path):
    about = b'{"caption": "zebra zebra"}'
    write_shard(tmp_path / "a.tar", [(f"{i}", {"jpg": jpeg(), "json": about}) for i in range(9)])
    path = train_tokenizer(str(tmp_path), tmp_path / "t.json", vocab=266)
    assert len(tokenizer(str(path)).ids("zebra")) <= 2


def test_merges_are_applied_in_their_order(merged):
    names = [*byte_letters(), *(x + "</w>" for x in byte_letters()), "do", "dog</w>", "ca"]
    assert [names[i] for i in merged.ids("Dog  cab")] == ["dog</w>", "ca", "b</w>"]
    assert merged.words(merged.ids("dog cab &amp; d")) == "dog cab & d"
    assert sorted(byte_letters().values()) == list(range(256)) and len(byte_letters()) == 256


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: "no/such.json", "neither bytes, clip nor a file"),
        (lambda p: p, "no tokenizer file"),
        (lambda p: p.with_suffix(".txt"), "no merges file"),
    ],
)
def test_what_is_no_tokenizer(tmp_path, make, word):
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.with_suffix(".txt").write_text("head\none two three\n")
    with pytest.raises(UserError, match=word):
        tokenizer(str(make(path)))


def test_training_needs_captions_and_room(tmp_path):
    write_shard(tmp_path / "a.tar", [("x", {"jpg": jpeg()})])
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(str(tmp_path), tmp_path / "t.json")
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(str(tmp_path), tmp_path / "t.json", vocab=100)
