"""open_clip: the fields of a model's config, and the facts they decide."""

from collections.abc import Mapping
from typing import Any

from vtx_scale.specs.foreign.field import (
    Field,
    Table,
    faults,
    harmless,
    only,
    sets,
    shown,
    square,
    unknown,
    value_of,
)
from vtx_scale.specs.foreign.timm import facts_of as timm_facts
from vtx_scale.specs.foreign.transformers import Facts

TRAINING = harmless("of training alone")
ABOUT = harmless("about the file or the output, not the network")
UNUSED = harmless("counts beside a field that is refused")
NO = "and blocks here are plain"
BLOCK: Table = {
    "block_type": only(None, "default", why=NO),
    "qk_norm": only(False, why=NO),
    "scaled_cosine_attn": only(False, why=NO),
    "scale_heads": only(False, why=NO),
    "scale_attn_inner": only(False, why=NO),
    "scale_attn": only(False, why=NO),
    "scale_fc": only(False, why=NO),
    "ls_init_value": only(None, why="and blocks here have no layer scale"),
    "final_ln_after_pool": harmless("one token is pooled, whose norm is the same before and after"),
    "output_tokens": ABOUT,
    "act_kwargs": sets(),
    "norm_kwargs": sets(),
    "mlp_ratio": shown(default=4.0),
    "layers": shown(default=12),
}
VISION: Table = {
    **BLOCK,
    "width": shown(default=768),
    "head_width": sets(64),
    "patch_size": square(16),
    "image_size": square(224),
    "patch_dropout": TRAINING,
    "attentional_pool": only(False, why="and here the class token is pooled"),
    "attn_pooler_queries": UNUSED,
    "attn_pooler_heads": UNUSED,
    "no_ln_pre": shown("there is a norm less"),
    "pos_embed_type": harmless("fixed positions stand among the weights too"),
    "pool_type": only("tok", why="and here the class token is pooled"),
    "timm_model_name": sets(),
    "timm_model_pretrained": ABOUT,
    "timm_pool": sets("avg"),
    "timm_proj": Field("refused", default="linear"),  # beside a name: see `facts_of`
    "timm_proj_bias": shown(),
    "timm_drop": TRAINING,
    "timm_drop_path": TRAINING,
}
TEXT: Table = {
    **BLOCK,
    "context_length": shown(default=77),
    "vocab_size": shown(default=49_408),
    "hf_tokenizer_name": harmless("ids come from the recipe's tokenizer"),
    "tokenizer_mode": harmless("ids come from the recipe's tokenizer"),
    "tokenizer_kwargs": harmless("ids come from the recipe's tokenizer"),
    "width": shown(default=512),
    "heads": sets(8),
    "embed_cls": only(False, why="and a text here has no class token"),
    "pad_id": harmless("no mask is made of it without embed_cls"),
    "eos_id": Field("refused", default=2),  # beside pool_type=eos: see `text_faults`
    "no_causal_mask": Field("refused", default=False),  # each objective has one answer
    "pool_type": Field("refused", default="argmax"),
    "proj_bias": shown(),
    "proj_type": only("linear", why="and a text here has a projection"),
    "hf_model_name": only(None, why="and the text tower here is CLIP's"),
    "hf_model_pretrained": UNUSED,
    "hf_proj_type": UNUSED,
    "hf_pooler_type": UNUSED,
}
MODEL: Table = {
    "embed_dim": shown(),
    "vision_cfg": shown("a table of its own"),
    "text_cfg": shown("a table of its own"),
    "quick_gelu": sets(False),
    "custom_text": shown(),
    "init_logit_scale": harmless("the weights have its value"),
    "init_logit_bias": shown(),
    "nonscalar_logit_scale": harmless("one number either way"),
    "cast_dtype": ABOUT,
    "output_dict": ABOUT,
}
PREPROCESS: Table = {
    "size": square(224),
    "mode": only("RGB", why="and pictures here have three channels"),
    "mean": sets(),
    "std": sets(),
    "interpolation": harmless("of data, which the recipe says"),
    "resize_mode": harmless("of data, which the recipe says"),
    "fill_color": harmless("of data, which the recipe says"),
}


def activation(section: Mapping[str, Any], quick: bool) -> str | None:
    """Of a tower; None for one that is not known."""
    how = section.get("act_kwargs") or {}
    if set(how) - {"approximate"} or (quick and how):
        return None
    kinds = {"tanh": "gelu_tanh", "none": "gelu"}
    return "quick_gelu" if quick else kinds.get(how.get("approximate", "none"))


def eps(section: Mapping[str, Any]) -> Any:
    """Of a tower's norms; None where they differ in more."""
    how = section.get("norm_kwargs") or {}
    return None if set(how) - {"eps"} else how.get("eps", 1e-5)


def text_faults(section: Mapping[str, Any], siglip: bool) -> list[str]:
    """What of a text tower is refused: a CLIP's is causal and pooled at the end token, a SigLIP's
    neither.
    """
    pool, free = section.get("pool_type", "argmax"), section.get("no_causal_mask", False)
    last = value_of(TEXT, section, "vocab_size") - 1
    at_end = pool == "argmax" or (pool == "eos" and section.get("eos_id", 2) == last)
    found = []
    if free != siglip:
        has = "sees all of a text" if siglip else "has a causal mask"
        found.append(f"text_cfg.no_causal_mask={free}, and the text tower here {has}")
    if pool != "last" if siglip else not at_end:
        place = "last position" if siglip else f"largest id, {last}"
        found.append(f"text_cfg.pool_type={pool}, and a text here is pooled at its {place}")
    if not siglip and eps(section) != 1e-5:
        found.append(f"text_cfg.norm_kwargs={section['norm_kwargs']}, and eps is 1e-05 here")
    return found


def facts_of(body: Mapping[str, Any], siglip: bool) -> tuple[Facts, list[str]]:
    """What `model_cfg` decides of a CLIP or a SigLIP, by the fields of the recipe's objective; and
    clauses on what is refused.
    """
    vision, text = body.get("vision_cfg") or {}, body.get("text_cfg") or {}
    quick = bool(body.get("quick_gelu", False))
    places = (("", MODEL, body), ("vision_cfg.", VISION, vision), ("text_cfg.", TEXT, text))
    refused = [clause for where, table, part in places for clause in faults(table, part, where)]
    for where, table, part in places:
        refused += [f"{x}, which is not known here" for x in unknown(table, part, where)]
    refused += text_faults(text, siglip)
    heads = value_of(TEXT, text, "heads")
    facts: Facts = {
        "text.heads": (heads, f"text_cfg.heads={heads}"),
        "text.activation": (activation(text, quick), said(text, "text_cfg", quick)),
    }
    if siglip:
        facts["text.eps"] = (eps(text), f"text_cfg.norm_kwargs={text.get('norm_kwargs')}")
    name = vision.get("timm_model_name")
    if name:
        trunk = {
            "architecture": name,
            "model_args": {"global_pool": vision.get("timm_pool", "avg")},
        }
        more, clauses = timm_facts(trunk, "vit", "vision_cfg.", "image")
        if (proj := value_of(VISION, vision, "timm_proj")) != "none":
            clauses.append(f"vision_cfg.timm_proj={proj}, and the image tower has none here")
        return {**facts, **more}, [*refused, *clauses]
    return {**facts, **image_facts(vision, quick)}, refused


def image_facts(vision: Mapping[str, Any], quick: bool) -> Facts:
    """Of an image tower that is open_clip's own."""
    width, of_head = (value_of(VISION, vision, x) for x in ("width", "head_width"))
    resnet = isinstance(vision.get("layers"), list)
    heads = width * (32 if resnet else 1) // of_head
    facts: Facts = {"image.heads": (heads, f"vision_cfg.head_width={of_head}")}
    if resnet:
        return facts
    return {
        **facts,
        "image.activation": (activation(vision, quick), said(vision, "vision_cfg", quick)),
        "image.eps": (eps(vision), f"vision_cfg.norm_kwargs={vision.get('norm_kwargs')}"),
        "image.pool": ("tok", "vision_cfg.pool_type=tok"),
    }


def said(section: Mapping[str, Any], where: str, quick: bool) -> str:
    """The words on a tower's activation."""
    how = section.get("act_kwargs")
    return f"quick_gelu={quick}" + (f", {where}.act_kwargs={how}" if how else "")
