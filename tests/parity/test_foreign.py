"""Foreign weights that compute otherwise: every field of the other libraries' configs has a
decision, and what deviates is set in the recipe's stead, refused, or said.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.alike import close, randomise
from tests.runs import smoke, train
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import export
from vtx_scale.interop.weights import import_network
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.initial import load_source
from vtx_scale.launch.override import override
from vtx_scale.launch.resolve import resolve_foreign
from vtx_scale.objectives.pixels import normalised
from vtx_scale.specs.clip import ClipConfig, TextTowerConfig, image_tower
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.foreign.compare import applied
from vtx_scale.specs.igpt import IgptConfig, PixelGPTConfig
from vtx_scale.specs.resnet import ClipResNetConfig, ResNetConfig
from vtx_scale.specs.run import Init, Run
from vtx_scale.specs.siglip import SiglipConfig, SiglipTextConfig
from vtx_scale.specs.supervised import SupervisedConfig
from vtx_scale.specs.vit import ViTConfig
from vtx_scale.strategies.single import Single

IMAGE = image_tower("B/16", resolution=32, patch=8, width=64, depth=2, mlp=128, heads=2)
CLIP = ClipConfig(
    image=IMAGE, text=TextTowerConfig(width=32, depth=2, heads=2, context=16, vocab=40), embed=32
)
VIT = ViTConfig(resolution=32, patch=8, width=64, depth=2, mlp=128, heads=2, classes=12)
NET = SupervisedConfig(net=VIT, pixels="half")
FULL = SiglipConfig.size("B/16")
SIGLIP = SiglipConfig(
    image=replace(FULL.image, resolution=32, patch=8, width=64, depth=2, mlp=128, heads=2),
    text=SiglipTextConfig(width=64, depth=2, mlp=128, heads=2, context=16, vocab=40, embed=64),
)
PIXELS = torch.randint(
    0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TOKENS = torch.randint(1, 30, (3, 16), generator=torch.Generator().manual_seed(1))
TOKENS[:, 9], TOKENS[:, 10:] = 39, 0


def started(spec, folder, *, head="kept", resolve=True):
    """(objective from weights in a folder, or the refusal; what was said)."""
    told = []
    run = Run(objective=spec, init=Init(from_=str(folder), head=head))
    try:
        if resolve:
            run = resolve_foreign(run, told.append, None)
        objective = build_objective(run, torch.float32)
        strategy = Single(torch.device("cpu"))
        strategy.prepare(objective)
        load_source(str(folder), run, strategy, told.append)
    except UserError as e:
        return str(e), told
    return objective.eval(), told


def vit_config(**changes):
    body = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 12}
    body |= {"intermediate_size": 128, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    return {**body, **changes}


def clip_config(image=None, text=None, **changes):
    base = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**base, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
    words = {**base, "hidden_size": 32, "intermediate_size": 128, "vocab_size": 40}
    words |= {"max_position_embeddings": 16, "eos_token_id": 39, "pad_token_id": 0}
    config = {"vision_config": {**vision, **(image or {})}, "projection_dim": 32, **changes}
    return {**config, "text_config": {**words, "bos_token_id": 38, **(text or {})}}


def siglip_config(image=None, text=None, **changes):
    base = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**base, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
    words = {**base, "intermediate_size": 128, "vocab_size": 40, "max_position_embeddings": 16}
    config = {"vision_config": {**vision, **(image or {})}, **changes}
    return {**config, "text_config": {**words, **(text or {})}}


def hf(libraries, kind, config):
    """A model of transformers with random weights."""
    t = libraries.transformers
    classes = {
        "vit": (t.ViTForImageClassification, t.ViTConfig),
        "deit": (t.DeiTForImageClassificationWithTeacher, t.DeiTConfig),
        "clip": (t.CLIPModel, t.CLIPConfig),
        "siglip": (t.SiglipModel, t.SiglipConfig),
    }
    model, settings = classes[kind]
    return randomise(model(settings(**config))).eval()


def features_there(model, kind, pixels):
    """Features or logits of transformers' model, images' and texts'."""
    x = normalised(PIXELS, pixels, torch.float32)
    with torch.no_grad():
        if kind in ("vit", "deit"):
            return [model(x).logits]
        out = model(pixel_values=x, input_ids=TOKENS)
    return [out.image_embeds, out.text_embeds]


def features_here(objective):
    """The same of an objective of ours."""
    if "classify" in objective.probes:
        return [objective.probes["classify"](PIXELS)]
    return [objective.probes["encode_image"](PIXELS), objective.probes["encode_text"](TOKENS)]


def same(objective, there, case):
    for a, b in zip(features_here(objective), there, strict=True):
        close(b, a, case)


HF = {
    "vit": (NET, vit_config, {}),
    "deit": (
        replace(NET, net=replace(VIT, distilled=True)),
        vit_config,
        {},
    ),
    "clip": (CLIP, clip_config, {}),
    "siglip": (SIGLIP, siglip_config, {}),
}
SET = [
    ("vit", {"hidden_act": "quick_gelu"}),
    ("vit", {"hidden_act": "gelu_pytorch_tanh"}),
    ("vit", {"num_attention_heads": 8}),
    ("vit", {"layer_norm_eps": 1e-2}),
    ("deit", {"num_attention_heads": 4, "layer_norm_eps": 1e-12}),
    ("clip", {"image": {"hidden_act": "gelu"}}),
    ("clip", {"image": {"num_attention_heads": 8, "layer_norm_eps": 1e-2}}),
    ("clip", {"text": {"hidden_act": "gelu", "num_attention_heads": 8}}),
    ("clip", {"text": {"eos_token_id": 2}}),
    ("clip", {"text": {"attention_dropout": 0.5}, "logit_scale_init_value": 1.0}),
    ("siglip", {"image": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}}),
    ("siglip", {"text": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}}),
    ("siglip", {"text": {"num_attention_heads": 4, "eos_token_id": 5}}),
]
REFUSED = [
    ("vit", {"hidden_act": "relu"}, "hidden_act=relu"),
    ("vit", {"qkv_bias": False}, "qkv_bias=False"),
    ("vit", {"image_size": (16, 64)}, "image_size="),
    ("vit", {"patch_size": (4, 16)}, "patch_size="),
    ("vit", {"hidden_size": 32}, "in the recipe and"),
    (
        "vit",
        {"num_hidden_layers": 3},
        "the source has 3 blocks, the recipe 2: objective.net.depth=3",
    ),
    (
        "vit",
        {"num_hidden_layers": 1},
        "the source has 1 block, the recipe 2: objective.net.depth=1",
    ),
    (
        "clip",
        {"text": {"num_hidden_layers": 1}},
        "the source has 1 block, the recipe 2: objective.text.depth=1",
    ),
    ("vit", {"intermediate_size": 64}, "in the recipe and"),
    ("vit", {"num_labels": 5}, "init.head=new"),
    ("vit", {"num_channels": 1}, "in the recipe and"),
    ("clip", {"text": {"eos_token_id": 5}}, "eos_token_id=5"),
    ("clip", {"text": {"layer_norm_eps": 1e-3}}, "layer_norm_eps=0.001"),
    ("clip", {"image": {"hidden_act": "silu"}}, "hidden_act=silu"),
    ("clip", {"projection_dim": 16}, "in the recipe and"),
    ("clip", {"text": {"vocab_size": 44, "eos_token_id": 43}}, "in the recipe and"),
    ("clip", {"text": {"max_position_embeddings": 20}}, "in the recipe and"),
    ("siglip", {"text": {"projection_size": 32}}, "in the recipe and"),
    ("siglip", {"image": {"vision_use_head": False}}, "vision_use_head=False"),
]


def named(case):
    return str(case) if isinstance(case, dict) else None


@pytest.mark.parametrize(("kind", "changes"), SET, ids=named)
def test_what_a_config_decides_is_set(libraries, kind, changes, tmp_path):
    """Theirs and ours compute the same; without the recipe's word it is refused."""
    spec, config, _ = HF[kind]
    theirs = hf(libraries, kind, config(**changes))
    theirs.save_pretrained(tmp_path)
    objective, told = started(spec, tmp_path)
    assert not isinstance(objective, str), objective
    same(objective, features_there(theirs, kind, spec.pixels), str(changes))
    refusal, _ = started(spec, tmp_path, resolve=False)
    if told:
        assert isinstance(refusal, str) and ": add objective." in refusal
    else:
        assert not isinstance(refusal, str)


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED, ids=named)
def test_what_cannot_be_is_refused(libraries, kind, changes, words, tmp_path):
    spec, config, _ = HF[kind]
    hf(libraries, kind, config(**changes)).save_pretrained(tmp_path)
    refusal, _ = started(spec, tmp_path)
    assert isinstance(refusal, str) and words in refusal, refusal


def test_another_model_of_the_same_names_is_refused(libraries, tmp_path):
    hf(libraries, "vit", vit_config()).save_pretrained(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**body, "model_type": "vit_msn"}))
    assert "model_type=vit_msn" in started(NET, tmp_path)[0]
    (tmp_path / "config.json").write_text("{")
    assert "is no JSON object" in started(NET, tmp_path)[0]


# timm and open_clip: what a config says in place of the plain one


def timm_saved(libraries, folder, architecture, args, top=None):
    """A model of timm as it saves one itself: weights, and a config that names the arguments."""
    folder.mkdir(exist_ok=True)
    model = randomise(libraries.timm.create_model(architecture, **args)).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / FILE)
    body = {"architecture": architecture, "model_args": args, **(top or {})}
    (folder / "config.json").write_text(json.dumps(body))
    return model


FILE = "model.safetensors"
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
TIMM_VIT |= {"mlp_ratio": 2.0, "num_classes": 12}
BASE = "vit_base_patch16_224"
GAP = {"global_pool": "avg", "fc_norm": False}
TIMM_SET = [
    (BASE, {}, {}),
    (BASE, {"num_heads": 8}, {}),
    (BASE, {"act_layer": "quick_gelu"}, {}),
    (BASE, {"dynamic_img_size": True, "drop_path_rate": 0.3}, {}),
    (BASE, {**GAP, "pool_include_prefix": True}, {}),
    (BASE, {**GAP, "class_token": False}, {"class_token": False, "pool": "gap"}),
    ("vit_base_patch16_siglip_224", {}, {"class_token": False, "pool": "map"}),
    ("vit_base_patch32_clip_224", {}, {"pre_norm": True, "patch_bias": False}),
    ("vit_base_patch32_clip_quickgelu_224", {}, {"pre_norm": True, "patch_bias": False}),
    ("deit_base_distilled_patch16_224", {}, {"distilled": True}),
]
TIMM_REFUSED = [
    (BASE, {"global_pool": "avg"}, "fc_norm"),
    (BASE, GAP, "pool_include_prefix=False"),
    (BASE, {"reg_tokens": 4}, "reg_tokens=4"),
    (BASE, {"qk_norm": True}, "qk_norm=True"),
    (BASE, {"init_values": 1e-5}, "init_values=1e-05"),
    (BASE, {"no_embed_class": True}, "no_embed_class=True"),
    (BASE, {"qkv_bias": False}, "qkv_bias=False"),
    (BASE, {"proj_bias": False}, "proj_bias=False"),
    (BASE, {"scale_attn_norm": True}, "scale_attn_norm=True"),
    (BASE, {"scale_mlp_norm": True}, "scale_mlp_norm=True"),
    (BASE, {"final_norm": False}, "final_norm=False"),
    (BASE, {"pos_embed": "none"}, "pos_embed=none"),
    (BASE, {"act_layer": "silu"}, "act_layer=silu"),
    (BASE, {"norm_layer": "rmsnorm"}, "norm_layer=rmsnorm"),
    (BASE, {"img_size": (16, 64)}, "img_size="),
    (BASE, {"global_pool": "max", "fc_norm": False}, "global_pool=max"),
    (BASE, {"dynamic_img_pad": True}, "dynamic_img_pad=True"),
    (BASE, {"pre_norm": True}, "norm_pre"),
    ("vit_base_patch16_rpn_224", {}, "architecture=vit_base_patch16_rpn_224"),
    ("resnetblur18", None, "architecture=resnetblur18"),
    ("resnet18", {"norm_layer": "groupnorm"}, "norm_layer=groupnorm"),
    ("resnet18", {"act_layer": "silu"}, "act_layer=silu"),
    ("resnet18", {"avg_down": True}, "avg_down=True"),
    ("resnet18", {"stem_type": "deep"}, "stem_type=deep"),
    ("resnet18", {"replace_stem_pool": True}, "replace_stem_pool=True"),
    ("resnet18", {"output_stride": 16}, "output_stride=16"),
    ("resnet18", {"global_pool": "max"}, "global_pool=max"),
    ("resnet18", {"block_args": {"attn_layer": "eca"}}, "block_args="),
    ("resnet18", {"down_kernel_size": 3}, "down_kernel_size=3"),
]
RESNET = SupervisedConfig(
    net=ResNetConfig(blocks=(2, 2, 2, 2), kind="basic", classes=12, resolution=32),
    pixels="half",
)


@pytest.mark.parametrize(("architecture", "args", "changes"), TIMM_SET)
def test_timm_is_set(libraries, architecture, args, changes, tmp_path):
    args = {**TIMM_VIT, **args}
    if changes.get("pool") == "map":
        args["num_classes"] = 12
    theirs = timm_saved(libraries, tmp_path, architecture, args)
    spec = replace(NET, net=replace(VIT, **changes))
    objective, _ = started(spec, tmp_path)
    assert not isinstance(objective, str), objective
    with torch.no_grad():
        close(theirs(normalised(PIXELS, "half", torch.float32)), features_here(objective)[0])


@pytest.mark.parametrize(("architecture", "args", "words"), TIMM_REFUSED)
def test_timm_is_refused(libraries, architecture, args, words, tmp_path):
    resnet = "resnet" in architecture
    args = {"num_classes": 12, **(args or {})} if resnet else {**TIMM_VIT, **args}
    timm_saved(libraries, tmp_path, architecture, args)
    refusal, _ = started(RESNET if resnet else NET, tmp_path)
    assert isinstance(refusal, str) and words in refusal, refusal


def test_a_blur_pool_and_a_grid_of_equal_count_show_in_the_config_alone(libraries, tmp_path):
    """No tensor has another name or shape."""
    plain = timm_saved(libraries, tmp_path, "resnet18", {"num_classes": 12}).state_dict()
    blurred = timm_saved(libraries, tmp_path, "resnetblur18", {"num_classes": 12}).state_dict()
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in blurred.items()}
    assert "architecture=resnetblur18" in started(RESNET, tmp_path)[0]
    args = {"num_classes": 12, "aa_layer": "blurpool"}
    body = {"architecture": "resnet18", "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(body))
    assert "aa_layer=blurpool" in started(RESNET, tmp_path)[0]
    hf(libraries, "clip", clip_config()).save_pretrained(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    body["vision_config"]["image_size"] = [16, 64]
    (tmp_path / "config.json").write_text(json.dumps(body))
    assert "vision_config.image_size=[16, 64]" in started(CLIP, tmp_path)[0]


def test_timm_says_pooling_twice(libraries, tmp_path):
    """A config whose informative field contradicts what timm would build."""
    timm_saved(libraries, tmp_path, BASE, TIMM_VIT, {"global_pool": "avg"})
    assert "global_pool=avg, and by its architecture" in started(NET, tmp_path)[0]


def test_a_plain_resnet_is_taken_and_a_group_norm_shows_without_a_config(libraries, tmp_path):
    theirs = timm_saved(libraries, tmp_path / "plain", "resnet18", {"num_classes": 12})
    objective, _ = started(RESNET, tmp_path / "plain")
    assert not isinstance(objective, str), objective
    with torch.no_grad():
        close(theirs(normalised(PIXELS, "half", torch.float32)), features_here(objective)[0])
    args = {"num_classes": 12, "norm_layer": "groupnorm"}
    timm_saved(libraries, tmp_path / "group", "resnet18", args)
    (tmp_path / "group" / "config.json").unlink()
    refusal, _ = started(RESNET, tmp_path / "group")
    assert isinstance(refusal, str) and "no bn1.running_mean" in refusal


OPEN_VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
OPEN_VISION |= {"mlp_ratio": 2.0}
OPEN_TEXT = {"context_length": 16, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}


def open_clip_saved(libraries, folder, vision, text, top):
    """A model of open_clip in a folder of its hub's form."""
    config = {"embed_dim": 32, "quick_gelu": True, **top}
    config |= {"vision_cfg": {**OPEN_VISION, **vision}, "text_cfg": {**OPEN_TEXT, **text}}
    kinds = libraries.open_clip
    custom = config.pop("custom_text", False)
    model = randomise((kinds.CustomTextCLIP if custom else kinds.CLIP)(**config)).eval()
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    body = {"model_cfg": {**config, **({"custom_text": True} if custom else {})}}
    (folder / "open_clip_config.json").write_text(json.dumps(body))
    return model


OPEN_SET = [
    ({}, {}, {}),
    ({}, {}, {"quick_gelu": False}),
    ({"act_kwargs": {"approximate": "tanh"}}, {}, {"quick_gelu": False}),
    ({"head_width": 8, "norm_kwargs": {"eps": 1e-2}}, {}, {}),
    ({"patch_dropout": 0.5, "image_size": [32, 32]}, {}, {}),
    ({"final_ln_after_pool": True}, {"final_ln_after_pool": True}, {}),
    ({"pos_embed_type": "sin_cos_2d"}, {}, {}),
    ({}, {"heads": 8}, {}),
    ({}, {"pool_type": "eos", "eos_id": 39}, {}),
    ({}, {"act_kwargs": {"approximate": "tanh"}}, {"quick_gelu": False}),
    ({}, {}, {"custom_text": True, "init_logit_scale": 1.0}),
]
OPEN_REFUSED = [
    ({"pool_type": "avg"}, {}, "pool_type=avg"),
    ({"image_size": [16, 64]}, {}, "image_size="),
    ({"no_ln_pre": True}, {}, "image.norm_pre"),
    ({"ls_init_value": 1e-4}, {}, "ls_init_value"),
    ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, "attentional_pool=True"),
    ({"qk_norm": True}, {}, "qk_norm=True"),
    ({"scaled_cosine_attn": True}, {}, "scaled_cosine_attn=True"),
    ({"scale_heads": True}, {}, "scale_heads=True"),
    ({"scale_attn_inner": True}, {}, "scale_attn_inner=True"),
    ({"scale_attn": True}, {}, "scale_attn=True"),
    ({"scale_fc": True}, {}, "scale_fc=True"),
    ({"block_type": "custom"}, {}, "block_type=custom"),
    ({"norm_kwargs": {"elementwise_affine": False}}, {}, "norm_kwargs="),
    ({}, {"no_causal_mask": True}, "no_causal_mask=True"),
    ({}, {"pool_type": "last"}, "pool_type=last"),
    ({}, {"pool_type": "first"}, "pool_type=first"),
    ({}, {"pool_type": "eos", "eos_id": 7}, "pool_type=eos"),
    ({}, {"norm_kwargs": {"eps": 1e-3}}, "norm_kwargs="),
    ({}, {"ls_init_value": 1e-4}, "ls_init_value"),
    ({}, {"proj_type": "none", "width": 32}, "proj_type=none"),
    ({}, {"embed_cls": True}, "embed_cls=True"),
    ({}, {"proj_bias": True}, "text_projection"),
]


@pytest.mark.parametrize(("vision", "text", "top"), OPEN_SET)
def test_open_clip_is_set(libraries, vision, text, top, tmp_path):
    theirs = open_clip_saved(libraries, tmp_path, vision, text, top)
    objective, _ = started(CLIP, tmp_path)
    assert not isinstance(objective, str), objective
    x = normalised(PIXELS, "clip", torch.float32)
    with torch.no_grad():
        there = [theirs.encode_image(x, normalize=True), theirs.encode_text(TOKENS, normalize=True)]
    same(objective, there, "open_clip")


def siglip_saved(libraries, folder, **changes):
    """A SigLIP in open_clip's form of the published B/16, at our small size; its towers."""
    tower = libraries.timm.create_model(
        "vit_base_patch16_siglip_224", **{**TIMM_VIT, "num_classes": 0}
    )
    config = {"context_length": 16, "vocab_size": 40, "width": 64, "heads": 2, "layers": 2}
    words = libraries.open_clip.transformer.TextTransformer(
        **config,
        mlp_ratio=2.0,
        output_dim=64,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    )
    towers = randomise(tower).eval(), randomise(words).eval()
    state = {f"visual.trunk.{k}": v for k, v in tower.state_dict().items()}
    state |= {f"text.{k}": v for k, v in words.state_dict().items()}
    state |= {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(-9.0)}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    text = {**config, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    text |= {"norm_kwargs": {"eps": 1e-6}, "mlp_ratio": 2.0, **changes.pop("text", {})}
    image = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224"}
    image |= {"timm_pool": "map", "timm_proj": "none", **changes}
    body = {"embed_dim": 64, "vision_cfg": image, "text_cfg": text, "custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": body}))
    return towers


def test_open_clips_siglip_is_set(libraries, tmp_path):
    """Version 1 has exact GELUs there, where the recipe has tanh; its image tower has 12 heads."""
    towers = siglip_saved(libraries, tmp_path)
    body = json.loads((tmp_path / "open_clip_config.json").read_text())
    spec = replace(SIGLIP, image=replace(SIGLIP.image, heads=4))
    refusal, _ = started(SIGLIP, tmp_path, resolve=False)
    assert isinstance(refusal, str)
    text, told = applied(tmp_path, spec, True)
    assert (text.image.heads, text.image.activation, text.text.activation) == (12, "gelu", "gelu")
    assert len(told) == 3 and body["model_cfg"]["custom_text"]
    x = normalised(PIXELS, "half", torch.float32)
    with torch.no_grad():
        there = torch.nn.functional.normalize(towers[1](TOKENS), dim=-1)
        assert towers[0](x).shape == (3, 64)
    # the published tower has heads of 64 channels, this one is too narrow for twelve
    (tmp_path / "open_clip_config.json").unlink()
    exact = replace(
        SIGLIP,
        image=replace(SIGLIP.image, activation="gelu"),
        text=replace(SIGLIP.text, activation="gelu"),
    )
    objective, _ = started(exact, tmp_path)
    close(there, features_here(objective)[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timm_pool": "avg"}, "global_pool=avg"),
        ({"timm_proj": "linear"}, "timm_proj=linear"),
        ({"timm_model_name": "vit_base_patch16_rope_reg1_gap_256"}, "architecture=vit_base"),
        ({"text": {"no_causal_mask": False}}, "no_causal_mask=False"),
        ({"text": {"pool_type": "argmax"}}, "pool_type=argmax"),
        ({"text": {"hf_model_name": "bert"}}, "hf_model_name=bert"),
    ],
)
def test_open_clips_siglip_is_refused(libraries, changes, words, tmp_path):
    siglip_saved(libraries, tmp_path, **changes)
    refusal, _ = started(SIGLIP, tmp_path)
    assert isinstance(refusal, str) and words in refusal, refusal


@pytest.mark.parametrize(("vision", "text", "words"), OPEN_REFUSED)
def test_open_clip_is_refused(libraries, vision, text, words, tmp_path):
    top = {"custom_text": True} if text else {}
    open_clip_saved(libraries, tmp_path, vision, text, top)
    refusal, _ = started(CLIP, tmp_path)
    assert isinstance(refusal, str) and words in refusal, refusal


# iGPT, the codec, CLIP's ResNet

IGPT = IgptConfig(net=PixelGPTConfig(width=48, depth=2, heads=4, side=6, colours=512))
IGPT_THERE = {"vocab_size": 513, "n_positions": 36, "n_embd": 48, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 8}, ""),
        ({"attn_pdrop": 0.5, "reorder_and_upcast_attn": True}, ""),
        ({"activation_function": "gelu"}, "activation_function=gelu"),
        ({"layer_norm_epsilon": 1e-2}, "layer_norm_epsilon=0.01"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"n_inner": 96}, "in the recipe and"),
    ],
)
def test_igpt(libraries, changes, words, tmp_path):
    t = libraries.transformers
    theirs = t.ImageGPTForCausalImageModeling(t.ImageGPTConfig(**{**IGPT_THERE, **changes})).eval()
    randomise(theirs)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    theirs.save_pretrained(tmp_path)
    objective, _ = started(IGPT, tmp_path)
    if words:
        assert isinstance(objective, str) and words in objective, objective
        return
    assert not isinstance(objective, str), objective
    tokens = torch.randint(0, 512, (2, 36), generator=torch.Generator().manual_seed(2))
    start = torch.full((2, 1), 512)
    with torch.no_grad():
        there = theirs(input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits
        close(there, objective.net(tokens))


def test_a_codec_that_counts_its_paths_otherwise_is_refused(libraries, tmp_path):
    """The number of groups is in its gains alone: tensors have the names and shapes of four."""
    t, spec = libraries.transformers, CodecConfig(width=8, vocab=40, stem=12, resolution=32)
    settings = t.models.flava.configuration_flava.FlavaImageCodebookConfig
    for groups in (4, 8):
        config = settings(num_groups=groups, hidden_size=8, vocab_size=40)
        randomise(t.FlavaImageCodebook(config)).save_pretrained(tmp_path / str(groups))
    assert import_network(tmp_path / "4", spec)
    with pytest.raises(UserError, match="num_groups=8"):
        import_network(tmp_path / "8", spec)
    with pytest.raises(UserError, match="leave objective.net.gain out"):
        import_network(tmp_path / "4", replace(spec, gain=1.0))


def test_heads_of_a_resnets_pool(libraries, tmp_path):
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}
    theirs = open_clip_saved(libraries, tmp_path, {**vision, "head_width": 32}, {}, {})
    image = ClipResNetConfig(blocks=(1, 2, 1, 1), stem=8, heads=4, resolution=64, embed=32)
    objective, told = started(replace(CLIP, image=image), tmp_path)
    assert objective.spec.image.heads == 8 and "objective.image.heads=8" in told[0]
    pixels = PIXELS.repeat(1, 2, 2, 1)
    with torch.no_grad():
        there = theirs.encode_image(normalised(pixels, "clip", torch.float32), normalize=True)
    close(there, objective.probes["encode_image"](pixels))


@pytest.mark.slow
def test_a_run_keeps_what_the_config_said(tmp_path):
    """It is in run.json, and stays where the weights are gone; a refusal leaves no folder."""
    objective = build_objective(smoke(), torch.float32)
    strategy = Single(torch.device("cpu"))
    strategy.prepare(objective)
    randomise(objective)
    weights = tmp_path / "weights"
    export(objective, "transformers", weights)
    body = json.loads((weights / "config.json").read_text())
    body["vision_config"]["hidden_act"] = "gelu"
    (weights / "config.json").write_text(json.dumps(body))
    keys = (f"init.from={weights}", "steps=1")
    done = train(tmp_path / "run", *keys)
    line = "objective.image.activation=gelu in place of quick_gelu"
    assert line in done.stderr + done.stdout
    weights.rename(tmp_path / "gone")
    assert "finished already" in (d := train(tmp_path / "run", *keys)).stderr + d.stdout
    (tmp_path / "gone").rename(weights)
    body["vision_config"]["hidden_act"] = "silu"
    (weights / "config.json").write_text(json.dumps(body))
    assert "hidden_act=silu" in train(tmp_path / "refused", *keys, code=2).stderr
    assert not (tmp_path / "refused").exists()


def test_a_field_that_nobody_knows_is_said_or_refused(libraries, tmp_path):
    theirs = hf(libraries, "vit", vit_config())
    theirs.save_pretrained(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**body, "attention_sinks": 4}))
    _, told = started(NET, tmp_path)
    assert any("fields that are not known here: attention_sinks" in line for line in told)
    timm_saved(libraries, tmp_path, BASE, TIMM_VIT)
    args = {**TIMM_VIT, "attention_sinks": 4}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": BASE, "model_args": args}))
    assert "model_args.attention_sinks, which is not known" in started(NET, tmp_path)[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_named_and_left_out(libraries, prefix, tmp_path):
    theirs = hf(libraries, "clip", clip_config(image={"num_attention_heads": 8}))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / FILE)
    save_file({prefix + k: v for k, v in state.items()}, tmp_path / FILE)
    objective, told = started(CLIP, tmp_path)
    assert not isinstance(objective, str), objective
    same(objective, features_there(theirs, "clip", "clip"), prefix)
    assert any(f"its names begin with {prefix}, which is left out" in line for line in told)


def test_what_is_assumed_without_a_config_is_said(libraries, tmp_path):
    hf(libraries, "clip", clip_config()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    _, told = started(CLIP, tmp_path)
    assert len(told) == 1
    line = told[0]
    assert "no config.json of transformers lies beside it" in line
    for words in ("objective.image.heads=2", "objective.text.activation=quick_gelu", "pool=tok"):
        assert words in line
    # a config of another library is none
    (tmp_path / "config.json").write_text(json.dumps({"architecture": BASE}))
    assert started(CLIP, tmp_path)[1] == told


def test_a_headless_start_says_another_pooling(libraries, tmp_path):
    """With a classifier that starts anew, pooling is the recipe's own."""
    hf(libraries, "vit", vit_config()).save_pretrained(tmp_path)
    spec = replace(NET, net=replace(VIT, pool="gap"))
    objective, told = started(spec, tmp_path, head="new")
    assert not isinstance(objective, str)
    assert any("objective.net.pool is gap here, and model_type=vit there" in t for t in told)
    objective, told = started(spec, tmp_path)
    assert objective.net.spec.pool == "tok" and "objective.net.pool=tok" in told[0]


def test_pixels_follow_the_processor(libraries, tmp_path):
    hf(libraries, "vit", vit_config()).save_pretrained(tmp_path)
    body = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(body))
    objective, told = started(NET, tmp_path)
    assert objective.spec.pixels == "imagenet" and "in place of half" in told[0]
    hf(libraries, "clip", clip_config()).save_pretrained(tmp_path)
    objective, told = started(CLIP, tmp_path)
    assert told[-1].endswith("objective.pixels is clip here, and imagenet there")


def test_a_clip_becomes_a_classifier_by_what_each_refusal_says(tmp_path):
    """A CLIP with its texts is none; its tower in timm's form is, by the keys that are named."""
    objective = build_objective(Run(objective=CLIP), torch.float32)
    Single(torch.device("cpu")).prepare(objective)
    export(randomise(objective), "transformers", tmp_path / "clip")
    export(objective, "timm", tmp_path / "tower")
    refusal, _ = started(NET, tmp_path / "clip", head="new")
    assert "'vtx export RUN --to timm DIR'" in refusal
    refusal, _ = started(NET, tmp_path / "tower", head="new")
    assert refusal.endswith("add objective.net.pre_norm=true objective.net.patch_bias=false.")
    keys = refusal.rpartition(" add ")[2].rstrip(".").split()
    spec = override(Run(objective=NET), keys).objective
    there, _ = started(spec, tmp_path / "tower", head="new")
    assert torch.equal(there.net.norm_pre.weight, objective.image.norm_pre.weight)
