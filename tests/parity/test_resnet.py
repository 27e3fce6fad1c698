"""ResNets with the same weights and running statistics give the same here,
in timm and in open_clip, and come back.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.parity.alike import all_close, assert_same_bits, close, randomise
from tests.parity.test_clip import here, inputs, opened, there
from tests.vtx_scale.shares import alone
from vtx_scale.backbones.bit import RULES, BitStem, StandardConv
from vtx_scale.backbones.resnet import ResNet
from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.rules import initial_values, rule_of
from vtx_scale.blocks.slots import SlotContext, with_running_statistics
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.interop import (
    export,
    export_clip,
    export_resnet,
    import_clip,
    import_resnet,
    resize_positions,
)
from vtx_scale.interop.clip import OPEN_CLIP_RESNET, open_clip_config
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.interop.resnet import TABLE, with_counts
from vtx_scale.launch import override, recipes
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.clip import Clip
from vtx_scale.specs.clip import ClipConfig, TextTowerConfig
from vtx_scale.specs.resnet import CLIP_RESNET_SIZES, RESNET_SIZES, ClipResNetConfig, ResNetConfig
from vtx_scale.specs.run import Run
from vtx_scale.trainer.init import initialise

TIMM = {
    "18": "resnet18",
    "34": "resnet34",
    "50": "resnet50",
    "101": "resnet101",
    "152": "resnet152",
    "wide 50-2": "wide_resnet50_2",
    "wide 101-2": "wide_resnet101_2",
}
SMALL = ClipConfig(
    image=ClipResNetConfig(blocks=(1, 2, 1, 1), stem=8, heads=4, resolution=64, embed=40),
    text=TextTowerConfig(width=32, depth=2, heads=2, context=24, vocab=258),
    embed=40,
)


def images(side: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def all_rows(count: int) -> SlotContext:
    return SlotContext(
        torch.ones(count, dtype=torch.bool), torch.arange(count), step_key(0, 0), Ranks()
    )


@pytest.mark.parametrize("size", ["18", "50", "wide"])
def test_timm_opens_what_we_write_and_we_what_it_has(libraries, size, tmp_path):
    spec = {
        "18": ResNetConfig.size("18", classes=10),
        "50": ResNetConfig.size("50", classes=10),
        "wide": ResNetConfig(blocks=(1, 1, 1, 1), wide=2, classes=7, resolution=64),
    }[size]
    ours = randomise(ResNet(spec)).eval()
    export_resnet(spec, ours.state_dict(), "timm", tmp_path / "out")
    theirs = libraries.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = images(64)
    with torch.no_grad():
        close(ours(x), theirs(x))
        close(ours.pyramid(x)[-1], theirs.forward_features(x))
    assert_same_bits(import_resnet(tmp_path / "out"), ours.state_dict())
    randomise(theirs)  # other values, by their names and order
    again = ResNet(spec).eval()
    export_resnet(
        spec,
        from_foreign(
            TABLE, {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
        ),
        "torchvision",
        tmp_path / "file",
    )
    again.load_state_dict(import_resnet(tmp_path / "file" / "model.safetensors"))
    with torch.no_grad():
        close(again(x), theirs(x))


def test_pixels_are_said_to_be_the_librarys(libraries, tmp_path):
    """What timm's own loading code reads: ImageNet's mean and deviation, each where it belongs, the
    centre and the resize of the run.
    """
    run = recipes.find("resnet18_imagenet", smoke=True)
    net = replace(run.objective.net, blocks=(1, 1, 1, 1))
    ours = alone(replace(run, objective=replace(run.objective, net=net)))
    export(ours, "timm", tmp_path / "out", centre=0.9, bicubic=False)
    there = libraries.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    constants, read = libraries.timm.data.constants, there.pretrained_cfg
    assert tuple(read["mean"]) == constants.IMAGENET_DEFAULT_MEAN
    assert tuple(read["std"]) == constants.IMAGENET_DEFAULT_STD
    assert tuple(read["input_size"]) == tuple(net.input)
    assert read["crop_pct"] == 0.9 and read["interpolation"] == "bilinear"


@pytest.mark.parametrize("size", ["18", "50"])
def test_timm_trains_alike(libraries, size):
    """In training: the logits, every gradient, and what the running statistics become."""
    spec = ResNetConfig.size(size, classes=10)
    ours = randomise(ResNet(spec)).double()
    theirs = libraries.timm.create_model(TIMM[size], num_classes=10).double().train()
    theirs.load_state_dict(with_counts(to_foreign(TABLE, ours.state_dict())))
    x = images(64, 4).double()
    weigh = torch.randn(4, 10, generator=torch.Generator().manual_seed(2)).double()
    mine, other = ours(x, all_rows(4)), theirs(x)
    close(mine, other)
    (mine * weigh).sum().backward()
    (other * weigh).sum().backward()
    want = {k: p.grad for k, p in theirs.named_parameters()}
    got = to_foreign(TABLE, {k: p.grad for k, p in ours.named_parameters()})
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert (got[name] - grad).abs().max() <= 1e-8 * max(1, grad.abs().max()), name
    for m in with_running_statistics(ours):
        m.update_statistics()
    running = dict(theirs.named_buffers())
    for name, value in to_foreign(TABLE, dict(ours.named_buffers())).items():
        assert (value - running[name]).abs().max() <= 1e-9 * max(1, running[name].abs().max()), name


@pytest.mark.parametrize("size", RESNET_SIZES)
def test_published_resnets_have_the_same_tensors(libraries, size):
    with torch.device("meta"):
        ours = ResNet(ResNetConfig.size(size, classes=1000)).state_dict()
        theirs = libraries.timm.create_model(TIMM[size]).state_dict()
    assert {k: v.shape for k, v in with_counts(to_foreign(TABLE, ours)).items()} == {
        k: v.shape for k, v in theirs.items()
    }


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_initial_values_are_timms(libraries, kind):
    """The same kind and spread of every tensor, the last gain of each block 0."""
    spec = ResNetConfig(blocks=(1, 1, 1, 1), kind=kind, classes=10)
    ours = ResNet(spec)
    initialise(ours, initial_values(ours), 0)
    torch.manual_seed(0)
    theirs = libraries.timm.create_model(
        "resnet18" if kind == "basic" else "resnet50", layers=[1, 1, 1, 1], num_classes=10
    )
    for name, want in theirs.state_dict().items():
        if "num_batches" in name:
            continue
        got = to_foreign(TABLE, ours.state_dict())[name]
        if want.ndim == 1 and "fc" not in name:
            assert torch.equal(got, want), name
        else:
            assert abs(got.std() / want.std() - 1) < (0.1 if want.numel() > 1000 else 0.8), name
            assert got.abs().max() < want.abs().max() * 1.6, name


def clip_model(spec: ClipConfig) -> Clip:
    return randomise(Clip(spec, Context())).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_open_clip_out_and_in(libraries, loss, tmp_path):
    spec = replace(SMALL, loss=loss)
    ours = clip_model(spec)
    export_clip(spec, ours.state_dict(), "open_clip", tmp_path / "out")
    theirs = opened(libraries, "open_clip", tmp_path / "out")
    all_close(here(ours), there(theirs, spec))
    assert_same_bits(import_clip(tmp_path / "out"), ours.state_dict())
    export_clip(spec, ours.state_dict(), "safetensors", tmp_path / "plain")
    assert_same_bits(import_clip(tmp_path / "plain"), ours.state_dict())


def test_open_clip_in(libraries, tmp_path):
    """Their model with values of its own; and in training the two features are alike."""
    from safetensors.torch import save_file

    theirs = libraries.open_clip.CLIP(
        **open_clip_config(SMALL)["open_clip_config.json"]["model_cfg"]
    )
    randomise(theirs).eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = Clip(SMALL, Context()).eval()
    ours.load_state_dict(import_clip(tmp_path / "theirs.safetensors"))
    all_close(here(ours), there(theirs, SMALL))
    pixels, normal, _ = inputs(SMALL)
    trained = theirs.train().encode_image(normal, normalize=True)
    close(ours.encode_image(pixels, all_rows(len(pixels))), trained)
    for m in with_running_statistics(ours):
        m.update_statistics()
    close(here(ours)[0], theirs.eval().encode_image(normal, normalize=True))


@pytest.mark.parametrize("size", CLIP_RESNET_SIZES)
def test_published_clips_have_the_same_tensors(libraries, size):
    """Names and shapes, and the configuration that open_clip ships."""
    spec = ClipConfig.size(size)
    config = open_clip_config(spec)["open_clip_config.json"]["model_cfg"]
    shipped = libraries.open_clip.get_model_config(f"{size}-quickgelu")
    for part in ("vision_cfg", "text_cfg"):
        assert shipped[part].items() <= config[part].items()
    assert (
        config["vision_cfg"]["head_width"] == 64
        and config["quick_gelu"]
        and config["embed_dim"] == shipped["embed_dim"]
    )
    with torch.device("meta"):
        ours = Clip(spec, Context()).state_dict()
        theirs = libraries.open_clip.CLIP(**config).state_dict()
    have = with_counts(to_foreign(OPEN_CLIP_RESNET, ours))
    assert {k: v.shape for k, v in have.items()} == {k: v.shape for k, v in theirs.items()}


def test_initial_values_are_open_clips(libraries):
    torch.manual_seed(0)
    theirs = libraries.open_clip.CLIP(
        **open_clip_config(SMALL)["open_clip_config.json"]["model_cfg"]
    ).visual
    ours = Clip(SMALL, Context())
    initialise(ours, initial_values(ours), 0)
    have = to_foreign(OPEN_CLIP_RESNET, ours.state_dict())
    for name, want in theirs.state_dict().items():
        if "num_batches" in name:
            continue
        got = have[f"visual.{name}"]
        if want.std() == 0:
            assert torch.equal(got, want), name
        else:
            assert abs(got.std() / want.std() - 1) < (0.1 if want.numel() > 1000 else 0.8), name
    assert initial_values(ours)("image.norm3.weight", (8,)) == ("ones", 0.0)


def test_a_resnet_at_another_resolution(libraries, tmp_path):
    ours = clip_model(SMALL)
    export_clip(SMALL, ours.state_dict(), "open_clip", tmp_path / "out")
    spec = replace(SMALL, image=replace(SMALL.image, resolution=96))
    big = Clip(spec, Context()).eval()
    big.load_state_dict(resize_positions(import_clip(tmp_path / "out"), spec))
    assert torch.equal(big.image.pool.positions[:, 0], ours.image.pool.positions[:, 0])
    assert big.image.pool.positions.shape == (1, 10, 256)


def test_refusals(tmp_path):
    state = clip_model(SMALL).state_dict()
    for to in ("transformers", "timm"):
        with pytest.raises(UserError, match="open_clip or safetensors"):
            export_clip(SMALL, state, to, tmp_path / "out")
    with pytest.raises(UserError, match="timm, torchvision or safetensors"):
        export_resnet(ResNetConfig(), {}, "open_clip", tmp_path / "out")
    with pytest.raises(UserError, match="four stages"):
        export_resnet(ResNetConfig(blocks=(1, 1, 1)), {}, "timm", tmp_path / "out")
    with pytest.raises(UserError, match=r"objective.image.embed=40: it and embed=41"):
        override.check(Run(objective=replace(SMALL, embed=41)))


BIT_UNIT = [
    *[
        line
        for k in "123"
        for line in (
            Line(f"conv{k}.weight", f"conv{k}.weight"),
            Line(f"norm{k}.{{p}}", f"norm{k}.{{p}}"),
        )
    ],
    Line("shortcut.weight", "downsample.conv.weight"),
    Line("norm_shortcut.{p}", "downsample.norm.{p}"),
]
BIT = [
    line
    for k in range(4)
    for line in under(f"stages.{k}.{{n}}.", f"stages.{k}.blocks.{{n}}.", BIT_UNIT)
]


@pytest.mark.parametrize(
    ("name", "blocks", "side"),
    [
        ("vit_tiny_r_s16_p8_224", (), 64),
        ("vit_small_r26_s32_224", (2, 2, 2, 2), 64),
        ("vit_base_r50_s16_224", (3, 4, 9), 96),
    ],
)
def test_stem_of_the_hybrids(libraries, name, blocks, side):
    """timm's standardisation adds its eps elsewhere: where deviations are large,
    without either they are one.
    """
    with torch.device("meta"):
        theirs = libraries.timm.create_model(name).patch_embed.backbone
    theirs = randomise(theirs.to_empty(device="cpu")).double().eval()
    with torch.no_grad():
        for w in theirs.parameters():
            w.mul_(100 if w.ndim == 4 else 1)
    head = "stem." if blocks else ""
    table = [Line("conv.weight", f"{head}conv.weight"), Line("norm.{p}", f"{head}norm.{{p}}"), *BIT]
    ours = BitStem(blocks, weight_eps=0.0, eps=1e-5).double().eval()
    ours.load_state_dict(from_foreign(table, theirs.state_dict()))
    x = images(side).double()
    with torch.no_grad():
        mine, other = ours(x), theirs(x)
        other = other[-1] if isinstance(other, list | tuple) else other
        close(mine, other)


def test_filters_are_standardised_as_published():
    conv = StandardConv(4, 8, 3, 1, 1e-5)
    # where the eps tells
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-4
    conv.weight.data.copy_(weight)
    flat = weight.flatten(1)
    standardised = (flat - flat.mean(1, keepdim=True)) / (
        flat.std(1, correction=0, keepdim=True) + 1e-5
    )
    x = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1))
    close(conv(x), nn.functional.conv2d(x, standardised.view_as(weight), padding=1))


def test_initial_values_of_the_stem():
    stem = BitStem((1, 1))
    initialise(stem, lambda name, shape: rule_of(RULES, name).initial(tuple(shape)), 0)
    state = stem.state_dict()
    assert (
        not state["stages.1.0.norm3.weight"].any()
        and state["stages.1.0.norm_shortcut.weight"].eq(1).all()
    )
    weight = state["stages.1.0.conv2.weight"]
    assert (
        abs(weight.std() * (128 * 9) ** 0.5 - 1) < 0.02
        and weight.abs().max() <= 2 * (128 * 9) ** -0.5 / 0.8796
    )
