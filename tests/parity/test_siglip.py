"""The same SigLIP here, in transformers and in the parts of timm and open_clip;
weights go out and come in.
"""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.parity.alike import all_close, assert_same_bits, close, randomise
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.interop import export, export_siglip, import_siglip, import_vit
from vtx_scale.interop.rename import to_foreign
from vtx_scale.interop.siglip import OPEN_CLIP, TRANSFORMERS, transformers_config
from vtx_scale.interop.vit import joined
from vtx_scale.launch import override
from vtx_scale.launch.initial import load_source
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.siglip import Siglip
from vtx_scale.objectives.siglip_reader import SiglipReader, canonical, encode, encode_all
from vtx_scale.specs.run import Run
from vtx_scale.specs.siglip import SIGLIP_SIZES, SiglipConfig
from vtx_scale.strategies.single import Single

FULL = SiglipConfig.size("B/16")
SMALL = replace(
    FULL,
    image=replace(FULL.image, resolution=32, width=48, depth=2, heads=3, mlp=144, patch=8),
    text=replace(FULL.text, width=32, depth=2, heads=2, mlp=96, context=24, vocab=258, embed=48),
)
TEXTS = [
    "",
    "A photo of a cat!",
    "one, two_three; and more than the context of this text tower holds",
]


def model(spec: SiglipConfig = SMALL) -> Siglip:
    siglip = Siglip(spec, Context()).eval()
    randomise(siglip)
    return siglip


def inputs(spec: SiglipConfig) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 pixels (3, S, S, 3), the same as other libraries want them (3, 3, S, S),
    token ids (3, T).
    """
    side = spec.image.resolution
    pixels = torch.randint(
        0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    tokens = torch.from_numpy(encode_all(tokenizer("bytes"), TEXTS, spec.text.context))
    return pixels, (pixels / 127.5 - 1).permute(0, 3, 1, 2), tokens


@torch.no_grad()
def here(siglip: Siglip) -> tuple[Tensor, Tensor, Tensor]:
    """Features of images and texts, of unit length, and the logits (images, texts)."""
    pixels, _, tokens = inputs(siglip.spec)
    image, text = siglip.encode_image(pixels), siglip.encode_text(tokens)
    return image, text, siglip.logit_scale.exp() * image @ text.T + siglip.logit_bias


@torch.no_grad()
def there(theirs: nn.Module, spec: SiglipConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The same from a SiglipModel."""
    _, pixels, tokens = inputs(spec)
    out = theirs(pixel_values=pixels, input_ids=tokens.long())
    return out.image_embeds, out.text_embeds, out.logits_per_image


@pytest.mark.parametrize(
    "changes", [{}, {"activation": "gelu", "eps": 1e-5}], ids=["published", "another"]
)
def test_out_and_in(libraries, changes, tmp_path):
    spec = replace(
        SMALL, image=replace(SMALL.image, **changes), text=replace(SMALL.text, **changes)
    )
    ours = model(spec)
    files = export(ours, "transformers", tmp_path / "out")
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    theirs, report = libraries.transformers.SiglipModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    all_close(here(ours), there(theirs.eval(), spec))
    assert_same_bits(import_siglip(tmp_path / "out"), ours.state_dict())


def test_the_loss_is_theirs(libraries, tmp_path):
    """transformers computes SigLIP's loss itself: the mean over images of the sum over texts."""
    ours = model()
    export_siglip(SMALL, ours.state_dict(), "transformers", tmp_path / "out")
    theirs = libraries.transformers.SiglipModel.from_pretrained(tmp_path / "out").eval()
    pixels, normal, tokens = inputs(SMALL)
    want = theirs(pixel_values=normal, input_ids=tokens.long(), return_loss=True).loss
    want.backward()

    class Whole(dict):
        valid, slot = torch.ones(3, dtype=torch.bool), torch.arange(3)

    loss, _ = ours(Whole(image=pixels, tokens=tokens))
    (loss / 3).backward()
    close(loss / 3, want)
    for a, b in (
        (ours.logit_scale.grad, theirs.logit_scale.grad),
        (ours.logit_bias.grad, theirs.logit_bias.grad),
        (ours.image.pool.probe.grad, theirs.vision_model.head.probe.grad),
        (ours.text.embedding.weight.grad, theirs.text_model.embeddings.token_embedding.weight.grad),
    ):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_in_from_transformers(libraries, tmp_path):
    """Their model, written by them."""
    config = transformers_config(SMALL, torch.float32)["config.json"]
    theirs = libraries.transformers.SiglipModel(
        libraries.transformers.SiglipConfig(**config)
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = Siglip(SMALL, Context()).eval()
    ours.load_state_dict(import_siglip(tmp_path))
    all_close(here(ours), there(theirs, SMALL))


def test_in_from_open_clip(libraries, tmp_path):
    """Its two towers at our small size, with tanh in place of its exact GELU;
    the names are those of its whole model.
    """
    timm, clip, text = libraries.timm, libraries.open_clip.transformer, SMALL.text
    image = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=3.0,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
    ).eval()
    words = clip.TextTransformer(
        context_length=24,
        vocab_size=258,
        width=32,
        heads=2,
        layers=2,
        mlp_ratio=3.0,
        output_dim=48,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        act_layer=lambda: nn.GELU(approximate="tanh"),
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    ).eval()
    randomise(image)
    randomise(words)
    state = {
        **{f"visual.trunk.{k}": v for k, v in image.state_dict().items()},
        **{f"text.{k}": v for k, v in words.state_dict().items()},
        "logit_scale": torch.tensor(2.0),
        "logit_bias": torch.tensor(-9.0),
    }
    save_file(state, tmp_path / "weights.safetensors")
    ours = Siglip(SMALL, Context()).eval()
    ours.load_state_dict(import_siglip(tmp_path / "weights.safetensors"))
    _, pixels, tokens = inputs(SMALL)
    assert text.mlp == 3 * text.width
    with torch.no_grad():
        x, y = (nn.functional.normalize(t, dim=-1) for t in (image(pixels), words(tokens.long())))
        all_close(here(ours), (x, y, torch.tensor(2.0).exp() * x @ y.T - 9.0))


@pytest.mark.parametrize("size", SIGLIP_SIZES)
def test_published_sizes_have_the_same_tensors(libraries, size):
    """Names and shapes in transformers, on the meta device."""
    hf, spec = libraries.transformers, SiglipConfig.size(size)
    with torch.device("meta"):
        state = Siglip(spec, Context()).state_dict()
        want = hf.SiglipModel(
            hf.SiglipConfig(**transformers_config(spec, torch.float32)["config.json"])
        ).state_dict()
        have = to_foreign(TRANSFORMERS, joined(state))
    assert {k: v.shape for k, v in have.items()} == {k: v.shape for k, v in want.items()}


def test_open_clip_has_the_same_tensors(libraries):
    with torch.device("meta"):
        want = libraries.open_clip.create_model("ViT-B-16-SigLIP", device="meta").state_dict()
        have = to_foreign(OPEN_CLIP, Siglip(FULL, Context()).state_dict())
    assert {k: v.shape for k, v in have.items()} == {k: v.shape for k, v in want.items()}


def test_image_tower_in_timm(libraries, tmp_path):
    ours = model()
    export(ours, "timm", tmp_path / "out")
    tower = libraries.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        close(here(ours)[0], nn.functional.normalize(tower(inputs(SMALL)[1]), dim=-1))
    want = {
        k.removeprefix("image."): v for k, v in ours.state_dict().items() if k.startswith("image.")
    }
    assert_same_bits(import_vit(tmp_path / "out"), want)


def test_our_own_format(tmp_path):
    ours = model()
    export(ours, "safetensors", tmp_path / "out")
    assert_same_bits(import_siglip(tmp_path / "out"), ours.state_dict())


def test_another_resolution(tmp_path):
    ours = model()
    export(ours, "transformers", tmp_path / "out")
    other = replace(SMALL, image=replace(SMALL.image, resolution=48))
    with torch.device("meta"):
        big = Siglip(other, Context())
    strategy = Single(torch.device("cpu"))
    strategy.prepare(big)
    load_source(str(tmp_path / "out"), Run(objective=other), strategy)
    assert big.image.positions.shape == (1, 36, 48)
    assert torch.equal(big.text.positions, ours.text.positions)


def test_pixels_are_prepared_alike(libraries, tmp_path):
    """Their image processor and our reader squash the whole picture alike, in training too."""
    export(model(), "transformers", tmp_path / "out")
    processor = libraries.transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    theirs = processor([Image.fromarray(smooth)], return_tensors="pt")["pixel_values"][0]
    for train in (False, True):
        reader = SiglipReader(32, 24, 0.0, "bytes", train)
        body = BytesIO()
        Image.fromarray(smooth).save(body, "png")
        out = reader({"png": body.getvalue(), "txt": b"Two words."}, lambda view, n: np.zeros(n))
        ours = torch.from_numpy(out["image"].copy()).permute(2, 0, 1) / 127.5 - 1
        assert (ours - theirs).abs().max() <= 1.01 / 127.5  # one level, where rounding differs
        assert (out["tokens"] == encode(tokenizer("bytes"), "two words", 24)).all()


def test_texts_end_at_the_last_position():
    """Lower case without punctuation; the end token fills up, and stays where a text is cut."""
    words = tokenizer("bytes")
    assert canonical(" A photo, of_a  CAT! ") == "a photo of a cat"
    rows = encode_all(words, ["", "Ab!", "x" * 100], 8)
    assert rows.tolist() == [[257] * 8, [97, 98, *[257] * 6], [*[120] * 7, 257]]
    assert words.decode(rows[1].tolist()) == "ab"


def test_probes():
    """Unit length, the same for words and for their ids."""
    ours = model()
    pixels, _, tokens = inputs(SMALL)
    image, text = ours.probes["encode_image"](pixels.numpy()), ours.probes["encode_text"](TEXTS)
    assert image.shape == text.shape == (3, 48)
    assert (image.norm(dim=1) - 1).abs().max() < 1e-6 and torch.equal(
        text, ours.probes["encode_text"](tokens)
    )


def test_refusals(tmp_path):
    state = model().state_dict()
    for spec, to, word in [
        (SMALL, "open_clip", "transformers, timm or safetensors"),
        (replace(SMALL, image=replace(SMALL.image, pool="gap")), "transformers", "own image tower"),
    ]:
        with pytest.raises(UserError, match=word):
            export_siglip(spec, state, to, tmp_path / "out")
    with pytest.raises(UserError, match="one space"):
        override.check(Run(objective=replace(SMALL, text=replace(SMALL.text, embed=32))))
    assert not list(tmp_path.iterdir())
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no SigLIP that is known here.*conv1\.weight"):
        import_siglip(tmp_path / "other.safetensors")
