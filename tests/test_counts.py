"""Parameters and multiply-accumulates are those of the published models,
counted on the meta device.
"""

import subprocess
import sys

import pytest
import torch

from vtx_scale.backbones.bit import BitStem
from vtx_scale.blocks.norm import BatchNorm
from vtx_scale.planner.count import built, count_published, counted, macs, parameters, sample
from vtx_scale.planner.stored import stored_counts
from vtx_scale.specs.clip import CLIP_SIZES, ClipConfig
from vtx_scale.specs.clip import PUBLISHED as CLIPS
from vtx_scale.specs.dalle import DALLE_SIZES, TextToCodesConfig
from vtx_scale.specs.dalle import PUBLISHED as DALLES
from vtx_scale.specs.dino import PUBLISHED as DINOS
from vtx_scale.specs.dino import DinoConfig
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.igpt import IGPT_SIZES, PixelGPTConfig
from vtx_scale.specs.igpt import PUBLISHED as IGPTS
from vtx_scale.specs.models import published
from vtx_scale.specs.resnet import CLIP_RESNET_SIZES, RESNET_SIZES, ClipResNetConfig, ResNetConfig
from vtx_scale.specs.resnet import PUBLISHED as RESNETS
from vtx_scale.specs.siglip import PUBLISHED as SIGLIPS
from vtx_scale.specs.siglip import SIGLIP_SIZES, SiglipConfig
from vtx_scale.specs.supervised import PUBLISHED_DEITS as DEITS
from vtx_scale.specs.supervised import PUBLISHED_PLAIN as DEITS_PLAIN
from vtx_scale.specs.virtex import PUBLISHED as VIRTEXES
from vtx_scale.specs.virtex import VIRTEX_SIZES
from vtx_scale.specs.vit import PUBLISHED as VITS
from vtx_scale.specs.vit import PUBLISHED_HYBRIDS as HYBRIDS
from vtx_scale.specs.vit import ViTConfig

# patches, positions, blocks and norm; with class token; with 1000 classes; with attention pooling
# in place of both; GMAC with 1000 classes at 224 px; at the larger size and its pixels
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
# with 1000 classes; without; buffers where torch's also count batches; GMAC; channels
# of the features
RESNET_FIGURES = {
    "18": (11_689_512, 11_176_512, 9_620, 1.814, 512),
    "34": (21_797_672, 21_284_672, 17_060, 3.664, 512),
    "50": (25_557_032, 23_508_032, 53_173, 4.089, 2048),
    "101": (44_549_160, 42_500_160, 105_448, 7.801, 2048),
    "152": (60_192_808, 58_143_808, 151_579, 11.514, 2048),
    "wide 50-2": (68_883_240, 66_834_240, 68_277, 11.398, 2048),
    "wide 101-2": (126_886_696, 124_837_696, 137_960, 22.753, 2048),
}
STEM_FIGURES = {
    (): (9_536, 64, 4),
    (2, 2, 2, 2): (13_946_176, 2048, 32),
    (3, 4, 9): (11_894_848, 1024, 16),
    (3, 4, 6, 3): (23_508_032, 2048, 32),
}  # parameters, channels, stride
# whole; image tower with its projection; the rest; GMAC of the image and of the text
CLIP_FIGURES = {
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_097, 4.409, 2.980),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_097, 17.563, 2.980),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_305, 81.013, 6.650),
    "ViT-L/14@336": (427_944_193, 304_293_888, 123_650_305, 190.960, 6.650),
    "ViT-H/14": (986_109_441, 632_076_800, 354_032_641, 167.295, 23.546),
    "ViT-g/14": (1_366_678_273, 1_012_645_632, 354_032_641, 267.032, 23.546),
    "ViT-bigG/14": (2_539_567_105, 1_844_907_264, 694_659_841, 483.748, 48.932),
    "RN50": (102_007_137, 38_316_896, 63_690_241, 6.111, 2.980),
    "RN101": (119_688_033, 56_259_936, 63_428_097, 9.771, 2.980),
    "RN50x4": (178_300_601, 87_137_080, 91_163_521, 21.279, 4.633),
    "RN50x16": (290_979_217, 167_328_912, 123_650_305, 74.695, 6.650),
    "RN50x64": (623_258_305, 420_380_352, 202_877_953, 264.554, 11.773),
}
# whole; image tower; text tower with scale and bias; GMAC of the image and of the
# text where published
SIGLIP_FIGURES = {
    "B/16": (203_155_970, 92_884_224, 110_271_746, 17.708, 5.512),
    "B/16@256": (203_202_050, 92_930_304, 110_271_746, 23.411, 5.512),
    "B/16@384": (203_447_810, 93_176_064, 110_271_746, 56.064, 5.512),
    "B/16@512": (203_791_874, 93_520_128, 110_271_746, 108.120, 5.512),
    "L/16@256": (652_150_786, 315_956_224, 336_194_562, 81.280, 19.530),
    "L/16@384": (652_478_466, 316_283_904, 336_194_562, 191.926, 19.530),
    "So400m/14": (877_360_306, 427_680_704, 449_679_602, 110.177, 6.594),
    "So400m/14@384": (877_960_498, 428_225_600, 449_734_898, 335.173, 26.565),
    "B/16-i18n@256": (370_626_050, 92_930_304, 277_695_746, 23.411, 5.512),
    "2-B/16": (375_187_970, 92_884_224, 282_303_746, 17.708, 5.512),
}
# parameters of the distilled one and GMAC where published
DEIT_FIGURES = {
    ("Ti/16", 224): (5_910_800, 1.261),
    ("S/16", 224): (22_436_432, 4.624),
    ("B/16", 224): (87_338_192, 17.657),
    ("B/16", 384): (87_630_032, None),
}


def giga(spec) -> float:
    return round(macs(spec) / 1e9, 3)


@pytest.mark.parametrize("size", VIT_FIGURES)
def test_vit(size):
    body, token, classifier, pooled, gmac, larger_gmac, pixels = VIT_FIGURES[size]
    whole = ViTConfig.size(size, classes=1000)
    assert parameters(ViTConfig.size(size, class_token=False, pool="gap")) == body
    assert parameters(ViTConfig.size(size)) == token
    assert parameters(whole) == classifier
    assert parameters(ViTConfig.size(size, class_token=False, pool="map")) == pooled
    assert giga(whole) == gmac
    assert giga(ViTConfig.size(size, classes=1000, resolution=pixels)) == larger_gmac


@pytest.mark.parametrize("size", CLIP_FIGURES)
def test_clip(size):
    whole, visual, rest, image_gmac, text_gmac = CLIP_FIGURES[size]
    spec = ClipConfig.size(size)
    # of the projections
    image = 0 if isinstance(spec.image, ClipResNetConfig) else spec.image.width * spec.embed
    text = spec.text.width * spec.embed
    assert parameters(spec) == whole
    assert parameters(spec.image) + image == visual
    assert parameters(spec.text) + text + 1 == rest
    assert round((macs(spec.image) + image) / 1e9, 3) == image_gmac
    assert round((macs(spec.text) + text) / 1e9, 3) == text_gmac
    assert macs(spec) == macs(spec.image) + macs(spec.text) + image + text


@pytest.mark.parametrize("size", SIGLIP_FIGURES)
def test_siglip(size):
    whole, visual, rest, image_gmac, text_gmac = SIGLIP_FIGURES[size]
    spec = SiglipConfig.size(size)
    assert parameters(spec) == whole
    assert parameters(spec.image) == visual
    assert parameters(spec.text) + 2 == rest
    assert (giga(spec.image), giga(spec.text)) == (image_gmac, text_gmac)
    assert macs(spec) == macs(spec.image) + macs(spec.text)


@pytest.mark.parametrize(("size", "pixels"), DEIT_FIGURES)
def test_distilled(size, pixels):
    figure, gmac = DEIT_FIGURES[size, pixels]
    spec = ViTConfig.size(size, classes=1000, distilled=True, resolution=pixels)
    assert parameters(spec) == figure
    assert gmac is None or giga(spec) == gmac


@pytest.mark.parametrize("size", RESNET_FIGURES)
def test_resnet(size):
    classifier, trunk, buffers, gmac, width = RESNET_FIGURES[size]
    whole = ResNetConfig.size(size, classes=1000)
    assert parameters(whole) == classifier
    assert parameters(ResNetConfig.size(size)) == trunk
    model = built(whole)
    norms = sum(isinstance(m, BatchNorm) for m in model.modules())
    assert sum(b.numel() for b in model.buffers()) + norms == buffers
    assert giga(whole) == gmac
    assert whole.width == width == built(ResNetConfig.size(size))(*sample(whole)).shape[1]


@pytest.mark.parametrize("blocks", STEM_FIGURES)
def test_stem_of_the_hybrids(blocks):
    size, channels, stride = STEM_FIGURES[blocks]
    with torch.device("meta"):
        stem = BitStem(blocks)
        out = stem(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in stem.parameters()) == size
    assert (stem.channels, stem.stride) == (channels, stride)
    assert out.shape == (1, channels, 224 // stride, 224 // stride)
    assert len(list(stem.units())) == sum(blocks)


# 1000 classes at 224 and at 384 pixels; GMAC at 224
HYBRID_FIGURES = {
    "R+Ti/16": (6_337_704, 6_355_944, 0.434),
    "R26+S/32": (36_431_912, 36_468_392, 3.464),
    "R26+B/32": (101_383_976, 101_456_936, 6.711),
    "R50+B/16": (98_659_112, 98_950_952, 21.535),
    "R50+B/32": (110_945_832, 111_018_792, 8.458),
    "R50+L/16": (316_483_624, 316_872_744, 65.539),
    "R50+L/32": (328_994_856, 329_092_136, 19.413),
}


@pytest.mark.parametrize("size", HYBRID_FIGURES)
def test_hybrid(size):
    small, large, gmac = HYBRID_FIGURES[size]
    assert parameters(ViTConfig.size(size, classes=1000)) == small
    assert parameters(ViTConfig.size(size, classes=1000, resolution=384)) == large
    assert giga(ViTConfig.size(size, classes=1000)) == gmac


# network, GMAC, head as it is trained with a fixed gain
DINO_FIGURES = {
    "S/16": (21_665_664, 4.598, 22_286_592),
    "S/8": (21_670_272, 22.405, 22_286_592),
    "B/16": (85_798_656, 17.563, 23_073_024),
    "B/8": (85_807_872, 78.148, 23_073_024),
    "50": (
        23_508_032,
        4.089 - 0.002,
        25_694_464,
    ),  # the reference's GMAC counts a classifier of 1000, 0.002
}


@pytest.mark.parametrize("size", DINO_FIGURES)
def test_dino(size):
    figure, gmac, head = DINO_FIGURES[size]
    net = ResNetConfig.size(size) if size == "50" else ViTConfig.size(size)
    assert parameters(net) == figure
    assert giga(net) == pytest.approx(gmac, abs=1e-3 if size == "50" else 0)
    whole = built(DinoConfig(net=net))
    assert sum(p.numel() for p in whole.student.head.parameters()) == head
    assert sum(p.numel() for p in whole.teacher.parameters()) == figure + head
    assert not any(p.requires_grad for p in whole.teacher.parameters())


# released layout; PixelGPT.size(...)
IGPT_FIGURES = {
    "S": 76_571_648,
    "M": 455_157_760,
    "L": 1_362_250_752,
    "L@48": 1_364_216_832,
    "L@64": 1_366_969_344,
    "XL": 6_810_875_904,
}
DALLE_FIGURES = {
    "2.8B": (2_928_262_656, 2_831_155_200),
    "5.6B": (5_685_004_800, 5_549_064_192),
    "12B": (12_292_840_960, 12_092_178_432),
}  # all; matrices of the blocks


@pytest.mark.parametrize("size", IGPT_FIGURES)
def test_igpt(size):
    assert parameters(PixelGPTConfig.size(size)) == IGPT_FIGURES[size]


def test_dvae():
    """The released encoder and decoder, and their multiply-accumulates at 256 pixels."""
    codec, spec = built(CodecConfig()), CodecConfig()
    assert sum(p.numel() for p in codec.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in codec.decoder.parameters()) == 43_829_766
    encoder = counted(codec.encoder, *sample(spec)) / 1e9
    assert encoder == pytest.approx(136.147, abs=5e-4) and macs(
        spec
    ) / 1e9 - encoder == pytest.approx(153.981, abs=5e-4)


@pytest.mark.parametrize("size", DALLE_FIGURES)
def test_dalle(size):
    dalle, spec = built(TextToCodesConfig.size(size)), TextToCodesConfig.size(size)
    assert (
        sum(p.numel() for p in dalle.parameters()),
        12 * spec.width**2 * spec.depth,
    ) == DALLE_FIGURES[size]
    matrices = sum(
        p.numel() for n, p in dalle.named_parameters() if n.startswith("blocks") and p.ndim == 2
    )
    assert matrices == DALLE_FIGURES[size][1]


def test_the_largest_is_built_in_little_memory():
    """ViT-e/14 with JFT-3B's classes, 3.9 billion parameters, on the meta device:
    under 2 GB, everything imported.
    """
    code = (
        "from vtx_scale.planner.count import built; from "
        "vtx_scale.launch.recipes.vit import vit_e14_jft3b;n = sum(p.numel() for p in "
        "built(vit_e14_jft3b().objective).parameters());"
        # its own peak: ru_maxrss starts at what the process that forked it held
        "peak = next(x for x in open('/proc/self/status') if x.startswith('VmHWM:'));"
        "print(n, peak.split()[1])"
    )
    count, kib = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(count) == 3_926_402_969
    assert int(kib) * 1024 < 2e9


@pytest.mark.parametrize("pool", ["tok", "map"])
def test_two_blocks_tell_of_all(pool):
    """macs() counts two blocks and multiplies; here every block is run."""
    spec = ViTConfig.size("Ti/16", pool=pool, class_token=pool == "tok", classes=10)
    assert counted(built(spec), *sample(spec)) == macs(spec)
    for text in (
        ClipConfig.size("ViT-B/32").text,
        SiglipConfig.size("B/16").text,
        PixelGPTConfig.size("S"),
    ):
        assert counted(built(text), *sample(text)) == macs(text)


def test_every_published_model_is_listed():
    rows = published()
    assert set(VITS.values()) == set(VIT_FIGURES) and set(CLIPS.values()) == set(CLIP_FIGURES)
    assert set(CLIP_FIGURES) == {*CLIP_SIZES, *CLIP_RESNET_SIZES} and set(RESNETS.values()) == set(
        RESNET_SIZES
    )
    assert set(SIGLIPS.values()) == set(SIGLIP_FIGURES) == set(SIGLIP_SIZES) and set(
        DEITS.values()
    ) == set(DEIT_FIGURES)
    assert set(HYBRIDS.values()) == set(HYBRID_FIGURES) and set(DINOS.values()) < set(DINO_FIGURES)
    assert set(IGPTS.values()) == set(IGPT_FIGURES) == set(IGPT_SIZES)
    assert set(DALLES.values()) == set(DALLE_FIGURES) == set(DALLE_SIZES)
    assert set(VIRTEXES.values()) == set(VIRTEX_SIZES)
    one_each = (
        VITS,
        CLIPS,
        RESNETS,
        SIGLIPS,
        DEITS,
        DEITS_PLAIN,
        DINOS,
        IGPTS,
        DALLES,
        VIRTEXES,
        ["dino_resnet50", "dvae_dalle"],
    )
    assert len(rows) == sum(map(len, one_each)) + 2 * len(HYBRIDS)
    other = {
        "clip_vit_l14_336": 336,
        "clip_rn50x4": 288,
        "clip_rn50x16": 384,
        "clip_rn50x64": 448,
        **{name: int(size.partition("@")[2] or 224) for name, size in SIGLIPS.items()},
        "deit_b16_distilled_384": 384,
        "deit_b16_384": 384,
        **{f"{name}_384": 384 for name in HYBRIDS},
        "igpt_xl": 64,
        "dvae_dalle": 256,
        **{name: int(size.partition("@")[2] or 32) for name, size in IGPTS.items() if size != "XL"},
        **{name: 256 for name in DALLES},
    }
    assert all(resolution == other.get(name, 224) for name, (_, resolution) in rows.items())
    assert parameters(rows["vit_b16"][0]) == VIT_FIGURES["B/16"][2]


def test_stored_counts_are_those_that_are_counted():
    assert stored_counts() == count_published()
