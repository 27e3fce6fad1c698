"""transformers: the fields of the configs whose weights are taken, and the facts they decide."""

from collections.abc import Callable, Mapping
from typing import Any

from vtx_scale.specs.foreign.field import (
    ACTIVATIONS,
    Field,
    Table,
    harmless,
    only,
    sets,
    shown,
    square,
    value_of,
)

Facts = dict[str, tuple[Any, str]]  # field of a spec -> its value, and the words that say so

TRAINING = harmless("of training alone")
INITIAL = harmless("the weights have their values")
ABOUT = harmless("about the file or the output, not the network")
COMMON: Table = {
    "transformers_version": ABOUT,
    "architectures": ABOUT,
    "model_type": shown("chooses the table"),
    "output_hidden_states": ABOUT,
    "output_attentions": ABOUT,
    "return_dict": ABOUT,
    "dtype": ABOUT,
    "torch_dtype": ABOUT,
    "_name_or_path": ABOUT,
    "chunk_size_feed_forward": harmless("cuts a batch, and computes the same"),
    "is_encoder_decoder": only(False, why="and here is no decoder"),
    "id2label": shown("the classifier has a row each"),
    "label2id": shown("the classifier has a row each"),
    "problem_type": TRAINING,
}
TOWER: Table = {
    **COMMON,
    "hidden_size": shown(),
    "intermediate_size": shown(),
    "num_hidden_layers": shown(),
    "num_attention_heads": sets(12),
    "hidden_act": sets("gelu"),
    "attention_dropout": TRAINING,
    "initializer_range": INITIAL,
    "initializer_factor": INITIAL,
}
IMAGE: Table = {
    **TOWER,
    "num_channels": shown(),
    "image_size": square(224),
    "patch_size": square(16),
}
WORDS: Table = {
    **TOWER,
    "vocab_size": shown(),
    "max_position_embeddings": shown(),
    "pad_token_id": harmless("ids come from the tokenizer, and no mask is made of it"),
    "bos_token_id": harmless("ids come from the tokenizer"),
}
CLIP_IMAGE: Table = {
    **IMAGE,
    "patch_size": square(32),
    "hidden_act": sets("quick_gelu"),
    "layer_norm_eps": sets(1e-5),
    "projection_dim": shown(),
}
CLIP_TEXT: Table = {
    **WORDS,
    "num_attention_heads": sets(8),
    "hidden_act": sets("quick_gelu"),
    "layer_norm_eps": only(1e-5, why="and the text tower's is 1e-05"),
    "projection_dim": shown(),
    # 2 stands for the largest id, or for the last of the vocabulary: see `clip_faults`
    "eos_token_id": Field("refused", default=49_407),
}
CLIP: Table = {
    **COMMON,
    "text_config": shown("a table of its own"),
    "vision_config": shown("a table of its own"),
    "projection_dim": shown(),
    "logit_scale_init_value": INITIAL,
    "initializer_factor": INITIAL,
}
SIGLIP_IMAGE: Table = {
    **IMAGE,
    "hidden_act": sets("gelu_pytorch_tanh"),
    "layer_norm_eps": sets(1e-6),
    "vision_use_head": only(True, why="and here attention pools"),
}
SIGLIP_TEXT: Table = {
    **WORDS,
    "hidden_act": sets("gelu_pytorch_tanh"),
    "layer_norm_eps": sets(1e-6),
    "eos_token_id": harmless("the last position is pooled, whatever its id"),
    "projection_size": shown(),
}
SIGLIP: Table = {
    **COMMON,
    "text_config": shown("a table of its own"),
    "vision_config": shown("a table of its own"),
    "initializer_factor": INITIAL,
}
VIT: Table = {
    **IMAGE,
    "layer_norm_eps": sets(1e-12),
    "hidden_dropout_prob": TRAINING,
    "attention_probs_dropout_prob": TRAINING,
    "qkv_bias": only(True, why="and attention here has biases"),
    "encoder_stride": harmless("of the decoder of masked pre-training"),
    "pooler_output_size": shown(),
    "pooler_act": only("tanh", why="and the layer before the classifier has tanh here"),
}
IMAGEGPT: Table = {
    **COMMON,
    "vocab_size": shown(),
    "n_positions": shown(),
    "n_embd": shown(),
    "n_layer": shown(),
    "n_head": sets(8),
    "n_inner": shown(),
    "activation_function": only("quick_gelu", why="and iGPT's is quick_gelu"),
    "resid_pdrop": TRAINING,
    "embd_pdrop": TRAINING,
    "attn_pdrop": TRAINING,
    "layer_norm_epsilon": only(1e-5, why="and iGPT's is 1e-05"),
    "initializer_range": INITIAL,
    "scale_attn_weights": only(True, why="and attention here is scaled"),
    "use_cache": ABOUT,
    "tie_word_embeddings": only(False, why="and the two tables are apart here"),
    "scale_attn_by_inverse_layer_idx": only(False, why="and no block is scaled by its number here"),
    "reorder_and_upcast_attn": harmless("the same product in another order"),
    "add_cross_attention": only(False, why="and here is no cross-attention"),
    "pad_token_id": harmless("ids are colours"),
    "bos_token_id": harmless("ids are colours"),
    "eos_token_id": harmless("ids are colours"),
}
CODEBOOK: Table = {
    **COMMON,
    "num_groups": only(4, why="and a residual path counts 1 / (groups blocks)^2 of four groups"),
    "input_channels": shown(),
    "num_blocks_per_group": shown("a block more has names of its own", 2),
    "hidden_size": shown(),
    "vocab_size": shown(),
    "freeze": TRAINING,
    "initializer_range": INITIAL,
}
# model_type: sections (name in the file, network in the objective, table)
SECTIONS: Mapping[str, tuple[tuple[str, str, Table], ...]] = {
    "clip": (
        ("", "", CLIP),
        ("vision_config", "image", CLIP_IMAGE),
        ("text_config", "text", CLIP_TEXT),
    ),
    "siglip": (
        ("", "", SIGLIP),
        ("vision_config", "image", SIGLIP_IMAGE),
        ("text_config", "text", SIGLIP_TEXT),
    ),
    "siglip_vision_model": (("", "", SIGLIP_IMAGE),),
    "vit": (("", "", VIT),),
    "deit": (("", "", VIT),),
    "imagegpt": (("", "net", IMAGEGPT),),
    "flava_image_codebook": (("", "", CODEBOOK),),
}
FACTS = {
    "num_attention_heads": "heads",
    "n_head": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
# how the images of a model are pooled, which its class decides
POOLS = {"clip": "image.pool=tok", "siglip": "image.pool=map", "siglip_vision_model": "pool=map"}
POOLS |= {"vit": "pool=tok", "deit": "pool=tok"}


def clip_faults(section: Mapping[str, Any]) -> list[str]:
    """Where the end of a text is not its largest id."""
    end = value_of(CLIP_TEXT, section, "eos_token_id")
    last = section.get("vocab_size", 49_408) - 1
    if end in (2, last):
        return []
    return [f"text_config.eos_token_id={end}, and a text here ends at the largest id, {last}"]


def facts_of(section: Mapping[str, Any], table: Table, where: str, part: str) -> Facts:
    """What a section decides, by the fields of the recipe."""
    found: Facts = {}
    for name, field in table.items():
        if field.decision != "set":
            continue
        value = value_of(table, section, name)
        words = f"{where}{name}={value}" + ("" if name in section else " (by default)")
        fact = FACTS[name]
        found[f"{part}.{fact}".lstrip(".")] = (
            ACTIVATIONS.get(value) if fact == "activation" else value,
            words,
        )
    return found


Extra = Callable[[Mapping[str, Any]], list[str]]
EXTRA: Mapping[tuple[str, str], Extra] = {("clip", "text_config"): clip_faults}
