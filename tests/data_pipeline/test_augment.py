"""Augmentations beside Pillow's and torchvision's, and what must hold for any numbers."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vtx_scale.data_pipeline.augment import affine, colour
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS
from vtx_scale.data_pipeline.augment.erase import ERASE_WORDS, erase_box
from vtx_scale.data_pipeline.augment.mixing import Mix, mix_parameters
from vtx_scale.data_pipeline.augment.multicrop import VIEW_WORDS, MultiCrop
from vtx_scale.data_pipeline.augment.randaug import OPERATIONS, RandAugment

FILL = (124, 116, 104)
BICUBIC, NEAREST, AFFINE = (
    Image.Resampling.BICUBIC,
    Image.Resampling.NEAREST,
    Image.Transform.AFFINE,
)
FACTORS = st.floats(0, 3)


@st.composite
def pictures(draw, least=1):
    """Noise, smooth colours, one colour or few levels;
    in pixels, in planes or mirrored in memory.
    """
    height, width = draw(st.integers(least, 50)), draw(st.integers(least, 50))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    kind = draw(st.sampled_from(["noise", "smooth", "one", "few"]))
    if kind == "smooth":
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.array(small.resize((width, height), BICUBIC))
    else:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels = {
            "noise": pixels,
            "one": np.full_like(pixels, pixels[0, 0]),
            "few": pixels // 64 * 60,
        }[kind]
    layout = draw(st.sampled_from(["pixels", "planes", "mirrored"]))
    if layout == "planes":
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    return pixels[:, ::-1] if layout == "mirrored" else pixels


def pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def off(ours: np.ndarray, known: Image.Image | np.ndarray) -> int:
    known = np.asarray(known)
    assert ours.shape == known.shape and ours.dtype == np.uint8
    return int(np.abs(ours.astype(int) - known).max())


@pytest.mark.parametrize(
    "name, other",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
@settings(max_examples=60, deadline=None)
@given(pictures(), FACTORS)
def test_enhancements_equal_pillow(name, other, pixels, factor):
    before = pixels.copy()
    assert off(getattr(colour, name)(pixels, factor), other(pillow(pixels)).enhance(factor)) <= 1
    assert (pixels == before).all()


@pytest.mark.parametrize(
    "name, other",
    [
        ("invert", ImageOps.invert),
        ("grey", lambda i: i.convert("L").convert("RGB")),
        ("autocontrast", ImageOps.autocontrast),
        ("equalise", ImageOps.equalize),
    ],
)
@settings(max_examples=40, deadline=None)
@given(pictures())
def test_plain_operations_equal_pillow(name, other, pixels):
    assert off(getattr(colour, name)(pixels), other(pillow(pixels))) <= 1


@settings(max_examples=60, deadline=None)
@given(pictures(), st.integers(0, 256), st.integers(0, 8), st.integers(0, 255))
def test_levels_equal_pillow(pixels, threshold, bits, amount):
    image = pillow(pixels)
    assert off(colour.solarise(pixels, threshold), ImageOps.solarize(image, threshold)) == 0
    known = ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)
    assert off(colour.posterise(pixels, bits), known) == 0
    added = image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)
    assert off(colour.solarise_add(pixels, amount), added) == 0


@settings(max_examples=80, deadline=None)
@given(pictures(), st.floats(0.05, 5))
def test_blur_equals_pillow(pixels, radius):
    assert (
        off(colour.blur(pixels, radius), pillow(pixels).filter(ImageFilter.GaussianBlur(radius)))
        <= 1
    )


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (6, 5, 3)), st.floats(-0.5, 0.5))
def test_hue_equals_its_definition(pixels, turn):
    known = np.empty(pixels.shape)
    for at in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[at] / 255).tolist())
        known[at] = [255 * x for x in colorsys.hsv_to_rgb((h + turn) % 1, s, v)]
    assert np.abs(colour.hue(pixels, turn) - known).max() <= 1


@settings(max_examples=40, deadline=None)
@given(pictures(), st.floats(-45, 45), st.floats(-0.4, 0.4), st.floats(-70, 70), st.booleans())
def test_moves_equal_pillow(pixels, degrees, factor, distance, bicubic):
    image, way = pillow(pixels), BICUBIC if bicubic else NEAREST
    assert (
        off(
            affine.rotate(pixels, degrees, FILL, bicubic),
            image.rotate(degrees, way, fillcolor=FILL),
        )
        <= 1
    )
    for move, by, matrix in (
        (affine.shear_x, factor, (1, factor, 0, 0, 1, 0)),
        (affine.shear_y, factor, (1, 0, 0, factor, 1, 0)),
        (affine.translate_x, distance, (1, 0, distance, 0, 1, 0)),
        (affine.translate_y, distance, (1, 0, 0, 0, 1, distance)),
    ):
        ours, known = (
            move(pixels, by, FILL, bicubic),
            image.transform(image.size, AFFINE, matrix, way, fillcolor=FILL),
        )
        wrong = np.abs(ours.astype(int) - np.asarray(known)).max(2) > 1
        # A centre that falls on the line between two pixels may go to either side in the last
        # digit of float64.
        assert not wrong.any() or near_a_line(pixels.shape, matrix)[wrong].all()


def near_a_line(shape, matrix) -> np.ndarray:
    """(H, W): whether a pixel's centre comes from within 1e-6 of a border between pixels."""
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    came = np.stack([a * x + b * y + c, d * x + e * y + f])
    return (np.abs(came - came.round()) < 1e-6).any(0)


@settings(max_examples=20, deadline=None)
@given(pictures())
def test_flip(pixels):
    assert off(affine.flip(pixels), pixels[:, ::-1]) == 0


@settings(max_examples=40, deadline=None)
@given(pictures(), st.integers(0, 1 << 32))
def test_jitter_is_its_changes_in_turn(pixels, seed):
    u = np.random.default_rng(seed).random(colour.JITTER_WORDS)
    known = pixels
    for i, factor in colour.jitter_factors(u, 0.4, 0.4, 0.2, 0.1):
        known = (colour.brightness, colour.contrast, colour.saturation, colour.hue)[i](
            known, factor
        )
    assert off(colour.jitter(pixels, u, 0.4, 0.4, 0.2, 0.1), known) == 0


def test_jitter_draws_every_order_and_the_whole_range():
    rng = np.random.default_rng(0)
    drawn = [
        colour.jitter_factors(u, 0.4, 1.5, 0.2, 0.1)
        for u in rng.random((3000, colour.JITTER_WORDS))
    ]
    orders = [tuple(i for i, _ in d) for d in drawn]
    assert len(set(orders)) == 24 and max(map(orders.count, set(orders))) < 3000 / 24 * 1.5
    for i, (low, high) in enumerate([(0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        factors = np.array([dict(d)[i] for d in drawn])
        assert (
            low <= factors.min() < low + 0.02 * (high - low)
            and high - 0.02 * (high - low) < factors.max() <= high
        )
        assert abs(factors.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert [i for i, _ in colour.jitter_factors(rng.random(8), 0, 0, 0.2, 0)] == [2]


@settings(max_examples=25, deadline=None)
@given(pictures(least=3), st.floats(0, 2), st.floats(-0.5, 0.5))
def test_colours_equal_torchvision(pixels, factor, turn):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(colour.planes(pixels).copy())
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        known = getattr(functional, f"adjust_{name}")(x, factor).permute(1, 2, 0).numpy()
        assert off(getattr(colour, name)(pixels, factor), known) <= 1, name
    for ours, known in (
        (colour.hue(pixels, turn), functional.adjust_hue(x, turn)),
        (colour.grey(pixels), functional.rgb_to_grayscale(x, 3)),
        (colour.posterise(pixels, 3), functional.posterize(x, 3)),
        (colour.invert(pixels), functional.invert(x)),
        (colour.solarise(pixels, 128), functional.solarize(x, 128)),
        (colour.autocontrast(pixels), functional.autocontrast(x)),
        (colour.equalise(pixels), functional.equalize(x)),
    ):
        assert off(ours, known.permute(1, 2, 0).numpy()) <= 1


POLICIES = [
    RandAugment(),
    RandAugment(2, 15, 0, increasing=False),
    RandAugment(3, 0, 0, increasing=False),
    RandAugment(2, 20, 0.5, increasing=False),
    RandAugment(1, 10, 2.0),
]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(pictures(), st.data())
def test_randaug_takes_a_fixed_number_of_words(policy, pixels, data):
    u = data.draw(arrays(np.float64, policy.words, elements=st.floats(0, 1, exclude_max=True)))
    assert policy.words == 6 * policy.layers
    before = pixels.copy()
    ours = policy(pixels, u)
    assert ours.shape == pixels.shape and ours.dtype == np.uint8
    assert off(policy(pixels, u), ours) == 0 and (pixels == before).all()
    assert off(policy(pixels, np.append(u, 0.3)), ours) == 0


def test_randaug_in_its_two_forms():
    assert RandAugment().operations == OPERATIONS and len(OPERATIONS) == 15
    deit, plain = RandAugment(), RandAugment(2, 15, 0, increasing=False)
    assert plain.operations == (*OPERATIONS, "cutout")
    arguments = {name: deit.arguments(name, 0.9, 1) for name in OPERATIONS}
    assert (
        arguments["posterise"] == (1,)
        and arguments["solarise"] == (26,)
        and arguments["solarise_add"] == (99,)
    )
    assert arguments["contrast"] == pytest.approx((1.81,)) and deit.arguments(
        "contrast", 0.9, -1
    ) == pytest.approx((0.19,))
    assert deit.arguments("contrast", 1.0, -1) == (0.1,)
    mild = {name: plain.arguments(name, 1.5, 1) for name in OPERATIONS}
    assert (
        mild["posterise"] == (6,)
        and mild["solarise"] == (256,)
        and mild["contrast"] == pytest.approx((2.8,))
    )
    assert plain.arguments("contrast", 0, -1) == (0.1,) and plain.arguments("posterise", 0, 1) == (
        0,
    )
    levels = np.array([deit.level(u) for u in (np.arange(4000) + 0.5) / 4000])
    assert (
        levels.max() == 1.0
        and abs((levels == 1).mean() - 0.0228) < 0.002
        and abs(np.median(levels) - 0.9) < 1e-3
    )
    assert plain.level(0.1) == 1.5 and 0 <= deit.level(0.0) < 0.6


@pytest.mark.parametrize(
    "policy, often", [(RandAugment(1, 9, 0.5), 0.5), (RandAugment(1, 15, 0, increasing=False), 1)]
)
def test_randaug_chooses_evenly(policy, often, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        RandAugment,
        "apply",
        lambda self, pixels, name, level, sign: chosen.append((name, sign)) or pixels,
    )
    monkeypatch.setattr(
        "vtx_scale.data_pipeline.augment.randaug.cutout",
        lambda pixels, *_: chosen.append(("cutout", 1)) or pixels,
    )
    pixels, n = np.zeros((2, 2, 3), np.uint8), 6000
    for u in np.random.default_rng(0).random((n, policy.words)):
        policy(pixels, u)
    names = [name for name, _ in chosen]
    assert abs(len(chosen) / n - often) < 0.02
    counts = np.array([names.count(name) for name in policy.operations])
    assert abs(counts / len(chosen) - 1 / len(counts)).max() < 0.015
    assert abs(np.mean([sign for name, sign in chosen if name != "cutout"])) < 0.06


def test_randaug_equals_pillow_in_a_chain():
    """Two operations by chosen numbers: rotation by -27 degrees, then solarising from 26 on."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    u = np.array([3.5 / 15, 0.2, 0.5, 0.7, 0, 0, 5.5 / 15, 0.4, 0.5, 0.1, 0, 0])
    known = ImageOps.solarize(pillow(pixels).rotate(-27, BICUBIC, fillcolor=FILL), 26)
    assert off(RandAugment()(pixels, u), known) == 0


def test_cutout_stays_inside():
    pixels = np.zeros((50, 40, 3), np.uint8)
    policy = RandAugment(1, 2, 0, increasing=False, fill=(1, 2, 3))
    ours = policy(pixels, np.array([0.99, 0, 0, 0, 0.0, 0.99]))
    assert (ours[:8, 31:] == (1, 2, 3)).all() and ours.any(2).sum() == 8 * 9


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float64, ERASE_WORDS, elements=st.floats(0, 1, exclude_max=True)), st.integers(1, 256)
)
def test_erased_boxes_lie_inside(u, size):
    box = erase_box(u, size)
    if box is not None:
        top, left, h, w = box
        assert 0 <= top <= size - h and 0 <= left <= size - w and 0 < h < size and 0 < w < size


def test_erased_area():
    boxes = [erase_box(u, 224) for u in np.random.default_rng(0).random((2000, ERASE_WORDS))]
    assert None not in boxes
    area = np.array([h * w for _, _, h, w in boxes]) / 224**2
    assert (
        0.019 < area.min() < 0.03
        and 0.3 < area.max() < 0.34
        and abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01
    )
    assert abs(np.mean([np.log(h / w) for _, _, h, w in boxes])) < 0.06


def drawn(seed: int):
    """draw(view, n) as the loader's: a longer draw begins with the shorter one."""
    return lambda view, n: np.random.default_rng([seed, view]).random(n)


SMALL = dict(global_size=20, local_size=9)


@settings(max_examples=40, deadline=None)
@given(pictures(least=2), st.integers(0, 1 << 32), st.integers(0, 5))
def test_views_are_independent(pixels, seed, many):
    """Any picture however small; the views do not know how many there are, and stay the same."""
    pixels = pixels.copy()  # not mirrored in memory: so comes no decoded picture
    before = pixels.copy()
    large, small = MultiCrop(**SMALL, locals=many)(pixels, drawn(seed))
    assert large.shape == (2, 20, 20, 3) and small.shape == (many, 9, 9, 3)
    assert large.dtype == small.dtype == np.uint8 and (pixels == before).all()
    more, others = MultiCrop(**SMALL, locals=many + 2)(pixels, drawn(seed))
    assert (more == large).all() and (others[:many] == small).all()


def test_views_differ_and_take_their_own_numbers():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    asked = []

    def draw(view, n):
        asked.append((view, n))
        return drawn(0)(view, n)

    large, small = MultiCrop(**SMALL, locals=3)(pixels, draw)
    assert asked == [(view, VIEW_WORDS) for view in range(5)]
    assert len({v.tobytes() for v in [*large, *small]}) == 5


def test_view_steps_in_order():
    """Flip, jitter, grey, blur, solarise; the last of the second large crop alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    plain = dict(flip=0, jitter_p=0, grey=0, blur=(0, 0, 0), solarise=0)
    u = np.random.default_rng(1).random(VIEW_WORDS)
    u[CROP_WORDS : CROP_WORDS + 6] = 0.5, 0.5, 0.5, 0.5, 0.25, 0.5
    crop = MultiCrop(**SMALL, **plain)
    box = crop.boxes(30, 30, [u] * 10)[1].box
    known = crop.view(pixels, box, 1, u)
    known = colour.jitter(affine.flip(known), u[-colour.JITTER_WORDS :], 0.4, 0.4, 0.2, 0.1)
    known = colour.solarise(colour.blur(colour.grey(known), 0.575))
    always = MultiCrop(**SMALL, flip=1, jitter_p=1, grey=1, blur=(1, 1, 1), solarise=1)
    assert off(always.view(pixels, box, 1, u), known) == 0
    assert off(always.view(pixels, box, 0, u), colour.solarise(known)) > 0


def test_how_often_views_are_changed(monkeypatch):
    counts = dict.fromkeys(("flip", "jitter", "grey", "blur", "solarise"), 0)
    for name in counts:

        def step(pixels, *_, name=name):
            counts[name] += 1
            return pixels

        monkeypatch.setattr(f"vtx_scale.data_pipeline.augment.multicrop.{name}", step)
    pixels, n, rng = np.zeros((8, 8, 3), np.uint8), 1000, np.random.default_rng(0)
    crop = MultiCrop(global_size=8, local_size=8)
    for view, blurs, solarises in ((0, 1, 0), (1, 0.1, 0.2), (5, 0.5, 0)):
        counts.update(dict.fromkeys(counts, 0))
        for u in rng.random((n, VIEW_WORDS)):
            crop.view(pixels, (0, 0, 8, 8), view, u)
        known = {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": blurs, "solarise": solarises}
        assert all(abs(counts[name] / n - p) < 0.06 for name, p in known.items()), (view, counts)
        assert view == 1 or counts["solarise"] == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 1 << 40), st.integers(1, 256))
def test_the_weight_is_the_area(seed, step, size):
    mix = mix_parameters(seed, step, 0, 1.0, 1, 0.5, size)
    top, left, h, w = mix.box
    assert mix.kind == "cutmix" and 0 <= top <= top + h <= size and 0 <= left <= left + w <= size
    assert h >= 0 and w >= 0 and mix.weight == 1 - h * w / size**2
    assert mix == mix_parameters(seed, step, 0, 1.0, 1, 0.5, size)


def test_how_often_batches_are_mixed():
    drawn = [mix_parameters(3, step, 0.8, 1.0, 0.75, 0.4, 224) for step in range(4000)]
    kinds = [m.kind for m in drawn]
    for kind, p in (("none", 0.25), ("mixup", 0.45), ("cutmix", 0.3)):
        assert abs(kinds.count(kind) / 4000 - p) < 0.03
    weights = np.array([m.weight for m in drawn if m.kind == "mixup"])
    # of Beta(0.8, 0.8)
    assert abs(weights.mean() - 0.5) < 0.03 and abs(weights.var() - 1 / (4 * 2.6)) < 0.01
    assert all(m.box == (0, 0, 0, 0) for m in drawn if m.kind != "cutmix")
    assert all(m == Mix() for m in drawn if m.kind == "none")
    assert mix_parameters(0, 0, 0, 0, 1, 0.5, 8) == Mix()
    assert mix_parameters(0, 0, 0.2, 0, 1, 1, 8).kind == "mixup"
    assert (
        len(
            {
                mix_parameters(seed, step, 0.8, 0, 1, 0, 8).weight
                for seed in range(9)
                for step in range(9)
            }
        )
        == 81
    )


def test_a_mix_is_fixed():
    """The same numbers on every machine and from version to version."""
    assert mix_parameters(1, 1, 0.8, 1.0, 1.0, 0.5, 224) == Mix(
        "mixup", pytest.approx(0.3707089227658434)
    )
    assert mix_parameters(1, 5, 0.8, 1.0, 1.0, 0.5, 224) == Mix(
        "cutmix", 1 - 210 * 129 / 224**2, (13, 95, 210, 129)
    )
