"""`vtx data tokenizer`: a byte-level BPE trained on the captions of shards."""

from collections.abc import Iterator
from pathlib import Path

from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.members import CAPTION, caption
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.storage import whole


def captions(shards: str | Shards, place: str) -> Iterator[str]:
    index = open_index(shards)
    reader = ChunkReader(index)
    for g in range(index.n):
        try:
            members = reader.sample(g)
            if place:
                members[CAPTION] = place
            yield caption(members)
        except BadSample:
            continue


def train_tokenizer(shards: str | Shards, out: Path, vocab: int = 8192, place: str = "") -> Path:
    """Write tokenizer.json with <|start|> and <|end|> as its last two ids;
    the same file for the same captions.

    place: where they stand, as `data.caption` says it.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if vocab < 258:
        raise UserError(f"--vocab {vocab} is too small: 256 bytes, start and end need 258.")
    engine = Tokenizer(BPE())
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    engine.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = list(captions(shards, place))
    if not texts:
        raise UserError(
            f"{shards} holds no captions (txt, or caption in json) to train a tokenizer on."
        )
    engine.train_from_iterator(texts, trainer)
    engine.add_special_tokens(["<|start|>", "<|end|>"])
    with whole(out) as part:
        engine.save(str(part))
    return out
