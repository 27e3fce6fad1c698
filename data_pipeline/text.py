"""Captions to token ids: bytes, CLIP's byte-level BPE,
or a tokenizer.json trained on one's own captions.

Every tokenizer frames a text as start, tokens, end, then zeros; the end token has the largest id,
so that a text tower finds it by argmax.
"""

import gzip
import hashlib
import html
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.paths import local_path


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; `tokenizer` makes one by name.

    vocab: ids are 0..vocab-1. start, end: the ids of the frame, the end's the largest. fingerprint:
    of the vocabulary, counted in a run's hash. `ids` and `words` turn text to ids and back, without
    the frame.

    rougher(text, share, generator): the same with a share of the merges left out (Provilkov
    et al. 2020); None where there are no merges.
    """

    name: str
    vocab: int
    start: int
    end: int
    fingerprint: str
    ids: Callable[[str], list[int]]
    words: Callable[[list[int]], str]
    rougher: Callable[[str, float, np.random.Generator], list[int]] | None = None

    def encode(self, text: str, context: int) -> NDArray[np.int32]:
        """(context,) int32: start, ids, end, then zeros; a longer text is cut and still ends with
        the end token.
        """
        if not text.isascii():  # half a surrogate pair, which JSON can spell, is no text
            text = text.encode("utf-8", "replace").decode()
        return self.framed(self.ids(text), context)

    def framed(self, ids: list[int], context: int) -> NDArray[np.int32]:
        """(context,) int32: `encode` of a text that has these ids."""
        out = np.zeros(context, np.int32)
        ids = [self.start, *ids[: context - 2], self.end]
        out[: len(ids)] = ids
        return out

    def encode_all(self, texts: Iterable[str], context: int) -> NDArray[np.int32]:
        """(texts, context) int32: `encode` of each. Raises ValueError where there is no text."""
        return np.stack([self.encode(t, context) for t in texts])

    def cut(self, texts: Iterable[str], fit: int) -> tuple[int, int]:
        """How many texts have more than `fit` tokens, the frame left out; and `fit`."""
        return sum(len(self.ids(text)) > fit for text in texts), fit

    def decode(self, ids: Iterable[int]) -> str:
        """The text between start and end; what stands behind the first end does not count."""
        kept = []
        for i in ids:
            if i == self.end:
                break
            if i != self.start:
                kept.append(int(i))
        return self.words(kept)


def kept(ids: list[int]) -> list[int]:
    """The ids of a sample's caption. Raises BadSample text where cleaning left nothing of it."""
    if not ids:
        raise BadSample("text", "empty after the tokenizer's cleaning")
    return ids


def of_bytes() -> Tokenizer:
    return Tokenizer(
        "bytes",
        258,
        256,
        257,
        "bytes-1",
        lambda t: list(t.encode("utf-8", "replace")),
        lambda ids: bytes(ids).decode("utf-8", "replace"),
    )


def clean(text: str) -> str:
    """CLIP's cleaning: mended encoding, html unescaped twice, white space collapsed, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).strip().lower()


def byte_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte, in the order of its vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def merges_engine(path: Path) -> tuple[Any, list[str], str]:
    """A `tokenizers.Tokenizer` that gives the ids of cleaned text, without a frame; the names of
    all ids; the text of the file. Raises UserError for what is no merges file.
    """
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import BPE

    body = path.read_bytes()
    text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    lines = [line.split() for line in text.decode().split("\n")[1 : 49_152 - 256 - 2 + 1]]
    if any(len(line) != 2 for line in lines):
        raise UserError(
            f"{path} is no merges file of CLIP (two words a line expected): "
            "give bpe_simple_vocab_16e6.txt.gz."
        )
    merges = [(a, b) for a, b in lines]
    letters = byte_letters()
    frame = ["<|startoftext|>", "<|endoftext|>"]
    names = [*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges), *frame]
    vocab = {name: i for i, name in enumerate(names)}
    engine = Engine(BPE(vocab, merges, end_of_word_suffix="</w>"))
    # CLIP's pattern ignores case, and so Python's regex takes U+0345 neither for a letter nor
    # for anything else
    pattern = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine, names, text.decode()


def of_merges(path: Path) -> Tokenizer:
    """CLIP's vocabulary: 256 bytes, 256 bytes that end a word, 48,894 merges, start, end.

    Departs from open_clip's tokenizer in one thing: a caption that spells the name of the start or
    end token gets ordinary tokens, so that it cannot end itself early.
    """
    engine, names, text = merges_engine(path)
    letters = byte_letters()
    rougher = with_dropout(engine)
    assert rougher is not None

    def words(ids: list[int]) -> str:
        joined = "".join(names[i] for i in ids)
        pieces = joined.replace("</w>", " ")
        return bytearray(letters.get(c, 32) for c in pieces).decode("utf-8", "replace").strip()

    return Tokenizer(
        "clip",
        len(names),
        len(names) - 2,
        len(names) - 1,
        hashlib.sha256(text.encode()).hexdigest()[:16],
        lambda t: engine.encode(clean(t), add_special_tokens=False).ids,
        words,
        lambda t, share, generator: rougher(clean(t), share, generator),
    )


def of_json(path: Path) -> Tokenizer:
    """A tokenizer.json with <|start|> and <|end|> as its last two ids
    (`vtx data tokenizer` writes one).
    """
    from tokenizers import Tokenizer as Engine

    try:
        engine = Engine.from_file(str(path))
    except Exception as e:
        raise UserError(
            f"{path} is no tokenizer file ({e}): make one with 'vtx data tokenizer'."
        ) from None
    engine.encode_special_tokens = True  # a caption that spells <|end|> does not end itself
    start, end = engine.token_to_id("<|start|>"), engine.token_to_id("<|end|>")
    vocab = engine.get_vocab_size()
    if end is None or end != vocab - 1 or start is None:
        raise UserError(
            f"{path} lacks <|start|> and <|end|> as its last ids: "
            "make it with 'vtx data tokenizer'."
        )
    return Tokenizer(
        str(path),
        vocab,
        start,
        end,
        hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        lambda t: engine.encode(t, add_special_tokens=False).ids,
        lambda ids: engine.decode(ids),
        with_dropout(engine),
    )


def with_dropout(engine: Any) -> Callable[[str, float, np.random.Generator], list[int]] | None:
    """BPE-dropout (Provilkov et al. 2020) by the merges of an engine, whose own draws hang on no
    seed; None of one that is no byte-level BPE, where alone every piece of a word has an id.

    Of the merges that are possible each is left out with the share's chance; the best of the rest
    is made, until none is left.
    """
    if type(engine.model).__name__ != "BPE" or "ByteLevel" not in str(engine.pre_tokenizer):
        return None

    @lru_cache(1)
    def table() -> tuple[dict[tuple[str, ...], int], dict[str, int], str]:
        """Ranks of merges, ids, what ends a word: made for the first caption,
        for most runs leave nothing out.
        """
        model = json.loads(engine.to_str())["model"]
        rank = {
            tuple(m.split(" ") if isinstance(m, str) else m): i
            for i, m in enumerate(model["merges"])
        }
        return rank, model["vocab"], model.get("end_of_word_suffix") or ""

    def pieces(word: str, share: float, generator: np.random.Generator) -> list[str]:
        rank, _, suffix = table()
        parts = [*word[:-1], word[-1] + suffix]
        while len(parts) > 1:
            found = [
                (rank[pair], i)
                for i, pair in enumerate(zip(parts, parts[1:], strict=False))
                if pair in rank
            ]
            kept = (
                [f for f, u in zip(found, generator.random(len(found)), strict=True) if u >= share]
                if share
                else found
            )
            if not kept:
                break
            _, i = min(kept)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    def ids(text: str, share: float, generator: np.random.Generator) -> list[int]:
        text = engine.normalizer.normalize_str(text) if engine.normalizer else text
        words = [word for word, _ in engine.pre_tokenizer.pre_tokenize_str(text)]
        vocab = table()[1]
        return [vocab[p] for word in words for p in pieces(word, share, generator)]

    return ids


def open_clip_merges() -> Path:
    """The merges file that an installed open_clip brings; the package itself is not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
        if path.exists():
            return path
    raise UserError(
        "data.tokenizer=clip needs CLIP's merges: pip install open_clip_torch, or give the path of "
        "bpe_simple_vocab_16e6.txt.gz as data.tokenizer."
    )


def tokenizer_file(name: str) -> Path | None:
    """The file that a tokenizer of this name is read from; None of "bytes", which has none.

    Raises UserError where it is not there.
    """
    if name == "bytes":
        return None
    if name == "clip":
        return open_clip_merges()
    path = local_path(name, "data.tokenizer=")
    if not path.is_file():
        raise UserError(
            f"data.tokenizer={name} is neither bytes, clip nor a file: "
            "give the path of a tokenizer.json."
        )
    return path


@lru_cache(8)
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name: "bytes", "clip" (Radford et al. 2021, with the merges that open_clip
    brings), or the path of a tokenizer.json or of CLIP's merges.

    The last 8 are kept. Raises UserError for what is none.
    """
    path = tokenizer_file(name)
    if path is None:
        return of_bytes()
    return of_json(path) if path.suffix == ".json" else of_merges(path)
