"""The tar walk beside Python's tarfile and webdataset, and under bytes that lie."""

import io
import re
import tarfile
import time
from itertools import pairwise

import pytest
import webdataset.tariterators as theirs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import jpeg
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import build
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.scan import scan
from vtx_scale.data_pipeline.shards import local_shards
from vtx_scale.data_pipeline.tar import (
    Member,
    Problem,
    Sample,
    number,
    pax,
    samples,
    split_name,
    walk,
)
from vtx_scale.data_pipeline.tools.verify import verify

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = [tarfile.REGTYPE] * 5 + [
    tarfile.AREGTYPE,
    tarfile.CONTTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
]
NAMES = st.one_of(
    st.from_regex(r"[a-c]{1,3}(/[a-z]{1,2}){0,2}\.(jpg|txt|JSON|seg\.png)", fullmatch=True),
    st.text("ab.é漢_/ ", min_size=1, max_size=20).filter(
        lambda n: n[-1] not in "/ " and n.strip("/")
    ),
    st.integers(101, 240).map(lambda n: "d/" * (n // 4) + "x" * (n - n // 4 * 2) + ".jpg"),
)
# of the old type, tarfile takes a long name whose first 100 letters end in a slash for a folder
MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from(KINDS), st.integers(0, 1400)).filter(
        lambda m: m[1] != tarfile.AREGTYPE or len(m[0].encode()) < 100
    ),
    max_size=8,
)


def tar_of(members, kind="pax"):
    """A tar of (name, type, size or bytes); None where the format cannot spell a name."""
    out = io.BytesIO()
    try:
        with tarfile.open(fileobj=out, mode="w", format=FORMATS[kind]) as tar:
            for i, (name, type_, body) in enumerate(members):
                info = tarfile.TarInfo(name)
                info.type, info.mtime = type_, 1.5 if kind == "pax" and i % 2 else 1
                info.linkname = (
                    "somewhere/else" if type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
                )
                if type_ in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                    body = (
                        bytes((i + j) % 251 for j in range(body)) if isinstance(body, int) else body
                    )
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
                else:
                    tar.addfile(info)
    except ValueError:  # a name too long for ustar
        return None
    return out.getvalue()


@settings(max_examples=150, deadline=None)
@given(MEMBERS, st.sampled_from(sorted(FORMATS)))
def test_walk_equals_tarfile(members, kind):
    """Names, places, sizes and bytes of every regular member; nothing else is given out."""
    body = tar_of(members, kind)
    if body is None:
        return
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        known = [(i.name, i.offset_data, i.size) for i in tar if i.isreg()]
    found = list(walk(memoryview(body)))
    assert [(m.name, m.offset, m.size) for m in found if isinstance(m, Member)] == known
    others = sum(
        t not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)
        for _, t, _ in members
    )
    problems = [p.reason for p in found if isinstance(p, Problem) and p.reason != "member_name"]
    assert problems == ["member_type"] * others


@settings(max_examples=100, deadline=None)
@given(MEMBERS, st.sampled_from(sorted(FORMATS)))
@example([("_.__", tarfile.REGTYPE, 0)], "gnu")
@example([("_.__", tarfile.REGTYPE, 0), ("_.__", tarfile.REGTYPE, 1)], "gnu")
def test_samples_equal_webdataset(members, kind):
    """Keys, extensions and bytes, in order, wherever webdataset reads the tar at all."""
    body = tar_of(members, kind)
    if body is None:
        return
    try:
        files = (dict(x, __url__="u") for x in theirs.tar_file_iterator(io.BytesIO(body)))
        known = [dict(s) for s in theirs.group_by_keys(files)]
    except ValueError:  # a repeated extension: here a new sample begins
        assert any(
            isinstance(x, Problem) and x.reason == "member_repeated"
            for x in samples(memoryview(body))
        )
        return
    found = [s for s in samples(memoryview(body)) if isinstance(s, Sample)]
    ours = [
        {"__key__": s.key} | {e: body[o : o + n] for e, (o, n) in s.members.items()} for s in found
    ]
    assert ours == [
        {k: v for k, v in s.items() if k == "__key__" or not k.startswith("__")} for s in known
    ]


def test_members_named_as_our_own_are_passed_over(tmp_path):
    """They are counted, and a sample's key and place are its own."""
    path = tmp_path / "a.tar"
    named = [
        ("a.jpg", jpeg(1)),
        ("a.__key__", b"stolen"),
        ("a.__URL__", b"x"),
        ("a.txt", b"a"),
        ("b.__bad__", b"1"),
        ("b.__worker__.txt", b"1"),
        ("b.jpg", jpeg(2)),
        ("b.txt", b"b"),
    ]
    path.write_bytes(tar_of([(n, tarfile.REGTYPE, b) for n, b in named], "gnu"))
    index = build(local_shards(str(path)))
    assert scan(path).counts == {"member_ignored": 4}
    reader = ChunkReader(index)
    assert [dict(reader.sample(g)) for g in range(index.n)] == [
        {"__key__": "a", "__url__": str(path), "jpg": jpeg(1), "txt": b"a"},
        {"__key__": "b", "__url__": str(path), "jpg": jpeg(2), "txt": b"b"},
    ]
    assert list(verify(str(path))) == []


@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(["a", "B", ".", "_", "__", "/", "__m__", "./"]), max_size=7).map(
        "".join
    )
)
@example("__a__/b.jpg")
@example("a__b__/c.jpg")
def test_names_are_split_as_webdataset_does(name):
    hidden = re.match(r"__[^/]*__($|/)", name)
    key, extension = theirs.base_plus_ext(name)
    assert split_name(name) == (None if hidden or key is None else (key, extension.lower()))


def test_a_long_name_costs_no_time():
    began = time.monotonic()
    for name in ("/" * 100_000, "_" * 100_000, "a" * 100_000 + "/" * 100_000, "." * 100_000):
        split_name(name)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000017\0", 15),
        (b"   17 \0\0", 15),
        (b"\0" * 8, 0),
        (b"-000001\0", None),
        (b"0000o17\0", None),
        (b"1_000\0\0\0", None),
        (b"0000018\0", None),
        (b"\x80" + b"\0" * 6 + b"\x11", 17),
        (b"\xff" * 8, None),
        (b"\x81" + b"\0" * 7, None),
        ("٣".encode() + b"\0" * 6, None),
    ],
)
def test_numbers(field, value):
    assert number(field) == value


def test_pax_records_that_lie():
    assert pax(b"12 path=a.b\n10 size=3\n") == {"path": "a.b", "size": "3"}
    for body in (
        b"99 path=a.b\n",
        b"0 path=a\n",
        b"-4 path=a\n",
        b"3 a",
        b"9" * 30 + b" a=b\n",
        "²² a=b\n".encode(),
        b" =",
    ):
        assert pax(body) == {}
    began = time.monotonic()
    assert len(pax(b"5 a=\n" * 200_000)) == 1
    assert time.monotonic() - began < 2


def broken_header(body, name, at, field):
    """The tar with bytes of a member's header changed and its checksum made right."""
    start = body.index(name.encode()) // 512 * 512
    header = bytearray(body[start : start + 512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return body[:start] + bytes(header) + body[start + 512 :]


THREE = [
    ("a.jpg", tarfile.REGTYPE, jpeg(1)),
    ("a.txt", tarfile.REGTYPE, b"one"),
    ("b.jpg", tarfile.REGTYPE, jpeg(2)),
    ("b.txt", tarfile.REGTYPE, b"two"),
    ("c.jpg", tarfile.REGTYPE, jpeg(3)),
    ("c.txt", tarfile.REGTYPE, b"three"),
]


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (124, b"-0000000001\0"),
        (124, b"77777777777\0"),
        (124, b"\x80" + b"\xff" * 11),
        (124, b"\xff" * 12),
        (124, b"000000000x1\0"),
        (156, b"L"),
        (156, b"x"),
        (156, b"S"),
        (156, b"1"),
        (156, b"Q"),
        (148, b"nonsense"),
    ],
)
def test_a_header_that_lies_costs_its_own_sample(at, field):
    """Sizes below zero, beyond the file or not octal, other types:
    the samples beside it are whole.
    """
    body = broken_header(tar_of(THREE, "gnu"), "b.jpg", at, field)
    if at == 148:
        body = body.replace(b"b.jpg", b"B.jpg")  # without its checksum
    found = {s.key: s for s in samples(memoryview(body)) if isinstance(s, Sample)}
    assert at != 148 or "B" not in found, "a header without its checksum counts"
    for key in ("a", "c"):
        assert set(found[key].members) == {"jpg", "txt"} and not found[key].reason
    if "b" in found:
        whole = set(found["b"].members) == {"jpg", "txt"}
        assert found["b"].reason == "tar_truncated" if whole else "jpg" not in found["b"].members


@pytest.mark.parametrize("kind", b"123456")
def test_links_and_folders_have_no_data_whatever_their_size_says(kind):
    """Old tars give a folder the size it has on disk; the member behind it is at the next block."""
    size = b"%011o\0" % 1200
    body = broken_header(
        broken_header(tar_of([("d.x", tarfile.REGTYPE, b""), *THREE], "ustar"), "d.x", 124, size),
        "d.x",
        156,
        bytes([kind]),
    )
    found = list(samples(memoryview(body)))
    assert [(s.key, set(s.members)) for s in found if isinstance(s, Sample)] == [
        (k, {"jpg", "txt"}) for k in "abc"
    ]
    assert [p.reason for p in found if isinstance(p, Problem)] == ["member_type"] * (
        kind != ord("5")
    )


@pytest.mark.parametrize("claim", [b"37777777777\0", b"00010000000\0"])
def test_an_extended_header_of_megabytes_is_not_read(claim):
    """4 GiB, which the file does not have, and 2 MiB, which it has."""
    body = broken_header(
        tar_of(
            [
                ("x" * 120 + ".jpg", tarfile.REGTYPE, b"1"),
                *THREE,
                ("z.bin", tarfile.REGTYPE, 3 << 20),
            ],
            "gnu",
        ),
        "././@LongLink",
        124,
        claim,
    )

    class Counting(bytes):
        largest = 0

        def __getitem__(self, part):
            piece = bytes(self)[part] if isinstance(part, slice) else super().__getitem__(part)
            Counting.largest = (
                max(Counting.largest, len(piece)) if isinstance(part, slice) else Counting.largest
            )
            return piece

    found = list(samples(Counting(body)))
    assert Counting.largest <= 512
    assert [s.key for s in found if isinstance(s, Sample)] == ["a", "b", "c", "z"]


def test_members_behind_the_end_blocks_count():
    """Tars that were joined with cat."""
    body = tar_of(THREE[:2]) + tar_of(THREE[2:])
    assert [s.key for s in samples(memoryview(body))] == ["a", "b", "c"]


def test_zeros_that_took_members_away_are_reported():
    big = [(f"{k}.jpg", tarfile.REGTYPE, 40_000) for k in "abcd"]
    body = bytearray(tar_of(big, "ustar"))
    one = len(body[: body.index(b"b.jpg")])
    body[one : body.index(b"d.jpg")] = bytes(body.index(b"d.jpg") - one)
    found = list(samples(memoryview(bytes(body))))
    assert [s.key for s in found if isinstance(s, Sample)] == ["a", "d"]
    assert [(p.reason, p.offset) for p in found if isinstance(p, Problem)] == [("tar_header", one)]


BIG = [
    (f"{i:02d}.{x}", tarfile.REGTYPE, n) for i in range(20) for x, n in (("jpg", 9000), ("txt", 9))
]


def unfinished(body, share):
    """A tar of full length whose end, from a member or its data on, never came."""
    at = int(len(body) * share)
    return body[:at] + bytes(len(body) - at)


@pytest.mark.parametrize("kind", sorted(FORMATS))
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.331, 0.5, 0.6])
def test_zeros_to_the_end_are_said(kind, share):
    """At a header, within one, and within data: the samples before it are there, and one problem
    at least says that others may have been behind them.
    """
    sound = tar_of(BIG, kind)
    heads = [s.start for s in samples(memoryview(sound)) if isinstance(s, Sample)]
    for at in (share, heads[int(20 * share)] / len(sound)):
        found = list(samples(memoryview(unfinished(sound, at))))
        kept = [s.key for s in found if isinstance(s, Sample)]
        assert kept == [f"{i:02d}" for i, h in enumerate(heads) if h + 512 <= len(sound) * at]
        assert {p.reason for p in found if isinstance(p, Problem)} & {
            *("tar_tail", "tar_header", "tar_zeros")
        }


@pytest.mark.parametrize("size", [10_752, 20_000, 65_536, 131_072, 1 << 20])
def test_a_shard_of_zeros_is_said(tmp_path, size):
    (tmp_path / "a.tar").write_bytes(bytes(size))
    lines = []
    assert open_index(str(tmp_path), say=lines.append).n == 0
    assert [x for x in lines if "tar_tail" in x and f"nothing but {size} zero bytes" in x]
    assert [(r["key"], r["reason"]) for r in verify(str(tmp_path))] == [("", "tar_tail")]


@pytest.mark.parametrize("factor", [1, 2, 3, 20, 40, 63, 64, 126, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("over", [0, 512, 4096])
def test_records_of_any_size_end_a_tar(factor, over):
    """As `tar --blocking-factor` fills the last, little or nearly all of it: nothing is said of
    those up to 64 KiB, and of longer ones nothing but how many zeros there are.
    """
    record = 512 * factor
    head = len(tar_of(THREE, "ustar").rstrip(b"\x00")) // 512 * 512 + 512
    content = -(-(head + 1024) // record) * record + over % record
    body = tar_of([*THREE, ("z.bin", tarfile.REGTYPE, content - head - 1024)], "ustar")
    body = body[: content - 512] + bytes(1024)
    padded = body + bytes(-len(body) % record)
    found = list(samples(memoryview(padded)))
    assert [s.key for s in found if isinstance(s, Sample)] == ["a", "b", "c", "z"]
    problems = [p.reason for p in found if isinstance(p, Problem)]
    assert not problems or (factor > 128 and problems == ["tar_zeros"])
    assert len(padded) - len(body.rstrip(b"\x00")) < record + 1536


@pytest.mark.parametrize("size", [0, 1024, 10_240])
def test_a_tar_without_members_is_no_fault(size):
    assert list(samples(memoryview(bytes(size)))) == []


def test_sparse_members_are_passed_over():
    """GNU's old form, with its map in blocks of its own, and the form in PAX headers."""
    body = tar_of(THREE, "gnu")
    sparse = bytearray(broken_header(body, "b.txt", 156, b"S"))
    start = sparse.index(b"b.txt") // 512 * 512
    sparse = bytearray(broken_header(bytes(sparse), "b.txt", 482, b"\1"))
    extension = bytearray(512)
    extension[504] = 1
    with_map = bytes(sparse[: start + 512] + extension + bytes(512) + sparse[start + 512 :])
    found = list(samples(memoryview(with_map)))
    assert [(s.key, set(s.members)) for s in found if isinstance(s, Sample)] == [
        ("a", {"jpg", "txt"}),
        ("b", {"jpg"}),
        ("c", {"jpg", "txt"}),
    ]
    assert [p.reason for p in found if isinstance(p, Problem)] == ["member_type"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (
            ("a.txt", {}),
            ("GNUSparseFile.0/b.txt", {"GNU.sparse.major": "1"}),
            ("c.txt", {}),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, headers
            tar.addfile(info, io.BytesIO(b"abc"))
    found = list(samples(memoryview(out.getvalue())))
    assert [s.key for s in found if isinstance(s, Sample)] == ["a", "c"]
    assert [p.reason for p in found if isinstance(p, Problem)] == ["member_type"]


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("zero"), st.floats(0, 1), st.integers(1, 3000)),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 1500)),
        st.tuples(st.just("double"), st.floats(0, 1), st.integers(1, 1500)),
        st.tuples(st.just("header"), st.floats(0, 1), st.integers(0, 2**31)),
    ),
    min_size=1,
    max_size=6,
)
SOUND = {
    kind: tar_of(
        [
            *THREE,
            ("y" * 130 + ".jpg", tarfile.REGTYPE, jpeg(4)),
            ("d.cls", tarfile.REGTYPE, b"3"),
            ("link", tarfile.SYMTYPE, 0),
        ],
        kind,
    )
    for kind in ("gnu", "pax")
}
FIELDS = ((100, 8), (124, 12), (156, 1), (257, 8), (345, 155), (0, 100), (482, 1))


def mutated(body, mutations):
    body = bytearray(body)
    for kind, where, how in mutations:
        at = int(where * (len(body) - 1)) if body else 0
        if kind == "flip" and body:
            body[at] ^= how
        elif kind == "cut":
            del body[at:]
        elif kind == "zero":
            body[at : at + how] = bytes(len(body[at : at + how]))
        elif kind == "remove":
            del body[at : at + how]
        elif kind == "double":
            body[at:at] = body[at : at + how]
        elif kind == "header" and at + 512 <= len(body):
            # a field becomes something else, and the checksum right
            start = at // 512 * 512
            begin, size = FIELDS[how % len(FIELDS)]
            field = [
                b"%o" % how,
                b"\x80" + how.to_bytes(11, "big"),
                b"-1",
                b"xLKgS150"[how % 8 :],
                b"",
            ][how // 7 % 5]
            body[start + begin : start + begin + size] = field.ljust(size, b"\0")[:size]
            body[start + 148 : start + 156] = b" " * 8
            body[start + 148 : start + 156] = b"%06o\0 " % (sum(body[start : start + 512]) % 8**6)
    return bytes(body)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(SOUND)), MUTATIONS)
def test_damaged_tars_give_problems_and_never_exceptions(tmp_path, kind, mutations):
    """Whatever the bytes: indexing and verifying end soon,
    and reading gives each numbered sample or its reason.
    """
    path = tmp_path / "shard.tar"
    path.write_bytes(mutated(SOUND[kind], mutations))
    began = time.monotonic()
    try:
        index = build(local_shards(str(path)), chunk=2)
    except UserError as e:
        assert "compressed" in str(e)
        return
    bad = {(r["key"], r["reason"]) for r in verify(str(path))}
    reader = ChunkReader(index)
    ids = []
    for g in range(index.n):
        ids.append(reader.id(g))
        try:
            members = reader.sample(g)
        except BadSample as e:
            assert e.reason in ("tar_truncated", "member_size", "empty")
            assert (ids[-1].partition("/")[2], e.reason) in bad
        else:
            assert members.pop("__key__") and members.pop("__url__") == str(path)
            assert all(isinstance(v, bytes) for v in members.values())
    reader.close()
    assert len(set(ids)) == len(ids)
    assert time.monotonic() - began < 5


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(SOUND)), st.integers(0, 1 << 20))
def test_a_tar_that_was_cut_keeps_the_samples_before_the_cut(tmp_path, kind, at):
    body = SOUND[kind]
    at %= len(body)
    whole = [s for s in samples(memoryview(body)) if isinstance(s, Sample)]
    path = tmp_path / "shard.tar"
    path.write_bytes(body[:at])
    found = scan(path)
    assert found.samples == sum(
        s.members and s.start + 512 <= at and min(o for o, _ in s.members.values()) <= at
        for s in whole
    )
    cut = [i for i, s in enumerate(whole) if any(o <= at < o + n for o, n in s.members.values())]
    assert list(found.bad) == cut
    assert all(a[1] > 0 for a in found.chunks) and sum(a[1] for a in found.chunks) <= at
    for before, after in pairwise(s.start for s in whole[: found.samples]):
        assert before < after


@pytest.mark.parametrize("cut", ["header", "data"])
def test_a_short_tail_of_zeros_behind_a_cut_is_said(tmp_path, cut):
    """Below 64 KiB, and in files of a multiple of 1 MiB; verify says it too, and no sample before
    it is bad for it.
    """
    for size in (140_000, 1 << 20):
        first = tar_of([("a.txt", b"0", b"one"), ("b.bin", b"0", size - 100_000)], "ustar")
        data = first.rstrip(b"\x00")
        at = -(-len(data) // 512) * 512
        body = data + bytes(-len(data) % 512)
        if cut == "data":
            body = body[: at - 2048] + bytes(2048)
        tail = 139 * 512 - len(body) if size < 1 << 20 else (1 << 20) - at  # a prime
        assert tail > 20_000
        path = tmp_path / f"{size}.tar"
        path.write_bytes(body + bytes(tail if cut == "header" or size == 1 << 20 else 1024))
        lines = []
        list(verify(str(path), say=lines.append))
        assert [x for x in lines if "tar_zeros" in x and "was the download finished" in x]


def test_members_without_a_dot_are_counted_and_no_sample_is_no_success(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of([(f"img{i}", b"0", jpeg(i)) for i in range(30)]))
    indexed, lines = [], []
    assert open_index(str(path), say=indexed.append).n == 0
    found = list(verify(str(path), say=lines.append))
    assert [(r["key"], r["reason"]) for r in found] == [("", "member_missing")]
    assert lines == indexed and len(lines) == 21 and "30 member_nameless" in lines[-1]
    assert "img0 is not KEY.EXTENSION" in lines[0]
