"""Parameters and multiply-accumulates are those of the published models, counted on the meta device."""

import pytest

from vtx_scale.count import built, counted, macs, parameters, sample
from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.clip import CLIP_SIZES, Clip
from vtx_scale.specs.models import CLIPS, VITS, published

# patches, positions, blocks and norm; with class token; with 1000 classes; with attention pooling in place of both;
# GMAC with 1000 classes at 224 px; at the larger size and its pixels
VIT_FIGURES = {
    "s/28": (5_357_824, 5_358_336, 5_615_336, 6_147_328, 0.358, 0.993, 364),
    "s/16": (4_986_112, 4_986_624, 5_243_624, 5_775_616, 1.088, 3.859, 384),
    "Ti/16": (5_524_032, 5_524_416, 5_717_416, 5_968_704, 1.254, 4.682, 384),
    "S/32": (22_493_184, 22_493_952, 22_878_952, 24_267_264, 1.143, 3.443, 384),
    "S/16": (21_664_896, 21_665_664, 22_050_664, 23_438_976, 4.599, 15.490, 384),
    "S/14": (21_618_816, 21_619_584, 22_004_584, 23_392_896, 6.124, 20.577, 378),
    "S/8": (21_669_504, 21_670_272, 22_055_272, 23_443_584, 22.406, 98.079, 384),
    "M/16": (38_323_712, 38_324_736, 38_837_736, 41_475_584, 7.991, 26.099, 384),
    "B/32": (87_453_696, 87_455_232, 88_224_232, 94_540_800, 4.409, 13.044, 384),
    "B/28": (86_912_256, 86_913_792, 87_682_792, 93_999_360, 5.715, 15.278, 364),
    "B/16": (85_797_120, 85_798_656, 86_567_656, 92_884_224, 17.564, 55.484, 384),
    "B/14": (85_704_960, 85_706_496, 86_475_496, 92_792_064, 23.162, 72.155, 378),
    "B/8": (85_806_336, 85_807_872, 86_576_872, 92_893_440, 78.148, 294.045, 384),
    "L/32": (305_508_352, 305_510_400, 306_535_400, 318_103_552, 15.378, 45.276, 384),
    "L/16": (303_299_584, 303_301_632, 304_326_632, 315_894_784, 61.555, 191.066, 384),
    "L/14": (303_176_704, 303_178_752, 304_203_752, 315_771_904, 81.013, 247.086, 378),
    "So400m/14": (412_442_352, 412_444_656, 413_597_656, 427_680_704, 109.928, 333.727, 378),
    "H/16": (630_915_840, 630_918_400, 632_199_400, 650_592_000, 127.315, 390.858, 384),
    "H/14": (630_762_240, 630_764_800, 632_045_800, 650_438_400, 167.295, 503.481, 378),
    "g/14": (1_011_199_616, 1_011_202_432, 1_012_611_432, 1_036_448_384, 267.031, 797.387, 378),
    "G/14": (1_842_772_352, 1_842_775_680, 1_844_440_680, 1_881_132_416, 483.748, 1429.226, 378),
    "e/14": (3_805_417_728, 3_805_421_312, 3_807_214_312, 3_873_342_720, 990.677, 2883.285, 378),
}
# whole; image tower with its projection; the rest; GMAC of the image and of the text
CLIP_FIGURES = {
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_097, 4.409, 2.980),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_097, 17.563, 2.980),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_305, 81.013, 6.650),
    "ViT-L/14@336": (427_944_193, 304_293_888, 123_650_305, 190.960, 6.650),
    "ViT-H/14": (986_109_441, 632_076_800, 354_032_641, 167.295, 23.546),
    "ViT-g/14": (1_366_678_273, 1_012_645_632, 354_032_641, 267.032, 23.546),
    "ViT-bigG/14": (2_539_567_105, 1_844_907_264, 694_659_841, 483.748, 48.932),
}


def giga(spec) -> float:
    return round(macs(spec) / 1e9, 3)


@pytest.mark.parametrize("size", VIT_FIGURES)
def test_vit(size):
    body, token, classifier, pooled, gmac, larger_gmac, pixels = VIT_FIGURES[size]
    whole = ViT.size(size, classes=1000)
    assert parameters(ViT.size(size, class_token=False, pool="gap")) == body
    assert parameters(ViT.size(size)) == token
    assert parameters(whole) == classifier
    assert parameters(ViT.size(size, class_token=False, pool="map")) == pooled
    assert giga(whole) == gmac
    assert giga(ViT.size(size, classes=1000, resolution=pixels)) == larger_gmac


@pytest.mark.parametrize("size", CLIP_FIGURES)
def test_clip(size):
    whole, visual, rest, image_gmac, text_gmac = CLIP_FIGURES[size]
    spec = Clip.size(size)
    image, text = spec.image.width * spec.embed, spec.text.width * spec.embed  # of the projections
    assert parameters(spec) == whole
    assert parameters(spec.image) + image == visual
    assert parameters(spec.text) + text + 1 == rest
    assert round((macs(spec.image) + image) / 1e9, 3) == image_gmac
    assert round((macs(spec.text) + text) / 1e9, 3) == text_gmac
    assert macs(spec) == macs(spec.image) + macs(spec.text) + image + text


@pytest.mark.parametrize("pool", ["tok", "map"])
def test_two_blocks_tell_of_all(pool):
    """macs() counts two blocks and multiplies; here every block is run."""
    spec = ViT.size("Ti/16", pool=pool, class_token=pool == "tok", classes=10)
    assert counted(built(spec), sample(spec)) == macs(spec)
    text = Clip.size("ViT-B/32").text
    assert counted(built(text), sample(text)) == macs(text)


def test_every_published_model_is_listed():
    rows = published()
    assert set(VITS.values()) == set(VIT_FIGURES) and set(CLIPS.values()) == set(CLIP_FIGURES) == set(CLIP_SIZES)
    assert len(rows) == len(VITS) + len(CLIPS)
    assert all(resolution == (336 if "336" in name else 224) for name, (_, resolution) in rows.items())
    assert parameters(rows["vit_b16"][0]) == VIT_FIGURES["B/16"][2]
