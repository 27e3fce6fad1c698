"""The same ViT here, in transformers and in timm: weights go out and come in,
and give the same numbers.
"""

import json
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.parity.alike import assert_same_bits, close, randomise
from vtx_scale.backbones.vit import ViT
from vtx_scale.blocks.rules import under
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import export, export_vit, import_vit, import_weights, resize_positions
from vtx_scale.interop.rename import to_foreign
from vtx_scale.interop.vit import (
    TIMM,
    TRANSFORMERS_5,
    TRANSFORMERS_HEAD,
    TRANSFORMERS_HEADS,
    transformers_config,
)
from vtx_scale.launch.initial import load_source
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.pixels import STATISTICS
from vtx_scale.specs.network import Network
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Run
from vtx_scale.specs.vit import ViTConfig
from vtx_scale.strategies.single import Single

SMALL = ViTConfig.size("s/16", resolution=32, width=48, depth=3, heads=3, mlp=144, patch=8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MAP = {"pool": "map", "class_token": False}
BOTH = {  # transformers and timm
    "features": {},
    "classes": {"classes": 7},
    "gelu_tanh": {"activation": "gelu_tanh", "classes": 7},
    "quick_gelu": {"activation": "quick_gelu"},
    "distilled": {"distilled": True, "classes": 7},
    "eps": {"eps": 1e-5, "classes": 7},
    "map": MAP,
    "map, tanh": {**MAP, "activation": "gelu_tanh"},
    "sincos2d": {"position_kind": "sincos2d", "classes": 7},
    "odd mlp": {"width": 44, "heads": 2, "mlp": 192},
}
TRANSFORMERS_ALONE = {"any eps": {"eps": 3e-3}, "pooler": {"representation": True}}
TIMM_ALONE = {
    "gap": {"pool": "gap", "class_token": False, "classes": 7},
    "gap with token": {"pool": "gap"},
    "map with token": {"pool": "map", "classes": 7},
    "map, classes": {**MAP, "classes": 7},
    "tokens": {"pool": "none"},
    "pre-norm": {"pre_norm": True, "patch_bias": False, "eps": 1e-5},
    "sincos2d, gap": {"position_kind": "sincos2d", "pool": "gap", "class_token": False},
}
CASES = [
    (to, name, changes)
    for to, cases in (("transformers", BOTH | TRANSFORMERS_ALONE), ("timm", BOTH | TIMM_ALONE))
    for name, changes in cases.items()
]


def model(spec: ViTConfig) -> ViT:
    vit = ViT(spec).eval()
    randomise(vit)
    return vit


def pictures(spec: ViTConfig) -> Tensor:
    return torch.randn(
        3, 3, spec.resolution, spec.resolution, generator=torch.Generator().manual_seed(1)
    )


def opened(libraries: ModuleType, to: str, folder, spec: ViTConfig) -> nn.Module:
    """An exported folder, by the other library's own loading code."""
    if to == "timm":
        return libraries.timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    hf = libraries.transformers
    plain = spec.pool != "map" and not spec.classes
    kind = (
        hf.SiglipVisionModel
        if spec.pool == "map"
        else hf.DeiTForImageClassificationWithTeacher
        if spec.distilled
        else hf.ViTForImageClassification
        if spec.classes
        else hf.ViTModel
    )
    extra = {"add_pooling_layer": spec.representation} if plain else {}
    theirs, report = kind.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", **extra
    )
    assert not any(report.values()), report
    assert type(theirs).__name__ in (folder / "config.json").read_text()
    return theirs.eval()


@torch.no_grad()
def output(theirs: nn.Module, spec: ViTConfig, pixels: Tensor) -> Tensor:
    """What ours gives, from a model of transformers or timm."""
    out = theirs(pixels)
    if isinstance(out, Tensor):
        return out
    if spec.classes:
        return out.logits
    return (
        out.pooler_output
        if spec.pool == "map" or spec.representation
        else out.last_hidden_state[:, 0]
    )


@pytest.mark.parametrize(
    ("to", "changes"),
    [(to, c) for to, _, c in CASES],
    ids=[f"{to}, {name}" for to, name, _ in CASES],
)
def test_out_and_in(libraries, to, changes, tmp_path):
    spec = replace(SMALL, **changes)
    ours = model(spec)
    files = export_vit(spec, ours.state_dict(), to, tmp_path / "out", MEAN, STD)
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    theirs, pixels = opened(libraries, to, tmp_path / "out", spec), pictures(spec)
    with torch.no_grad():
        close(ours(pixels), output(theirs, spec, pixels))
    back = import_vit(tmp_path / "out")
    if spec.position_kind == "sincos2d":
        assert back.pop("positions").shape == (1, 16 + int(spec.class_token), 48)
    assert_same_bits(back, ours.state_dict())


@pytest.mark.parametrize("depth", [1, 2])
def test_attention_of_the_last_block(libraries, tmp_path, depth):
    spec = replace(SMALL, depth=depth)
    ours, pixels = model(spec), pictures(spec)
    export_vit(spec, ours.state_dict(), "transformers", tmp_path / "out", MEAN, STD)
    theirs = opened(libraries, "transformers", tmp_path / "out", spec)
    with torch.no_grad():
        known = theirs(pixels, output_attentions=True).attentions[-1]
        close(ours.attention(pixels), known[:, :, 0, 1:].unflatten(2, (4, 4)))


def test_every_layer_and_its_attention(libraries, tmp_path):
    """What each block gives, and how its class token looks at the patches."""
    ours, pixels = model(SMALL), pictures(SMALL)
    export_vit(SMALL, ours.state_dict(), "transformers", tmp_path / "out", MEAN, STD)
    theirs = opened(libraries, "transformers", tmp_path / "out", SMALL)
    with torch.no_grad():
        out = theirs(pixels, output_hidden_states=True, output_attentions=True)
        first, second, third = ours.tokens(pixels, keep=3)
        for a, b, name in (
            (first, out.hidden_states[1], "first"),
            (second, out.hidden_states[2], "second"),
            (ours.norm(third), out.last_hidden_state, "last"),
        ):
            close(a, b, name)
        close(
            ours.attention(pixels),
            out.attentions[-1][:, :, 0, 1:].unflatten(2, (4, 4)),
            "attention",
        )


@pytest.mark.parametrize("distilled", [False, True], ids=["ViT", "DeiT"])
def test_two_heads_of_a_distilled_one(libraries, distilled, tmp_path):
    """Both logits, not their mean alone: which token goes to which head."""
    spec = replace(SMALL, classes=7, distilled=True)
    ours, pixels = model(spec), pictures(spec)
    to = "timm" if distilled else "transformers"
    export_vit(spec, ours.state_dict(), to, tmp_path / "out", MEAN, STD)
    theirs = opened(libraries, to, tmp_path / "out", spec)
    with torch.no_grad():
        y = ours.pooled(ours.tokens(pixels)[-1])
        if to == "timm":
            theirs.set_distilled_training(True)
            first, second = theirs.train()(pixels)
        else:
            out = theirs(pixels)
            first, second = out.cls_logits, out.distillation_logits
        close(ours.head(y[0]), first, "class token")
        close(ours.dist_head(y[1]), second, "distillation token")


@pytest.mark.parametrize(
    "changes",
    [{}, {"classes": 7}, {"distilled": True, "classes": 7}, MAP, {"representation": True}],
    ids=["features", "classes", "distilled", "map", "pooler"],
)
@pytest.mark.parametrize("way", ["saved", "in memory"])
def test_in_from_transformers(libraries, changes, way, tmp_path):
    """Their model, written by them, or its tensors by the names that they have in memory."""
    hf, spec = libraries.transformers, replace(SMALL, **changes)
    config = transformers_config(spec, torch.float32)
    kind = getattr(hf, config["architectures"][0])
    extra = {} if spec.classes or spec.pool == "map" else {"add_pooling_layer": spec.representation}
    theirs = kind(kind.config_class(**config), **extra).eval()
    randomise(theirs)
    if way == "saved":
        theirs.save_pretrained(tmp_path)
    else:
        save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours, pixels = ViT(spec).eval(), pictures(spec)
    ours.load_state_dict(import_vit(tmp_path))
    with torch.no_grad():
        close(ours(pixels), output(theirs, spec, pixels))


@pytest.mark.parametrize(
    "changes",
    [{"classes": 7}, {"distilled": True, "classes": 7}, {**MAP, "classes": 7}],
    ids=["classes", "distilled", "map"],
)
def test_in_from_timm(libraries, changes, tmp_path):
    """Their model, their names in a file of tensors."""
    spec = replace(SMALL, **changes)
    args = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "mlp_ratio": 3.0,
        "num_classes": 7,
        **({"class_token": False, "global_pool": "map"} if spec.pool == "map" else {}),
    }
    kind = "deit_base_distilled_patch16_224" if spec.distilled else "vit_base_patch16_224"
    theirs = libraries.timm.create_model(kind, **args).eval()
    randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours, pixels = ViT(spec).eval(), pictures(spec)
    ours.load_state_dict(import_vit(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        close(ours(pixels), theirs(pixels))


@pytest.mark.parametrize(
    ("size", "theirs"),
    [("S/16", "vit_small_patch16_224.dino"), ("B/8", "vit_base_patch8_224.dino")],
)
def test_dino_has_the_same_tensors(libraries, size, theirs):
    """Names and shapes of the published backbones, on the meta device."""
    with torch.device("meta"):
        want = libraries.timm.create_model(theirs, pretrained=False).state_dict()
        have = to_foreign(TIMM, ViT(ViTConfig.size(size)).state_dict())
    assert {k: v.shape for k, v in have.items()} == {k: v.shape for k, v in want.items()}


@pytest.mark.parametrize("size", ["Ti/16", "B/16", "So400m/14", "H/14", "g/14"])
def test_published_sizes_have_the_same_tensors(libraries, size):
    """Names and shapes in transformers, with classifiers, on the meta device."""
    hf = libraries.transformers
    for distilled in (False, True):
        spec = ViTConfig.size(size, classes=1000, distilled=distilled)
        config = transformers_config(spec, torch.float32)
        kind = getattr(hf, config["architectures"][0])
        with torch.device("meta"):
            want = kind(kind.config_class(**config)).state_dict()
            have = to_foreign(
                [*TRANSFORMERS_5, *(TRANSFORMERS_HEADS if distilled else TRANSFORMERS_HEAD)],
                ViT(spec).state_dict(),
            )
        name = "deit." if distilled else "vit."
        assert {k: v.shape for k, v in have.items()} == {
            k.removeprefix(name): v.shape for k, v in want.items()
        }


@dataclass(frozen=True, kw_only=True)
class Net(ObjectiveSpec):
    build: ClassVar[str] = "tests.parity.test_vit:Trained"
    places: ClassVar[tuple[str, ...]] = ("student.net.", "teacher.net.")
    pixels = "clip"

    net: Network

    def exported(self) -> tuple[str, Network]:
        return "teacher.net.", self.net


@dataclass(frozen=True, kw_only=True)
class Nameless(Network):
    """A network that no other library has."""


class Trained(Objective):
    """As a teacher and its student: a network at two places."""

    def __init__(self, spec: Net, context: Context) -> None:
        super().__init__(spec, context)
        self.student, self.teacher = (
            nn.ModuleDict({"net": ViT(spec.net)}),
            nn.ModuleDict({"net": ViT(spec.net)}),
        )
        rules = self.student["net"].parameter_rules
        self.parameter_rules = (*under("student.net.", rules), *under("teacher.net.", rules))


def test_of_any_objective(libraries, tmp_path):
    """What an objective says leaves, and comes back to every place that has this network."""
    ours, pixels = Trained(Net(net=SMALL), Context()), pictures(SMALL)
    randomise(ours)
    for to in ("transformers", "timm", "safetensors"):
        export(ours, to, tmp_path / to, centre=0.875)
        back = import_weights(tmp_path / to, ours.spec)
        want = {
            f"{place}.net.{k}": v
            for place in ("student", "teacher")
            for k, v in ours.teacher["net"].state_dict().items()
        }
        assert_same_bits(back, want)
    tower = libraries.timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert tower.pretrained_cfg["crop_pct"] == 0.875 and tower.pretrained_cfg["mean"] == list(
        STATISTICS["clip"][0]
    )
    assert tower.pretrained_cfg["std"] == list(STATISTICS["clip"][1])
    with torch.no_grad():
        close(ours.teacher["net"](pixels), tower(pixels))
    ours.spec = Net(net=Nameless())
    with pytest.raises(UserError, match="Nameless has no export to timm"):
        export(ours, "timm", tmp_path / "no")
    plain = Objective(ObjectiveSpec(), Context())
    with pytest.raises(UserError, match="ObjectiveSpec cannot be exported"):
        export(plain, "timm", tmp_path / "no")


@pytest.mark.parametrize(
    "changes",
    [{}, {"distilled": True}, {"pool": "gap", "class_token": False}],
    ids=["class token", "distilled", "no token"],
)
def test_another_resolution(libraries, changes, tmp_path):
    """`init.from` at 48 and at 16 pixels takes weights of 32:
    the positions are those that timm makes.
    """
    spec = replace(SMALL, **changes)
    ours = model(spec)
    export_vit(spec, ours.state_dict(), "timm", tmp_path / "out", MEAN, STD)
    for side in (48, 16):
        other = replace(spec, resolution=side)
        with torch.device("meta"):
            big = Trained(Net(net=other), Context())
        strategy = Single(torch.device("cpu"))
        strategy.prepare(big)
        load_source(str(tmp_path / "out"), Run(objective=Net(net=other)), strategy)
        extra = ours.extra
        for net in (big.student["net"], big.teacher["net"]):
            assert torch.equal(net.positions[:, :extra], ours.positions[:, :extra])
            want = libraries.timm.layers.resample_abs_pos_embed(
                ours.positions.detach(), (side // 8, side // 8), num_prefix_tokens=extra
            )
            close(net.positions.detach(), want)
    whole = {f"student.net.{k}": v for k, v in ours.state_dict().items()}
    assert resize_positions(whole, Net(net=spec)) is whole


def test_a_hybrid_is_resized_too():
    spec = ViTConfig.size("R50+B/16", resolution=64, width=16, depth=1, heads=1, mlp=16)
    state = {"net.positions": torch.randn(1, 5, 16), "text.positions": torch.randn(7, 16)}
    resized = resize_positions(state, Net(net=spec))
    assert (
        resized["net.positions"].shape == (1, 17, 16)
        and resized["text.positions"] is state["text.positions"]
    )


def test_pixels_are_prepared_alike(libraries, tmp_path):
    """The image processor that transformers makes from the folder:
    resize, the centre, this mean and deviation.
    """
    export_vit(
        SMALL, model(SMALL).state_dict(), "transformers", tmp_path / "out", MEAN, STD, centre=0.8
    )
    processor = libraries.transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = torch.randint(
        0, 256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    theirs = processor([Image.fromarray(pixels.numpy())], return_tensors="pt")["pixel_values"][0]
    want = ((pixels[4:36, 4:36] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
    assert (theirs - want).abs().max() < 1e-5


def test_without_a_head(libraries, tmp_path):
    """A JFT network: its tanh layer and classifier stay here,
    the rest gives the same features there.
    """
    spec = replace(SMALL, classes=7, representation=True)
    ours, pixels = Trained(Net(net=spec), Context()), pictures(spec)
    randomise(ours)
    for to in ("timm", "transformers"):
        with pytest.raises(UserError, match="--without-head"):
            export(ours, to, tmp_path / to)
        export(ours, to, tmp_path / to, head=False)
    bare = model(replace(spec, classes=0, representation=False))
    bare.load_state_dict(import_vit(tmp_path / "timm"))
    theirs = libraries.timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    kept = {
        k: v
        for k, v in ours.teacher["net"].state_dict().items()
        if not k.startswith(("head.", "rep."))
    }
    assert_same_bits(bare.state_dict(), kept)
    with torch.no_grad():
        close(bare(pixels), theirs(pixels))


def test_the_resize_is_the_runs(tmp_path):
    """A run that reads its pictures bilinearly says so where it goes."""
    for bicubic, word, number in ((True, "bicubic", 3), (False, "bilinear", 2)):
        for to in ("timm", "transformers"):
            export_vit(
                SMALL,
                model(SMALL).state_dict(),
                to,
                tmp_path / f"{to}-{word}",
                MEAN,
                STD,
                bicubic=bicubic,
            )
        config = json.loads((tmp_path / f"timm-{word}" / "config.json").read_text())
        assert config["pretrained_cfg"]["interpolation"] == word
        assert (
            json.loads(
                (tmp_path / f"transformers-{word}" / "preprocessor_config.json").read_text()
            )["resample"]
            == number
        )


def test_refusals(tmp_path):
    """One sentence each, and nothing left behind."""
    for to, changes, word in [
        ("open_clip", {}, "transformers, timm or safetensors"),
        ("transformers", {"pool": "gap"}, "averages"),
        ("transformers", {"pre_norm": True, "patch_bias": False}, "norm before"),
        ("transformers", {"representation": True, "classes": 7}, "tanh"),
        ("transformers", {**MAP, "classes": 7}, "attention pooling"),
        ("transformers", {"stem": (1,)}, "stem"),
        ("transformers", {"pool": "none", "classes": 7}, "every token"),
        ("timm", {"stem": (1,)}, "stem"),
        ("timm", {"representation": True}, "tanh"),
        ("timm", {"eps": 1e-12}, "eps"),
        ("timm", {"distilled": True, "eps": 1e-5}, "eps"),
        ("timm", {"patch_bias": False}, "patch bias"),
        ("timm", {"distilled": True, "pool": "gap"}, "distilled"),
    ]:
        with pytest.raises(UserError, match=word):
            export_vit(replace(SMALL, **changes), {}, to, tmp_path / "out", MEAN, STD)
    assert not list(tmp_path.iterdir())
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no ViT that is known here.*conv1\.weight"):
        import_vit(tmp_path / "other.safetensors")


def test_our_own_format(tmp_path):
    spec = replace(SMALL, classes=3, representation=True)
    state = model(spec).state_dict()
    weights, _ = export_vit(spec, state, "safetensors", tmp_path / "out", MEAN, STD)
    assert_same_bits(import_vit(tmp_path / "out"), state)
    assert_same_bits(import_vit(weights), state)
