"""A run's tokenizer as `tokenizers`, transformers and open_clip open it: the same ids, framed,
filled and cut as the run reads captions.

CLIP's cleaning is ftfy's and Python's. A tokenizer.json holds rules alone: what of the cleaning are
rules stands in it (quotes, ligatures, widths, control characters, NFC, the common entities, lower
case, white space); text in a broken encoding, which ftfy mends, and rare entities stay as they are.
"""

from dataclasses import dataclass
from typing import Any

from ftfy.chardata import LIGATURES, WIDTH_MAP
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from vtx_scale.data_pipeline.text import byte_letters, merges_engine, tokenizer, tokenizer_file

FRAME = ("<|start|>", "<|end|>")
SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())  # what Python splits at
CONTROLS = r"[\x{0}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{206A}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFC}]"
CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
ENTITIES = {
    "&quot;": '"',
    "&#34;": '"',
    "&apos;": "'",
    "&#39;": "'",
    "&#x27;": "'",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": " ",
    "&amp;": "&",  # the last, so that one pass opens one layer
}


@dataclass(frozen=True)
class TextForm:
    """How a text tower is given captions: so many ids, start, text, end, then zeros; `canonical`:
    SigLIP's, lower case without punctuation and without a start, filled with end tokens.
    """

    context: int
    canonical: bool = False


def replaced(table: dict[str, str]) -> list[Any]:
    return [normalizers.Replace(old, new) for old, new in table.items()]


def one_space() -> list[Any]:
    """White space collapsed, none at the ends."""
    blank = "".join(f"\\x{{{ord(c):X}}}" for c in SPACES)
    return [
        normalizers.Replace(Regex(f"[{blank}]+"), " "),
        normalizers.Replace(Regex("^ | $"), ""),
    ]


def lower() -> list[Any]:
    """As Python: a capital sigma that ends a word is a small final one."""
    return [
        normalizers.Replace(Regex(rf"(?<={CASED})\x{{3A3}}(?!{CASED})"), "\u03c2"),
        normalizers.Lowercase(),
    ]


def cleaning() -> list[Any]:
    """What of `data_pipeline.text.clean` are rules."""
    letters = {chr(old): new for old, new in {**LIGATURES, **WIDTH_MAP}.items()}
    return [
        *replaced(ENTITIES),
        *replaced({**letters, "\u2028": "\n", "\u2029": "\n"}),
        normalizers.Replace(Regex(r"[\x{2BC}\x{2018}-\x{201B}]"), "'"),
        normalizers.Replace(Regex(r"[\x{201C}-\x{201F}]"), '"'),
        normalizers.Replace(Regex(CONTROLS), ""),
        normalizers.NFC(),
        *replaced(ENTITIES),
        *one_space(),
        *lower(),
    ]


def canonical() -> list[Any]:
    """`siglip_reader.canonical`."""
    return [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(r"[!-/:-@\[-\^`{-~]"), ""),
        *lower(),
        *one_space(),
    ]


def of_bytes() -> Tokenizer:
    """A byte's id is its value."""
    vocab = {**byte_letters(), **{name: 256 + i for i, name in enumerate(FRAME)}}
    engine = Tokenizer(BPE(vocab, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    return engine


def engine_of(name: str, clean: bool = True) -> Tokenizer:
    """What gives the ids of a text without a frame. clean: with the rules of CLIP's cleaning, where
    it is CLIP's. Raises UserError as `tokenizer` does.
    """
    path = tokenizer_file(name)
    if path is None:
        return of_bytes()
    if path.suffix == ".json":
        return Tokenizer.from_file(str(path))
    engine: Tokenizer = merges_engine(path)[0]
    engine.decoder = decoders.BPEDecoder(suffix="</w>")
    if clean:
        engine.normalizer = normalizers.Sequence(cleaning())
    return engine


def framed(name: str, form: TextForm, clean: bool = True) -> Tokenizer:
    """The tokenizer of a name whose `encode(text).ids` are what the tower is given, where
    `encode_special_tokens` is true. clean: as in `engine_of`.
    """
    words, engine = tokenizer(name), engine_of(name, clean)
    start, end = engine.id_to_token(words.start), engine.id_to_token(words.end)
    engine.add_special_tokens([start, end])
    if form.canonical:
        before = [engine.normalizer] if engine.normalizer else []
        engine.normalizer = normalizers.Sequence([*canonical(), *before])
    engine.post_processor = processors.TemplateProcessing(
        single=["$A", end] if form.canonical else [start, "$A", end],
        special_tokens=[(start, words.start), (end, words.end)],
    )
    fill = words.end if form.canonical else 0
    engine.enable_truncation(form.context)
    engine.enable_padding(length=form.context, pad_id=fill, pad_token=engine.id_to_token(fill))
    return engine


def tokenizer_config(name: str, form: TextForm) -> dict[str, Any]:
    """tokenizer_config.json.

    A caption that spells the name of a special token is text, as here. The token of padding is the
    one whose id fills up, 0 where zeros do.
    """
    words, engine = tokenizer(name), engine_of(name, clean=False)
    start = {} if form.canonical else {"bos_token": engine.id_to_token(words.start)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **start,
        "eos_token": engine.id_to_token(words.end),
        "pad_token": engine.id_to_token(words.end if form.canonical else 0),
        "model_max_length": form.context,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        # SigLIP's tower sees what fills up; CLIP's is causal, and does not
        "model_input_names": ["input_ids"] if form.canonical else ["input_ids", "attention_mask"],
    }


def open_clips_own(name: str) -> bool:
    """Whether open_clip's built-in tokenizer is this one."""
    return name == "clip" or tokenizer(name).fingerprint == tokenizer("clip").fingerprint
