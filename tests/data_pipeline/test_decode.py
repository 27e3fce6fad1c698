"""Pixels beside Pillow's, and boxes from uniform numbers."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data_pipeline.make import encoded, picture
from vtx_scale.data_pipeline.augment.crop import (
    CROP_WORDS,
    TRIES,
    centre_box,
    random_resized_crop_box,
    zoomed_box,
)
from vtx_scale.data_pipeline.decode import decode_image, resize_crop


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with grain, as a camera gives them."""
    base = np.asarray(picture(seed, height, width)).astype(float)
    return (
        (base + np.random.default_rng(seed).normal(0, 8, base.shape)).clip(0, 255).astype(np.uint8)
    )


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_equals_pillow(quality, subsampling):
    body = encoded(
        Image.fromarray(photo(quality, 113, 150)), quality=quality, subsampling=subsampling
    )
    known = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
    assert np.abs(decode_image(body) - known).max() <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 160), st.integers(8, 160), st.integers(4, 64), st.data())
def test_resize_equals_pillow(height, width, size, data):
    """Crop, then bilinear with antialiasing: within one level, up and down; both round after
    each direction, so that very seldom the two roundings add up to two."""
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    image = photo(height * width, height, width)
    cropped = Image.fromarray(image).crop((left, top, left + w, top + h))
    known = np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    ours = resize_crop(image, (top, left, h, w), size)
    off = np.abs(ours - known)
    assert ours.shape == (size, size, 3)
    assert off.max() <= 2 and (off > 1).sum() <= max(1, off.size / 1000)


def test_bicubic_resize_is_near_pillow():
    image = photo(1, 150, 200)
    known = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC)).astype(
        int
    )
    off = np.abs(resize_crop(image, (0, 0, 150, 200), 48, bicubic=True) - known)
    assert off.max() <= 8 and (off > 1).mean() < 0.002


def test_a_box_of_the_size_is_copied():
    image = photo(2, 40, 50)
    assert (resize_crop(image, (3, 7, 24, 24), 24) == image[3:27, 7:31]).all()


BOX = st.tuples(st.integers(2, 500), st.integers(2, 500), st.integers(0, 2**32))


@settings(max_examples=200, deadline=None)
@given(BOX)
def test_random_boxes_lie_inside_and_keep_their_ranges(case):
    """Area and aspect within their ranges, but for rounding and for pictures too long
    for any aspect.
    """
    height, width, seed = case
    u = np.random.default_rng(seed).random(CROP_WORDS)
    top, left, h, w = random_resized_crop_box(height, width, u, (0.2, 0.9), (0.75, 4 / 3))
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1 and top + h <= height and left + w <= width
    assert (w - 0.5) / (h + 0.5) <= 4 / 3 and (w + 0.5) / (h - 0.5) >= 0.75
    if max(height, width) <= 1.2 * min(height, width):
        assert (h + 0.5) * (w + 0.5) >= 0.2 * height * width and (h - 0.5) * (
            w - 0.5
        ) <= 0.9 * height * width


@given(
    BOX,
    st.floats(1, 3),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(2, 300),
)
def test_zoomed_boxes_are_squares_within_their_range(case, low, wider, spread, size):
    height, width, seed = case
    u, short = np.random.default_rng(seed).random(4), min(height, width)
    top, left, h, w = zoomed_box(height, width, u, (low, low + wider), spread, size)
    assert h == w and 1 <= h <= short and 0 <= top <= height - h and 0 <= left <= width - w
    assert h >= min(short, size) - 0.5 or h >= short / low - 0.5, (
        "cut out less than the model sees, without need"
    )
    assert (h + 0.5) * (low + wider) >= short and (h - 0.5) * max(
        1, min(low, short / size)
    ) <= short
    # in the middle of the long side, but for the way inside the square
    if spread == 0 and height >= width:
        assert abs(top - int(u[2] * (short - h + 1)) - (height - short) / 2) <= 1


def test_zoomed_boxes_reach_every_place():
    """Fine-tuning at 448 / 384: in every shape of picture the crop wanders over all of it."""
    rng = np.random.default_rng(0)
    for height, width in ((400, 400), (333, 500), (500, 333), (281, 500)):
        boxes = np.array(
            [
                zoomed_box(height, width, rng.random(4), (448 / 384,) * 2, None, 16)
                for _ in range(4000)
            ]
        )
        side = round(min(height, width) * 384 / 448)
        assert (boxes[:, 2:] == side).all()
        for at, free in ((boxes[:, 0], height - side), (boxes[:, 1], width - side)):
            assert at.min() == 0 and at.max() == free
            assert (
                abs(at.mean() / free - 0.5) < 0.02
                and abs(at.std() / free - 1 / math.sqrt(12)) < 0.02
            )


def test_random_boxes_are_spread_evenly():
    """Mean area, aspect and place over many draws are those of the uniform laws they come from."""
    rng = np.random.default_rng(0)
    boxes = np.array(
        [
            random_resized_crop_box(400, 400, rng.random(CROP_WORDS), (0.1, 0.5), (0.75, 4 / 3))
            for _ in range(4000)
        ]
    )
    top, left, h, w = boxes.T.astype(float)
    assert abs((h * w).mean() / 160_000 - 0.3) < 0.008
    assert (
        abs(np.log(w / h).mean()) < 0.01
        and abs(np.log(w / h).std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01
    )
    for at, free in ((top, 400 - h), (left, 400 - w)):
        place = at / np.maximum(free, 1)
        assert abs(place.mean() - 0.5) < 0.015 and abs(place.std() - 1 / math.sqrt(12)) < 0.015


def test_extreme_numbers_give_boxes():
    last = np.nextafter(1, 0)
    for value in (0.0, last, 0.5):
        for shape in ((2, 2), (3, 500), (500, 3), (224, 224)):
            top, left, h, w = random_resized_crop_box(
                *shape, np.full(CROP_WORDS, value), (0.08, 1.0), (0.75, 4 / 3)
            )
            assert 0 <= top <= shape[0] - h and 0 <= left <= shape[1] - w and min(h, w) >= 1


def test_the_last_place_is_as_likely_as_the_first():
    for c, d in ((0.0, np.nextafter(1, 0)), (np.nextafter(1, 0), 0.0)):
        u = np.array([0.0, 0.5, c, d] * TRIES)
        places = {0.0: 0, np.nextafter(1, 0): 72}
        assert random_resized_crop_box(100, 100, u, (0.08, 1.0), (0.75, 4 / 3)) == (
            places[c],
            places[d],
            28,
            28,
        )


def test_after_five_tries_the_centre_at_the_nearest_ratio():
    u = np.full(CROP_WORDS, 0.999999)
    assert TRIES == 5 and CROP_WORDS == 20
    assert random_resized_crop_box(100, 400, u, (1.0, 1.0), (0.75, 4 / 3)) == (0, 133, 100, 133)
    assert random_resized_crop_box(400, 100, u, (1.0, 1.0), (0.75, 4 / 3)) == (133, 0, 133, 100)
    assert centre_box(100, 401) == (0, 150, 100, 100) and centre_box(401, 100) == (150, 0, 100, 100)
