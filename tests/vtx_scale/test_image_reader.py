"""What image objectives read, and the evaluators of their own."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import uniforms
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.accuracy import accuracy
from vtx_scale.evaluators.loss import loss
from vtx_scale.launch import override, recipes
from vtx_scale.objectives.dino import Dino
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.masked import mean_colours
from vtx_scale.specs.dino import Crops, DinoConfig
from vtx_scale.specs.run import Augment, Data
from vtx_scale.specs.vit import ViTConfig


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def square(height=60, width=90, top=25, left=40, side=12):
    """A dark picture with a bright square, and its mask."""
    pixels, mask = np.full((height, width, 3), 30, np.uint8), np.zeros((height, width), np.uint8)
    pixels[top : top + side, left : left + side] = 220
    mask[top : top + side, left : left + side] = 1
    return {"png": png(pixels), "mask.png": png(mask), "cls": b"3"}


@pytest.mark.parametrize("centre", [1.0, 0.875, 0.5])
def test_an_evaluation_looks_at_the_middle_and_the_mask_lies_on_it(centre):
    row = ImageReader(30, Data(centre=centre), False, masks=True)(square(), uniforms(0, 0, 0, 0))
    assert row["image"].shape == (30, 30, 3) and row["mask"].shape == (30, 30) and row["label"] == 3
    bright = row["image"].astype(float).mean(2) > 125
    assert (bright == (row["mask"] > 0)).mean() > 0.97
    assert row["mask"].sum() == pytest.approx((12 * 30 / (60 * centre)) ** 2, rel=0.3)


def test_views_are_others_and_belong_to_the_sample():
    reader = ImageReader(
        16,
        Data(crop=(0.2, 1.0), flip=0.5, augment=Augment(repeats=3, randaug_layers=2)),
        True,
        classes=12,
    )
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    sample = {"png": png(noise), "cls": b"7"}
    one, again = (reader(sample, uniforms(0, 0, 5, 1))["image"] for _ in range(2))
    assert one.shape == (3, 16, 16, 3) and np.array_equal(one, again)
    assert not np.array_equal(one[0], one[1]) and not np.array_equal(one[1], one[2])
    assert not np.array_equal(one, reader(sample, uniforms(0, 0, 6, 1))["image"])
    assert reader.blank()["image"].shape == one.shape
    alone = ImageReader(
        16, Data(crop=(0.2, 1.0), flip=0.5, augment=Augment(randaug_layers=2)), True, classes=12
    )
    assert np.array_equal(alone(sample, uniforms(0, 0, 5, 1))["image"], one[0]), (
        "more views leave the first as it is"
    )


def mirrored(i, n):
    """Where place i of a padded line lies in one of n: the end itself stands once."""
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


@pytest.mark.parametrize(("pad", "size"), [(1, 8), (4, 32), (4, 6), (9, 5)])
def test_padding_is_by_reflection_and_the_cut_anywhere(pad, size):
    """Every pixel, by hand; all offsets come, and are the sample's own."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    sample, offsets = {"png": png(noise), "cls": b"1"}, set()
    reader = ImageReader(size, Data(pad=pad, flip=0.5), True)
    for k in range(60):
        got = reader(sample, uniforms(0, 0, k, 0))["image"]
        u = uniforms(0, 0, k, 0)(0, 21)
        top, left = (int(x * (2 * pad + 1)) - pad for x in u[:2])
        rows = [mirrored(i, size) for i in range(top, top + size)]
        columns = [mirrored(i, size) for i in range(left, left + size)]
        wanted = noise[rows][:, columns]
        assert np.array_equal(got, wanted[:, ::-1] if u[20] < 0.5 else wanted)
        offsets.add((top, left))
    assert {a for a, _ in offsets} == set(range(-pad, pad + 1)) or len(offsets) > 40
    plain = ImageReader(size, Data(pad=pad), False)(sample, uniforms(0, 0, 0, 0))
    assert np.array_equal(plain["image"], noise), "an evaluation pads nothing"


def test_padding_is_of_the_middle_square():
    reader = ImageReader(12, Data(pad=2), True)
    wide = np.zeros((12, 40, 3), np.uint8)
    wide[:, 14:26] = 200
    assert (reader({"png": png(wide)}, uniforms(0, 0, 3, 0))["image"] == 200).all()


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("data.pad=-1", "give 0 or more"), ("data.pad=4", "0 beside zoom")],
)
def test_padding_that_cannot_be(key, sentence):
    with pytest.raises(UserError, match=sentence):
        override.override(recipes.find("igpt_l_finetune", smoke=True), [key])
    with pytest.raises(UserError, match="data.pad is not for"):
        override.override(recipes.find("clip_vit_b32", smoke=True), ["data.pad=4"])


def test_fine_tuning_on_cifar_pads():
    data = recipes.find("igpt_l_finetune_cifar10").data
    assert (data.pad, data.flip, data.zoom) == (4, 0.5, None)


def test_labels():
    reader = ImageReader(16, Data(), True, classes=12, labels=3)
    sample = square()
    assert reader({**sample, "cls": b"4, 2\n4"}, uniforms(0, 0, 0, 0))["labels"].tolist() == [
        4,
        2,
        -1,
    ]
    for body, reason in (
        (b"12", "label"),
        (b"1 2 3 4", "label"),
        (b"x", "label"),
        (b"", "member_missing"),
    ):
        with pytest.raises(BadSample) as e:
            reader({**sample, "cls": body}, uniforms(0, 0, 0, 0))
        assert e.value.reason == reason, body


def test_more_local_crops_leave_the_global_ones():
    sample = square()
    samples = []
    for count in (2, 6):
        spec = DinoConfig(
            net=ViTConfig(width=8, depth=1, mlp=8, heads=1, patch=8, resolution=32),
            crops=Crops(locals=count, local_size=16),
        )
        samples.append(Dino.reader(spec, Data(), True)(sample, uniforms(0, 0, 3, 0)))
    assert np.array_equal(samples[0]["globals"], samples[1]["globals"])
    assert np.array_equal(samples[0]["locals"], samples[1]["locals"][:2])


def test_mean_colours_against_a_loop():
    pixels = torch.randint(
        0, 256, (3, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels[0] = 255
    pixels[1] = torch.tensor([31, 32, 224])
    means = mean_colours(pixels, 4)
    assert means[0].tolist() == [511] * 9 and means[1].tolist() == [0 * 64 + 1 * 8 + 7] * 9
    for k in range(9):
        mean = (
            pixels[2, 4 * (k // 3) : 4 * (k // 3) + 4, 4 * (k % 3) : 4 * (k % 3) + 4]
            .double()
            .mean((0, 1))
        )
        assert means[2, k] == sum(int(m // 32) * w for m, w in zip(mean, (64, 8, 1), strict=True))


def batch(count, valid, **data):
    n = len(count)
    data = {"image": torch.zeros(n, 2, 2, 3, dtype=torch.uint8), **data}
    return Batch(
        data,
        torch.tensor(valid),
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n),
    )


def test_accuracy():
    logits = torch.tensor(
        [
            [9.0, 1, 0, 0, 0, 0, 2],
            [0, 1, 2, 3, 4, 5, 6],
            [9, 8, 7, 6, 5, 4, 3],
            [1, 0, 0, 0, 0, 0, 0],
        ]
    )
    probes = {"classify": lambda x: logits}
    plain = batch([0] * 4, [True, True, True, False], label=torch.tensor([0, 5, -1, 0]))
    found = accuracy(probes, [plain], None, Ranks())
    assert {"confusion", "mistakes"} < found.keys()
    numbers = {key: found[key] for key in ("top1", "samples", "top5")}
    assert numbers == {"top1": 0.5, "samples": 2, "top5": 1.0}
    several = batch(
        [0] * 4,
        [True] * 4,
        label=torch.tensor([4, 6, 6, -1]),
        labels=torch.tensor([[4, 0], [6, -1], [6, 5], [-1, -1]]),
    )
    assert accuracy(probes, [several], None, Ranks()) == {
        "top1": 2 / 3,
        "samples": 3,
        "top5": 2 / 3,
    }
    with pytest.raises(UserError, match="no labels"):
        accuracy(
            probes,
            [batch([0] * 4, [False] * 4, label=torch.zeros(4, dtype=torch.int64))],
            None,
            Ranks(),
        )
    with pytest.raises(UserError, match="needs a classifier"):
        accuracy({}, [plain], None, Ranks())


def test_loss():
    probes = {"loss": lambda x, ids: ids.float() + 1}
    two = [batch([0] * 3, [True, False, True]), batch([0] * 2, [True, True])]
    assert loss(probes, two, None, Ranks()) == {"loss": (1 + 3 + 1 + 2) / 4, "samples": 4}
    with pytest.raises(UserError, match="no valid"):
        loss(probes, [batch([0], [False])], None, Ranks())
