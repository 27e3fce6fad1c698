"""CLIP's tokens are the same here and in open_clip."""

import random
import unicodedata

import numpy as np
import pytest

from tests.require import need
from vtx_scale.data_pipeline.text import tokenizer

TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "It's Bob's dog; they'RE here, we've gone, I'm off, you'll see, he'd know, don't",
    "naïve café – “quotes” … ﬁ ligature",
    "&lt;b&gt;bold&amp;amp;lt; &quot;&#39;s&quot;&lt;/b&gt;",
    "<i>&amp;amp;lt; &amp;#39;s</i>",
    "😀👍🏽 👨‍👩‍👧‍👦 🇩🇪 emoji",
    "1234567890 3.14 １２３ ²³ ½ Ⅷ",
    "漢字かな交じり文 한국어 العربية हिन्दी ไทย",
    "a" * 500,
    "word " * 200,
    "1 " * 74,
    "1 " * 75,
    "1 " * 76,
    "\x00\x01\x1c\x1d\x85\u2028\u200b\ufeff control",
    "İSTANBUL ẞ ŒUVRE ǅ",
    "schÃ¶n â€œmojibakeâ€\x9d",
    "--- ... !!! ??? $#@%^&*()_+",
    "</w> hello</w> world",
    "e\u0301 combining \u0345a'\u0345",
    "tab\tnew\nline\r\n",
    "'s's''t 'S 'LL don’t",
    "'ſ 'ﬅ long s",
    "no\u00a0break",
    "U.S.A. http://example.com/a_b?c=d&e=f #tag @user",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ｆｕｌｌ width",
    "\ue000\U0010ffff",
]


@pytest.fixture(scope="module")
def theirs():
    need("interop")
    from tests.parity.libraries import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize("context", [77, 8])
def test_tricky_texts(theirs, context):
    ours = tokenizer("clip")
    for text in TEXTS:
        assert ours.encode(text, context).tolist() == theirs([text], context)[0].tolist(), ascii(
            text
        )


def test_random_texts(theirs):
    """Random draws from every assigned character, and from pieces at which a
    pattern may stumble.
    """
    rng = random.Random(0)
    characters = [c for c in map(chr, range(0x20, 0x20000)) if unicodedata.category(c)[0] != "C"]
    pieces = [
        "'s",
        "'T",
        " ",
        "&amp;",
        "&lt;",
        "'",
        "é",
        "1",
        "\n",
        "_",
        "ſ",
        "\u0345",
        "'LL",
        "re",
        "the ",
        "photo",
    ]
    texts = [
        "".join(rng.choice(rng.choice([pieces, characters])) for _ in range(rng.randrange(1, 30)))
        for _ in range(2_000)
    ]
    same = (tokenizer("clip").encode_all(texts, 77) == np.asarray(theirs(texts))).all(1)
    assert same.all(), ascii(texts[int(same.argmin())])


def test_the_frame(theirs):
    """49,408 ids, of which the last two frame a text; a caption cannot spell them."""
    ours = tokenizer("clip")
    assert (ours.vocab, ours.start, ours.end) == (
        theirs.vocab_size,
        theirs.sot_token_id,
        theirs.eot_token_id,
    )
    for name in ("<|endoftext|>", "<end_of_text>"):
        ids = ours.encode(f"before {name} after", 77).tolist()
        assert ids.count(ours.end) == 1 and ours.words(ids[1 : ids.index(ours.end)]).endswith(
            "after"
        )


def test_words_come_back():
    assert (
        tokenizer("clip").decode(tokenizer("clip").encode("A photo, of two cats", 77))
        == "a photo , of two cats"
    )
