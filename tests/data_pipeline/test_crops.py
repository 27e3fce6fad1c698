"""Scaled decoding: pixels are near the exact ones, verdicts are the same, and what trains on
pictures heeds it.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data_pipeline.jpegs import of_scans
from tests.data_pipeline.make import encoded
from tests.data_pipeline.test_mutated import HURT, REASONS, seeds
from vtx_scale.data_pipeline import crops
from vtx_scale.data_pipeline.augment.crop import random_resized_crop_box
from vtx_scale.data_pipeline.batches import uniforms
from vtx_scale.data_pipeline.crops import Crop, decode_crop, decode_crops
from vtx_scale.data_pipeline.decode import Box, decode_image, resize_crop
from vtx_scale.data_pipeline.errors import BadSample, UserError, notes
from vtx_scale.data_pipeline.read import Members, Row
from vtx_scale.data_pipeline.restarts import with_table
from vtx_scale.launch import recipes
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.checks import check
from vtx_scale.launch.override import compact, recipe_hash
from vtx_scale.launch.recipes.clip import clip_vit_b32_smoke
from vtx_scale.specs.run import DECODE, Data, Run
from vtx_scale.specs.supervised import SupervisedConfig

# difference in levels, of pictures whose spectrum falls as that of photographs
MEAN, MOST = 6, 40
RATIO = (0.75, 4 / 3)


def natural(seed: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Amplitudes fall with the frequency, as those of photographs do."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    far = np.hypot(*axes)
    far[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=far.shape)) / far).real for _ in range(3)]
    x = 0.3 * np.stack(planes, 2) + 0.7 * planes[0][..., None]
    x = 128 + 50 * (x - x.mean()) / x.std()
    return Image.fromarray(x.clip(0, 255).astype(np.uint8)).convert(mode)


def verdict(read, *args):
    """The reason, or what `read` gives."""
    try:
        return read(*args)
    except BadSample as e:
        assert e.reason in REASONS
        return e.reason


@dataclass(frozen=True)
class Wanted:
    """A crop of a JPEG that is made of numbers, so that hypothesis can show it."""

    height: int
    width: int
    seed: int
    mode: str
    subsampling: int
    progressive: bool
    size: int

    @property
    def body(self) -> bytes:
        picture = natural(self.seed, self.height, self.width, self.mode)
        return encoded(picture, subsampling=self.subsampling, progressive=self.progressive)

    @property
    def box(self) -> Box:
        u = np.random.default_rng(self.seed).random(20)
        return random_resized_crop_box(self.height, self.width, u, (0.3, 1), RATIO)


def wanted(least: int) -> st.SearchStrategy[Wanted]:
    side = st.integers(least, 300)
    modes = st.sampled_from(["RGB", "L"])
    seed, size = st.integers(0, 1 << 20), st.integers(12, 70)
    return st.builds(Wanted, side, side, seed, modes, st.integers(0, 2), st.booleans(), size)


@settings(max_examples=60, deadline=None)
@given(wanted(120), st.booleans())
def test_scaled_pixels_are_near_exact_ones(want, bicubic):
    """Of the same box; and that box lies within a denominator of the one that was drawn."""
    body, height, width, box, size = want.body, want.height, want.width, want.box, want.size
    pixels, (at,) = decode_crops(body, lambda h, w: [Crop(box, size)], "scaled")
    by = next(k for k in (1, 2, 4, 8) if pixels.shape[0] == -(-height // k))
    assert pixels.shape[1] == -(-width // by)
    assert by == 8 or 2 * by * size > min(box[2:])
    assert by == 1 or min(*at[2:], min(box[2:]) // by) >= size
    top, left, h, w = (by * x for x in at)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width
    ends = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    assert all(
        abs(a - b) < 1.5 * by for a, b in zip(ends, (top, left, top + h, left + w), strict=True)
    )
    known = resize_crop(decode_image(body), (top, left, h, w), size, False)
    far = np.abs(resize_crop(pixels, at, size, False).astype(int) - known)
    if by == 1:
        assert at == box and not far.any()
    else:
        assert far.mean() < MEAN and far.max() < MOST
    # and with the resize that is asked for it is what `decode_crop` gives
    alone = decode_crop(body, lambda h, w: box, size, bicubic, "scaled")
    assert np.array_equal(alone, resize_crop(pixels, at, size, bicubic))


@settings(max_examples=40, deadline=None)
@given(wanted(40), st.sampled_from(["exact", "scaled"]))
def test_under_twice_the_output_nothing_changes(want, decode):
    body, box = want.body, want.box
    size = min(box[2:]) // 2 + 1
    pixels, boxes = decode_crops(body, lambda h, w: [Crop(box, 2), Crop(box, size)], decode)
    assert boxes == [box, box] and np.array_equal(pixels, decode_image(body))


def test_other_pictures_are_decoded_as_they_are():
    for kind in ("PNG", "WEBP", "BMP", "GIF"):
        body = encoded(natural(0, 80, 90), kind)
        pixels, boxes = decode_crops(body, lambda h, w: [Crop((0, 0, h, w), 8)], "scaled")
        assert boxes == [(0, 0, 80, 90)] and np.array_equal(pixels, decode_image(body))


def jpegs() -> list[bytes]:
    return [body for _, body in seeds() if body[:2] == b"\xff\xd8"]


def hurt(count: int, seed: int, sound: list[bytes]) -> list[bytes]:
    rng, out = random.Random(seed), []
    for k in range(count):
        body = bytearray(sound[k % len(sound)])
        for _ in range(rng.choice([1, 1, 1, 2])):
            if len(body) > 8:
                rng.choice(HURT)(body, rng)
        out.append(bytes(body))
    return out


@pytest.mark.parametrize(
    ("count", "seed"), [(500, 1), pytest.param(20_000, 2, marks=pytest.mark.full)]
)
def test_scaled_gives_the_verdicts_of_exact(count, seed):
    """On broken JPEGs, at each scale; what is mended is mended in both."""
    bad = made = 0
    for k, body in enumerate([*jpegs(), *hurt(count, seed, jpegs())]):
        notes.clear()
        known, mended = verdict(decode_image, body), notes["jpeg_mended"]
        notes.clear()
        size = (20, 10, 5)[k % 3]
        found = verdict(decode_crops, body, lambda h, w, s=size: [Crop((0, 0, h, w), s)], "scaled")
        assert notes["jpeg_mended"] == mended
        if isinstance(known, str):
            assert found == known
            bad += 1
        else:
            assert not isinstance(found, str)
            made += found[0].shape != known.shape
    assert bad > count / 4 and made > count / 8


def test_limits_are_those_of_the_whole():
    """What is made of a picture is small; what its decoder goes through and holds is not."""
    for body, reason in (
        (of_scans(101), "image_scans"),
        (encoded(Image.new("L", (164, 8))), "image_shape"),
        (encoded(Image.new("L", (9000, 8000))), "image_bomb"),
    ):
        for decode in ("exact", "scaled"):
            found = verdict(decode_crops, body, lambda h, w: [Crop((0, 0, h, w), 1)], decode)
            assert found == reason


def test_each_recipe_trains_by_it_or_refuses_it():
    """Fewer pixels of a large picture are decoded for training, and evaluations see no change.
    Restart markers whose places are known change nothing under either.
    """
    body = encoded(natural(1, 500, 600), restart_marker_blocks=2)
    assert (tabled := with_table(body)) != body
    heeding = 0
    for name, make in recipes.named():
        if not name.endswith("_smoke"):
            continue
        run = make()
        scaled = replace(run, data=replace(run.data, decode="scaled"))
        try:
            check(scaled)
        except UserError as e:
            assert str(e).startswith("data.decode"), name
            continue

        def rows(body: bytes, train: bool, runs=(run, scaled)) -> list[Row]:
            members = Members(jpg=body, txt=b"a dog", cls=b"0")
            return [reader_of(r, train)(members, uniforms(1, 0, 0, 0)) for r in runs]

        for train in (False, True):
            exact, other = rows(body, train)
            for known, found in zip((exact, other), rows(tabled, train), strict=True):
                assert all(np.array_equal(found[key], known[key]) for key in known), name
            changed = {key for key in exact if not np.array_equal(exact[key], other[key])}
            assert bool(changed) == train, name
            assert all(exact[key].ndim > 2 for key in changed), "pictures alone"
        heeding += 1
    assert heeding > 15


def test_a_reader_that_does_not_say_so_refuses_it():
    class Silent(SupervisedConfig):
        data_fields = None

    run = next(make() for name, make in recipes.named() if name == "vit_b32_jft_smoke")
    silent = Silent(net=run.objective.net, loss=run.objective.loss)
    run = replace(run, objective=silent, data=Data(decode="scaled"))
    with pytest.raises(UserError, match=r"data\.decode=scaled is not for Silent"):
        check(run)


def test_the_policy_counts_in_the_hash(monkeypatch):
    run = clip_vit_b32_smoke()

    def having(**fields) -> Run:
        return replace(run, data=replace(run.data, **fields))

    assert recipe_hash(having(decode="exact")) == recipe_hash(run)
    assert "decode" not in compact(run.data)
    scaled = recipe_hash(having(decode="scaled"))
    assert scaled != recipe_hash(run)
    monkeypatch.setitem(DECODE, "scaled", "jpeg-scaled-2")
    assert scaled != recipe_hash(having(decode="scaled")), "other pixels, another hash"


def test_several_crops_share_the_scale_of_the_least():
    assert crops.denominator([Crop((0, 0, 80, 90), 10), Crop((0, 0, 70, 50), 12)]) == 4
    assert crops.denominator([Crop((0, 0, 80, 90), 10)]) == 8
    assert crops.denominator([Crop((0, 0, 19, 90), 10)]) == 1
    assert crops.hull([(3, 4, 5, 6), (1, 8, 2, 9)]) == (1, 4, 7, 13)
