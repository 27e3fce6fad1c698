"""Captions and labels as people have them: members of many names, paths in the JSON, encodings."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import Pixels, encoded, jpeg, picture
from tests.require import need
from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.batches import Batches, InOrder, uniforms
from vtx_scale.data_pipeline.errors import BadSample, UserError, notes
from vtx_scale.data_pipeline.members import CAPTION, LABEL, Placed
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import Members
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer
from vtx_scale.data_pipeline.wds import Staged
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.checks import check
from vtx_scale.launch.override import compact, recipe_hash
from vtx_scale.launch.recipes.clip import clip_vit_b32_smoke
from vtx_scale.launch.recipes.dalle import dalle_2b8_smoke
from vtx_scale.launch.recipes.dino import dino_vit_s16_smoke
from vtx_scale.launch.recipes.siglip import siglip_vit_b16_smoke
from vtx_scale.launch.recipes.virtex import virtex_r50_smoke
from vtx_scale.launch.recipes.vit import vit_b32_jft_smoke

J = jpeg(1)


def reason(read, *args):
    with pytest.raises(BadSample) as bad:
        read(*args)
    return bad.value.reason


def row(run, members, train=True):
    return reader_of(run, train)(Members(members), uniforms(0, 0, 0, 0))


@pytest.mark.parametrize("extension", ["bmp", "jfif", "jpe", "img"])
@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PNG", "WEBP"])
def test_pictures_under_other_names(tmp_path, extension, kind):
    """What a picture is its bytes say; one of no bytes is known from the headers."""
    body = encoded(picture(3), kind)
    write_shard(
        tmp_path / "a.tar", [("a", {extension: body, "txt": b"t"}), ("b", {extension: b""})]
    )
    index = open_index(str(tmp_path))
    assert index.bad == {1: "empty"}
    batch = Batches(index, InOrder(2), Pixels(), 2, 0, 1)[0]
    assert batch["valid"].tolist() == [True, False]
    assert reason(sample.image, {"tiff": b"", "txt": b""}) == "member_missing"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"cap": b"a cat"}, "a cat"),
        ({"cap": b"one", "txt": b"two"}, "two"),
        ({"cap": b"one", "txt": b" \n"}, "one"),
        ({"cap": b"one", "json": b'{"caption": "two"}'}, "one"),
        ({"txt": b"", "json": b'{"caption": "a cat"}'}, "a cat"),
        ({"txt": b"\n", "cap": b"", "json": b'{"caption": "a cat"}'}, "a cat"),
        ({"txt": b"a cat", "json": b"{"}, "a cat"),
        ({"json": b'{"caption": ["", "a cat", "b"]}'}, "a cat"),
        ({"json": b'{"caption": null, "captions": ["a cat"]}'}, "a cat"),
    ],
)
def test_the_first_caption_that_is_not_empty(members, expected):
    assert sample.caption(members) == expected


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"txt": b""}, "text"),
        ({"txt": b"", "json": b'{"url": "x"}'}, "text"),
        ({"txt": b"", "json": b'{"caption": ""}'}, "text"),
        ({"txt": b"", "json": b"{"}, "json"),
        ({"json": b'{"captions": ["", " "]}'}, "text"),
        ({"json": b'{"caption": null}'}, "member_missing"),
        ({"cap": b"\xef\xbb\xbf"}, "text"),
        ({"txt": "\u200b\u2060\u202a \u00a0\u3000".encode()}, "text"),
        ({"txt": "\ufeff".encode("utf-16")}, "text"),
    ],
)
def test_captions_of_which_nothing_can_be_seen(members, why):
    assert reason(sample.caption, members) == why


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be-mark"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=25, deadline=None)
def test_texts_with_a_byte_order_mark(encoding, text):
    """txt, json and cls say the same in each encoding, and nothing is counted."""

    def put(string):
        if encoding == "utf-16-be-mark":
            return b"\xfe\xff" + string.encode("utf-16-be")
        return string.encode(encoding)

    text = "a" + text + "z"
    notes.clear()
    assert sample.caption({"txt": put(text)}) == text
    body = put(json.dumps({"caption": text, "captions": [text, "b"]}, ensure_ascii=False))
    assert sample.caption({"json": body}) == text
    assert sample.captions({"json": body}) == [text, "b"]
    assert sample.label({"cls": put("17\n")}) == 17
    assert sample.labels({"cls": put("3, 5")}) == [3, 5]
    assert not notes


NAMES = st.text("abX_- ", min_size=1, max_size=4).filter(lambda n: n.strip() == n)
LEAVES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(NAMES, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def leaves(value, path=()):
    if isinstance(value, str):
        yield path, value
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*path, name))
    for i, inner in enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, str(i)))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=3))
def test_every_string_of_the_json_has_a_path(value):
    body = json.dumps(value).encode()
    for path, text in leaves(value):
        place = ".".join(path)
        assert sample.caption({"txt": b"other", "json": body, CAPTION: place}) == text
        assert sample.caption({"meta.json": body, CAPTION: f"meta.json.{place}"}) == text
        assert sample.caption({"json": body, CAPTION: f"json.{place}"}) == text
        gone = f"{place}.0" if path else "0"
        assert reason(sample.caption, {"json": body, CAPTION: gone}) == "member_missing"


ABOUT = json.dumps(
    {
        "meta": {"captions": ["one", "", "two"], "a.b": "dots"},
        "objects": [{"name": "cat", "id": 3}, {"name": "dog", "id": 5}],
        "id": 7,
        "half": 1.5,
        "yes": True,
        "word": "12",
        "empty": "",
        "nothing": None,
    }
).encode()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("meta.captions", ["one", "two"]),
        ("meta.captions.2", ["two"]),
        ("meta.captions.1", "text"),
        ("meta.captions.3", "member_missing"),
        ("meta.a.b", ["dots"]),
        ("objects.name", ["cat", "dog"]),
        ("objects.1.name", ["dog"]),
        ("empty", "text"),
        ("nothing", "member_missing"),
        ("id", "member_missing"),
        ("Text", ["from a member"]),
        ("none", "member_missing"),
    ],
)
def test_captions_at_a_place(place, expected):
    members = {"txt": b"txt", "json": ABOUT, "text": b"from a member", CAPTION: place}
    if isinstance(expected, str):
        assert reason(sample.caption, members) == reason(sample.captions, members) == expected
    else:
        assert sample.captions(members) == expected and sample.caption(members) == expected[0]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("id", [7]),
        ("objects.id", [3, 5]),
        ("objects.0.id", [3]),
        ("word", [12]),
        ("index", [4]),
        ("none", []),
        ("half", "label"),
        ("yes", "label"),
        ("meta", "label"),
        ("nothing", "label"),
    ],
)
def test_labels_at_a_place(place, expected):
    members = {"cls": b"1", "json": ABOUT, "index": b"4\n", LABEL: place}
    if isinstance(expected, str):
        assert reason(sample.label, members) == reason(sample.labels, members) == expected
        return
    assert sample.labels(members) == expected
    if len(expected) < 2:
        assert sample.label(members) == (expected or [-1])[0]
    else:
        assert reason(sample.label, members) == "label"


def test_one_of_several_captions_is_drawn_in_training():
    """Each as often as the others; the first where nothing is drawn."""
    members = {"json": ABOUT, CAPTION: "meta.captions"}
    drawn = [sample.caption(members, uniforms(0, 0, g, 0)) for g in range(400)]
    assert 150 < drawn.count("one") < 250 and drawn.count("two") == 400 - drawn.count("one")
    assert sample.caption(members) == "one"


def test_a_run_says_where_captions_and_labels_stand(tmp_path):
    """From the run's fields to its batches: without them not one sample has a caption."""
    rows = [
        (f"{i}", {"jpg": jpeg(i), "json": json.dumps({"alt": f"no {i}", "y": i}).encode()})
        for i in range(6)
    ]
    write_shard(tmp_path / "a.tar", rows)
    index = open_index(str(tmp_path))

    def batch(**fields):
        run = clip_vit_b32_smoke()
        run = replace(run, data=replace(run.data, **fields))
        check(run)
        reader = pickle.loads(pickle.dumps(reader_of(run, True)))
        return run, Batches(index, InOrder(6), reader, 6, 0, 1)[0]

    plain, without = batch()
    assert not without["valid"].any() and without["bad"][0]["reason"] == "member_missing"
    placed, found = batch(caption="alt", label="y")
    assert found["valid"].all() and found["data"]["label"].tolist() == list(range(6))
    assert len({tuple(t) for t in found["data"]["tokens"].tolist()}) == 6
    assert recipe_hash(plain) != recipe_hash(placed), "it counts in what is learned"
    assert not {"caption", "label"} & set(compact(plain.data)), "and no hash of before changes"


def test_a_tokenizer_learns_from_captions_at_a_place(tmp_path):
    rows = [(f"{i}", {"json": json.dumps({"alt": f"zebra {i}"}).encode()}) for i in range(9)]
    write_shard(tmp_path / "a.tar", rows)
    out = train_tokenizer(str(tmp_path), tmp_path / "t.json", 270, place="alt")
    assert "zebra" in out.read_text()
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(str(tmp_path), tmp_path / "t.json", 270)


def only_these(raw):
    return {"jpg": raw["png"], "json": raw["json"]}


def test_it_holds_behind_stages_too():
    """Stages of webdataset that make a new sample."""
    reader = Placed(Staged(Pixels(), [wds.map(only_these)]), caption="alt")
    members = Members({"__key__": "k", "png": J, "json": b'{"alt": "abc"}'})
    assert int(reader(members, uniforms(0, 0, 0, 0))["length"]) == 3


@pytest.mark.parametrize(
    "make", [clip_vit_b32_smoke, siglip_vit_b16_smoke, dalle_2b8_smoke, virtex_r50_smoke]
)
def test_every_reader_of_texts_takes_a_place(make):
    run = make()
    members = {"__key__": "k", "jpg": J, "json": b'{"a": {"b": ["x"]}}', "txt": b"other"}
    placed = replace(run, data=replace(run.data, caption="a.b"))
    check(placed)
    blank = reader_of(placed, True).blank()
    for train in (True, False):
        found, other = row(placed, members, train), row(run, members, train)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in blank.items()}
        same = row(run, {**members, "txt": b"x"}, train)
        assert np.array_equal(found["tokens"], same["tokens"])
        assert not np.array_equal(found["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("make", "fields", "word"),
    [
        (dino_vit_s16_smoke, {"caption": "alt"}, "data.caption is not for"),
        (vit_b32_jft_smoke, {"caption": "alt"}, "data.caption is not for"),
        (clip_vit_b32_smoke, {"caption": "a..b"}, "data.caption=a..b"),
        (clip_vit_b32_smoke, {"label": "__key__"}, "data.label=__key__"),
    ],
)
def test_places_that_are_refused(make, fields, word):
    run = make()
    with pytest.raises(UserError, match=word):
        check(replace(run, data=replace(run.data, **fields)))


def test_labels_of_pictures_take_a_place():
    run = vit_b32_jft_smoke()
    run = replace(run, data=replace(run.data, label="y"))
    check(run)
    assert int(row(run, {"jpg": J, "json": b'{"y": 2}', "cls": b"1"})["label"]) == 2


@pytest.mark.parametrize(
    ("make", "words", "body"),
    [
        (clip_vit_b32_smoke, "clip", b"&nbsp;"),
        (clip_vit_b32_smoke, "clip", b"&amp;nbsp; \n"),
        (clip_vit_b32_smoke, "clip", b"\0" * 20),
        (siglip_vit_b16_smoke, "bytes", b"... !?"),
        (dalle_2b8_smoke, "clip", b"&nbsp;&emsp;"),
        (virtex_r50_smoke, "clip", b"&#160;"),
    ],
)
def test_captions_that_are_empty_after_cleaning_are_masked(make, words, body):
    """With the tokenizer that the run takes, and the reason says so."""
    if words == "clip":
        need("interop")
    run = make()
    run = replace(run, data=replace(run.data, tokenizer=words))
    with pytest.raises(BadSample, match="text: empty"):
        row(run, {"jpg": J, "txt": body})
    assert row(run, {"jpg": J, "txt": b"a cat"})["tokens"].any()


def test_members_beyond_their_limits_are_bad_before_they_are_parsed(monkeypatch):
    big = b'{"caption": "a cat", "more": "' + b"x" * (1 << 20) + b'"}'
    assert reason(sample.caption, {"json": big}) == "json"
    assert sample.caption({"json": big[: 1 << 19] + b'"}'}) == "a cat"
    assert reason(sample.label, {"cls": b" " * 4096 + b"7"}) == "label"
    assert reason(sample.labels, {"cls": b"1," * 2049}) == "label"
    assert len(sample.labels({"cls": b"1," * 2048})) == 2048


def test_a_place_of_labels_that_no_sample_has_is_named():
    run = vit_b32_jft_smoke()
    run = replace(run, data=replace(run.data, label="m.x"))
    with pytest.raises(BadSample, match=r"member_missing: m\.x"):
        row(run, {"jpg": J, "json": b'{"m": {}}', "cls": b"1"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("shift", range(4))
def test_long_texts_are_cut_at_a_letter(encoding, shift):
    notes.clear()
    text = "a" * shift + "\u6f22\U0001f642" * 12_000
    found = sample.text(text.encode(encoding))
    assert text.startswith(found) and 65_500 < len(found.encode(encoding)) <= 65_536
    assert notes == {"text_cut": 1}
    assert sample.text(b"ab\xf0\x9f") == "ab\ufffd" and notes["text_replaced"] == 1


@pytest.mark.parametrize("body", [b"\x00", b"\x00" * 20, b" \x00\n\x00"])
def test_zeros_are_no_text(body):
    assert reason(sample.text, body) == "text"
    assert sample.text(body + b"a").endswith("a")
