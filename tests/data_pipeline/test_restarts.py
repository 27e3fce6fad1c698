"""Crops out of the restart intervals: the pixels of a whole decode bit for bit, and its verdicts.

What cuts is held to files that Pillow and a writer of our own give restart markers; what rewrites
takes jpegtran.
"""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data_pipeline.jpegs import of_scans, written
from tests.data_pipeline.make import corrupt, encoded, masked, small_set
from tests.data_pipeline.packs import contents, samples_of
from tests.data_pipeline.test_crops import hurt, jpegs, natural, verdict
from tests.require import need
from tests.runs import vtx
from vtx_scale.data_pipeline import jpeg, restarts
from vtx_scale.data_pipeline.crops import Crop, decode_crops
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.restarts import cut, interval_of, table_of, with_restarts, with_table
from vtx_scale.data_pipeline.tools.shards import write_shard

# samplings that the strict decoder knows, 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1 and 4:4:1, and grey
SAMPLINGS = ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (1, 4), None)


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


@dataclass(frozen=True)
class Cut:
    """A box of a JPEG with restart markers, by numbers that hypothesis can show."""

    sampling: tuple[int, int] | None
    height: int
    width: int
    interval: int  # which of the divisors
    seed: int
    by: int
    box: tuple[float, float, float, float]  # in shares of what is left

    @property
    def body(self) -> bytes:
        first = self.sampling or (1, 1)
        interval = divisors(-(-self.width // (8 * first[0])))
        chosen = interval[self.interval % len(interval)]
        others = [] if self.sampling is None else [(1, 1), (1, 1)]
        return with_table(
            written(self.seed, [first, *others], self.height, self.width, restart=chosen)
        )

    def placed(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        top, left = int(self.box[0] * rows), int(self.box[1] * columns)
        h, w = 1 + int(self.box[2] * (rows - top)), 1 + int(self.box[3] * (columns - left))
        return top, left, min(h, rows - top), min(w, columns - left)


SHARES = st.floats(0, 1, exclude_max=True)
CUTS = st.builds(
    Cut,
    st.sampled_from(SAMPLINGS),
    st.integers(2, 150),
    st.integers(2, 150),
    st.integers(0, 5),
    st.integers(0, 1 << 20),
    st.sampled_from([1, 1, 2, 4, 8]),
    st.tuples(SHARES, SHARES, SHARES, SHARES),
)


@pytest.fixture
def always(monkeypatch):
    """Whatever the box, it is cut."""
    monkeypatch.setattr(restarts, "SHARE", 2)


def scaled(body: bytes, height: int, by: int) -> np.ndarray:
    return simplejpeg.decode_jpeg(body, min_height=-(-height // by))


@pytest.mark.usefixtures("always")
@settings(max_examples=300, deadline=None)
@given(CUTS)
def test_cut_pixels_are_those_of_the_whole(want):
    """Bit for bit, at every scale."""
    body, by = want.body, want.by
    whole = scaled(body, want.height, by)
    if whole.shape[:2] != (-(-want.height // by), -(-want.width // by)):
        return  # of a few pixels another scale is the nearest
    box = want.placed(max(1, want.height // by), max(1, want.width // by))
    frame = jpeg.frame_of(body)
    part, top, left, height, width = cut(body, frame, box, by)
    assert jpeg.frame_of(part)[1:3] == (height, width)
    pixels = scaled(part, height, by)
    if pixels.shape[:2] != (-(-height // by), -(-width // by)):
        return
    t, s, h, w = box
    known = whole[t : t + h, s : s + w]
    t, s = t - top // by, s - left // by
    assert np.array_equal(pixels[t : t + h, s : s + w], known)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_last_few_pixels(sampling):
    """A piece of the last interval that is too narrow for what brings colours up to full size."""
    unit = 8 * (sampling or (1, 1))[0]
    for by in (1, 2, 4):
        for width in (2 * unit + k * by for k in range(1, 1 + min(6, unit // by))):
            body = with_table(
                written(
                    1, [sampling, (1, 1), (1, 1)] if sampling else [(1, 1)], 64, width, restart=1
                )
            )
            whole, columns = scaled(body, 64, by), -(-width // by)
            box = (2, columns - 1, 3, 1)
            part, top, left, height, _ = cut(body, jpeg.frame_of(body), box, by)
            pixels = scaled(part, height, by)
            assert np.array_equal(pixels[2 - top // by :][:3, -1], whole[2:5, -1]), (by, width)
            assert columns - left // by == pixels.shape[1]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pictures_with_their_metadata(mode):
    """Of Pillow's own encoder; of what stands around the picture nothing is in the way."""
    exif = Image.Exif()
    exif[305] = "somebody's"
    body = with_table(
        encoded(
            natural(3, 90, 160, mode),
            restart_marker_blocks=2,
            exif=exif,
            icc_profile=bytes(300),
            comment=b"hello",
        )
    )
    whole = decode_image(body)
    part, (box,) = decode_crops(body, lambda h, w: [Crop((40, 70, 20, 33), 20)])
    assert part.size < whole.size / 3
    top, left, h, w = box
    assert np.array_equal(part[top : top + h, left : left + w], whole[40:60, 70:103])


def test_a_large_box_is_decoded_as_a_whole():
    body = with_table(encoded(natural(3, 90, 160), restart_marker_blocks=2))
    pixels, boxes = decode_crops(body, lambda h, w: [Crop((0, 0, h, w), 20)])
    assert pixels.shape == (90, 160, 3) and boxes == [(0, 0, 90, 160)]


def tabled() -> list[bytes]:
    out = [
        encoded(natural(k, 40 + k, 56, mode), restart_marker_blocks=1 + k % 2, subsampling=k % 3)
        for k, mode in enumerate(["RGB", "L", "RGB", "CMYK", "RGB"])
    ]
    out.append(written(4, [(2, 2), (1, 1), (1, 1)], restart=2))
    return [with_table(body) for body in out]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("count", "seed"), [(500, 1), pytest.param(20_000, 2, marks=pytest.mark.full)]
)
def test_broken_files_are_seen_wherever_they_are(count, seed):
    """Also outside the box: verdict and pixels are those of a whole decode."""
    bad = cuts = 0
    rng = np.random.default_rng(seed)
    for body in [*tabled(), *hurt(count, seed, tabled())]:
        known = verdict(decode_image, body)
        where = rng.random(4)

        def choose(h: int, w: int, u=where) -> list[Crop]:
            top, left = int(u[0] * h), int(u[1] * w)
            return [Crop((top, left, 1 + int(u[2] * (h - top - 1)), w - left), 9)]

        for decode in ("exact", "scaled"):
            found = verdict(decode_crops, body, choose, decode)
            if isinstance(known, str):
                assert found == known
                continue
            pixels, ((top, left, h, w),) = found
            if decode == "exact":
                t, s, _, _ = choose(*known.shape[:2])[0].box
                part = pixels[top : top + h, left : left + w]
                assert np.array_equal(part, known[t : t + h, s : s + w])
            cuts += pixels.shape != known.shape
        bad += isinstance(known, str)
    assert bad > count / 4 and cuts >= len(tabled())


def test_a_table_of_other_bytes_is_none():
    body = tabled()[0]
    frame = jpeg.frame_of(body)
    assert cut(body, frame, (8, 8, 8, 8)) is not None
    for at in range(2, len(body), 7):
        other = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert table_of(other) is None
    assert table_of(body + b"\x00") is None and table_of(body[:-1]) is None


def test_what_has_no_table():
    for body in (b"", b"\xff\xd8", encoded(natural(0, 40, 50)), of_scans(12)):
        assert not restarts.has_table(body) and table_of(body) is None
    assert with_table(written(1, [(1, 1), (1, 1), (1, 1)], apart=True, restart=1)) == b""
    assert with_table(of_scans(12)) == b""
    # a table takes one segment: of 2 bytes an interval, 32,000 of them
    many = encoded(Image.new("L", (2000, 1400)), restart_marker_blocks=1)
    assert with_table(many) == b""


@pytest.mark.parametrize(
    ("columns", "interval"),
    [(1, 1), (7, 7), (8, 8), (9, 9), (32, 8), (33, 11), (47, 47), (94, 2), (100, 10), (12, 6)],
)
def test_the_divisor_next_to_eight(columns, interval):
    assert interval_of(columns) == interval


def sound() -> list[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[274], exif[305] = 6, "somebody's"
    out = []
    for k, (height, width) in enumerate([(90, 160), (130, 97), (26, 500), (375, 333)]):
        picture = natural(k, height, width)
        out += [
            (f"{height} {s} {p}", encoded(picture, subsampling=s, progressive=p))
            for s in (0, 1, 2)
            for p in (False, True)
        ]
        out.append((f"{height} L", encoded(picture.convert("L"))))
    out.append(("inks", encoded(natural(9, 90, 160, "CMYK"))))
    out.append(("metadata", encoded(natural(9, 90, 160), exif=exif, icc_profile=bytes(300))))
    return out


@pytest.mark.services
@pytest.mark.usefixtures("always")
def test_rewritten_pictures():
    """Equal pixels, of the whole and of crops; written once; metadata kept; not much larger."""
    need("jpegtran")
    before = after = 0
    for name, body in sound():
        out = with_restarts(body)
        whole = decode_image(body)
        assert out != body and np.array_equal(decode_image(out), whole), name
        assert with_restarts(out) == out and with_restarts(body) == out
        known, found = (Image.open(io.BytesIO(x)) for x in (body, out))
        assert found.getexif() == known.getexif(), name
        assert found.info.get("icc_profile") == known.info.get("icc_profile")
        for u in np.random.default_rng(0).random((5, 4)):
            h, w = whole.shape[:2]
            top, left = int(u[0] * h), int(u[1] * w)
            box = top, left, 1 + int(u[2] * (h - top - 1)), 1 + int(u[3] * (w - left - 1))
            pixels, ((t, s, _, _),) = decode_crops(out, lambda h, w, b=box: [Crop(b, 8)])
            part = pixels[t : t + box[2], s : s + box[3]]
            assert np.array_equal(part, whole[top : top + box[2], left : left + box[3]]), name
        before, after = before + len(body), after + len(out)
    assert after < 1.15 * before


@pytest.mark.services
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("count", "seed"), [(500, 1), pytest.param(20_000, 2, marks=pytest.mark.full)]
)
def test_rewriting_changes_no_verdict(count, seed):
    """Broken files stay as they are, sound ones keep their pixels."""
    need("jpegtran")
    changed = 0
    for body in [*jpegs(), *hurt(count, seed, jpegs())]:
        out = with_restarts(body)
        known, found = verdict(decode_image, body), verdict(decode_image, out)
        assert known == found if isinstance(known, str) else np.array_equal(known, found)
        found = verdict(decode_crops, out, lambda h, w: [Crop((h // 2, w // 2, 1, 1), 1)])
        if isinstance(known, str):
            assert out == body and found == known
        else:
            h, w = known.shape[:2]
            pixels, ((t, s, _, _),) = found
            assert (pixels[t, s] == known[h // 2, w // 2]).all()
            changed += out != body
    assert changed > count / 10


@pytest.mark.services
def test_a_set_is_repacked(tmp_path):
    """The same samples, pixels and verdicts; the same bytes each time; once is enough."""
    need("jpegtran")
    rows = [(f"{k}", {"jpg": encoded(natural(k, 90, 160)), "txt": b"a"}) for k in range(5)]
    rows += [("broken", {"jpg": corrupt(rows[0][1]["jpg"]), "txt": b"b"})]
    rows += [("other", {"png": encoded(natural(7, 40, 50), "PNG"), "txt": b"c"})]
    write_shard(tmp_path / "in" / "a.tar", rows)
    for source, out in (("in", "out"), ("in", "again"), ("out", "twice")):
        words = "data", "repack", tmp_path / source, tmp_path / out, "--restarts"
        assert vtx(*words).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    found = samples_of(tmp_path / "out")
    assert found == samples_of(tmp_path / "twice")
    for (key, before), (name, after) in zip(rows, found, strict=True):
        assert key == name and before.keys() == after.keys() and before["txt"] == after["txt"]
        if key.isdigit():
            assert table_of(after["jpg"]) is not None
            assert np.array_equal(decode_image(before["jpg"]), decode_image(after["jpg"]))
        else:
            assert before == after
    known, now = masked(tmp_path / "in"), masked(tmp_path / "out")
    assert list(known.values()) == list(now.values()) == ["jpeg_corrupt"]
    words = "data", "repack", tmp_path / "in", tmp_path / "out"
    assert vtx(*words).returncode == 2, "what was written with other options is another set"


def test_without_jpegtran(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install libjpeg-turbo-progs"):
        with_restarts(encoded(natural(0, 40, 50)))
    assert with_restarts(b"\x89PNG") == b"\x89PNG", "no JPEG, so that none is needed"
    done = vtx("data", "repack", small_set(tmp_path / "in"), tmp_path / "out", "--restarts")
    assert done.returncode == 2 and "apt-get install libjpeg-turbo-progs" in done.stderr
    assert not (tmp_path / "out").exists(), "it is asked for before anything is written"
