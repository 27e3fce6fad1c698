"""timm: the arguments of its VisionTransformer and ResNet, and the facts they decide."""

from collections.abc import Mapping
from typing import Any

from vtx_scale.specs.foreign.field import (
    ACTIVATIONS,
    Field,
    Table,
    faults,
    harmless,
    only,
    sets,
    shown,
    square,
    unknown,
)
from vtx_scale.specs.foreign.timm_names import RESNETS, vit_arguments
from vtx_scale.specs.foreign.transformers import Facts

TRAINING = harmless("of training alone")
ABOUT = harmless("about the file, not the network")
CODE = "and code of one's own cannot be known"
VIT: Table = {
    "img_size": square(224),
    "patch_size": square(16),
    "in_chans": shown(),
    "num_classes": shown(),
    "global_pool": sets("token"),
    "embed_dim": shown(),
    "depth": shown(),
    "num_heads": sets(12),
    "mlp_ratio": shown(),
    "qkv_bias": only(True, why="and attention here has biases"),
    "qk_norm": only(False, why="and queries and keys have no norm here"),
    "scale_attn_norm": only(False, why="and attention has no norm of its own here"),
    "scale_mlp_norm": only(False, why="and the MLP has no norm of its own here"),
    "proj_bias": only(True, why="and attention here has biases"),
    "init_values": only(None, why="and blocks here have no layer scale"),
    "class_token": shown(default=True),
    "pos_embed": only("learn", why="and positions come from the weights here"),
    "no_embed_class": only(False, why="and the class token has a position here"),
    "reg_tokens": only(0, why="and here are no register tokens"),
    "pre_norm": shown("there is a norm more, and no bias of the patches", False),
    "final_norm": only(True, why="and the tokens have a last norm here"),
    "fc_norm": only(None, False, why="and the norm stands before the pooling here"),
    "pool_include_prefix": sets(False),
    "dynamic_img_size": harmless("resizes positions of pictures of another size"),
    "dynamic_img_pad": only(False, why="and pictures here are not padded"),
    "drop_rate": TRAINING,
    "pos_drop_rate": TRAINING,
    "patch_drop_rate": TRAINING,
    "proj_drop_rate": TRAINING,
    "attn_drop_rate": TRAINING,
    "drop_path_rate": TRAINING,
    "weight_init": TRAINING,
    "fix_init": TRAINING,
    "embed_layer": only(None, why=CODE),
    "embed_norm_layer": only(None, why="and patches have no norm here"),
    "norm_layer": only(None, "layernorm", "LayerNorm", why="and norms here are layer norms"),
    "act_layer": sets("gelu"),
    "block_fn": only(None, why=CODE),
    "mlp_layer": only(None, why=CODE),
    "attn_layer": only(None, "attn", why=CODE),
    "device": ABOUT,
    "dtype": ABOUT,
    "distilled_training": TRAINING,
}
RESNET: Table = {
    "block": shown("a block has other tensors"),
    "layers": shown(),
    "num_classes": shown(),
    "in_chans": shown(),
    "output_stride": only(32, why="and no convolution is dilated here"),
    "global_pool": only("avg", why="and a ResNet here averages its map"),
    "cardinality": only(1, why="and convolutions here have one group"),
    "base_width": shown(),
    "stem_width": only(64, why="and the stem here is one convolution of 64"),
    "stem_type": only("", None, why="and the stem here is one convolution"),
    "replace_stem_pool": only(False, why="and the stem here ends with max pooling"),
    "block_reduce_first": only(1, why="and a block's first convolution is as wide here"),
    "down_kernel_size": only(1, why="and shortcuts here are 1 x 1"),
    "avg_down": only(False, why="and shortcuts here have no average pooling"),
    "channels": shown(),
    "act_layer": only("relu", None, "ReLU", why="and a ResNet here has ReLUs"),
    "norm_layer": only("batchnorm2d", None, "batchnorm", why="and a ResNet here has batch norms"),
    "aa_layer": only(None, "", why="and a ResNet here has no blur pooling"),
    "drop_rate": TRAINING,
    "drop_path_rate": TRAINING,
    "drop_block_rate": TRAINING,
    "zero_init_last": TRAINING,
    "block_args": only(None, {}, why="and blocks here are plain"),
    "device": ABOUT,
    "dtype": ABOUT,
}
TOP: Table = {
    "architecture": shown("chooses the table"),
    "num_classes": shown(),
    "num_features": ABOUT,
    "global_pool": sets(),
    "label_names": ABOUT,
    "label_descriptions": ABOUT,
    "model_args": shown("a table of its own"),
    "pretrained_cfg": shown("a table of its own"),
}
CFG: Table = {
    **{x: ABOUT for x in ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")},
    **{x: ABOUT for x in ("architecture", "tag", "label_names", "label_descriptions", "license")},
    **{x: ABOUT for x in ("description", "origin_url", "paper_name", "paper_ids", "notes")},
    "custom_load": only(
        False, why="and weights in a form that timm converts first cannot be known"
    ),
    "input_size": Field(
        "refused", "and pictures here are square", (3, 224, 224), lambda v: v[-1] == v[-2]
    ),
    "test_input_size": harmless("of an evaluation at another size"),
    "min_input_size": harmless("of an evaluation at another size"),
    "fixed_input_size": ABOUT,
    "interpolation": harmless("of data, which the recipe says"),
    "crop_pct": harmless("of data, which the recipe says"),
    "test_crop_pct": harmless("of data, which the recipe says"),
    "crop_mode": harmless("of data, which the recipe says"),
    "mean": sets(),
    "std": sets(),
    "num_classes": shown(),
    "label_offset": harmless("rows of the classifier that were left out already"),
    "pool_size": ABOUT,
    "test_pool_size": harmless("of an evaluation at another size"),
    "first_conv": ABOUT,
    "classifier": ABOUT,
    "global_pool": sets(),
}


def facts_of(
    body: Mapping[str, Any], kind: str, where: str = "", part: str = ""
) -> tuple[Facts, list[str]]:
    """What a config of a "vit" or a "resnet" decides, by the fields of the recipe's network; and
    clauses on what is refused.
    """
    name, args = str(body.get("architecture")), dict(body.get("model_args") or {})
    cfg = body.get("pretrained_cfg") or {}
    table = RESNET if kind == "resnet" else VIT
    refused = [
        *faults(table, args, f"{where}model_args."),
        *faults(CFG, cfg, f"{where}pretrained_cfg."),
        *[f"{x}, which is not known here" for x in unknown(table, args, f"{where}model_args.")],
    ]
    implied = {} if name.partition(".")[0] in RESNETS else vit_arguments(name)
    if implied is None or (kind == "resnet") != (name.partition(".")[0] in RESNETS):
        return {}, [f"{where}architecture={name}, which no network here can be", *refused]
    pool = args.get("global_pool", cfg.get("global_pool"))
    top = body.get("global_pool")
    if kind == "resnet":
        if (top or "avg") != "avg":
            refused.append(f"{where}global_pool={top}, {RESNET['global_pool'].why}")
        return {}, refused
    pool = implied.get("global_pool", "token") if pool is None else pool
    if top is not None and top != pool:
        refused.append(f"{where}global_pool={top}, and by its architecture timm has {pool}")
    facts, clauses = vit_facts({**implied, **args, "global_pool": pool}, f"{where}{name}: ", part)
    return facts, [*refused, *clauses]


def vit_facts(args: Mapping[str, Any], where: str, part: str) -> tuple[Facts, list[str]]:
    """The same of a VisionTransformer's arguments, with those that its name implies."""
    refused = []
    act, pool = args.get("act_layer") or "gelu", args["global_pool"]
    pools = {"token": "tok", "avg": "gap", "map": "map", "": "none"}
    if pool not in pools:
        refused.append(f"{where}global_pool={pool}, and tokens here are pooled by tok, gap or map")
    if pool in ("avg", "avgmax", "max") and args.get("fc_norm") is None:
        refused.append(f"{where}global_pool={pool} without fc_norm=False, {VIT['fc_norm'].why}")
    front = args.get("class_token", True)
    if pool in ("avg", "map") and front and not args.get("pool_include_prefix"):
        refused.append(
            f"{where}pool_include_prefix=False with a class token, "
            "and all tokens are pooled here, the class token too"
        )
    at = f"{part}." if part else ""
    return {
        f"{at}heads": (args["num_heads"], f"{where}num_heads={args['num_heads']}"),
        f"{at}activation": (ACTIVATIONS.get(act), f"{where}act_layer={act}"),
        f"{at}eps": (args["eps"], f"{where}eps={args['eps']}"),
        f"{at}pool": (pools.get(pool), f"{where}global_pool={pool or '(none)'}"),
    }, refused
