"""iGPT with the same weights gives the same here and in transformers, and comes back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.alike import assert_same_bits, close, randomise
from tests.require import need
from vtx_scale.data_pipeline.decode import resize_crop
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import export, export_igpt, import_igpt, import_weights
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.igpt import Igpt
from vtx_scale.objectives.palette import Palette
from vtx_scale.specs.igpt import IgptConfig, PixelGPTConfig
from vtx_scale.specs.palette import colours_of, read_palette

SPEC = IgptConfig(net=PixelGPTConfig(width=48, depth=3, heads=4, side=6, colours=512))


@pytest.fixture(scope="module")
def ours():
    igpt = randomise(Igpt(SPEC, Context())).eval()
    return igpt


def pictures(count=3):
    return torch.randint(
        0, 256, (count, 6, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def logits_there(model, tokens):
    start = torch.full((len(tokens), 1), model.config.vocab_size - 1)
    with torch.no_grad():
        return model(input_ids=torch.cat([start, tokens[:, :-1]], dim=1)).logits


def test_transformers_opens_what_we_write_and_we_what_it_has(libraries, ours, tmp_path):
    kind = libraries.transformers.ImageGPTForCausalImageModeling
    export_igpt(SPEC, ours.state_dict(), "transformers", tmp_path / "out")
    theirs, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs.eval()
    assert (
        not report["missing_keys"]
        and not report["unexpected_keys"]
        and not report["mismatched_keys"]
    )
    tokens = ours.palette.tokens(pictures())
    with torch.no_grad():
        close(ours.net(tokens), logits_there(theirs, tokens))
    assert_same_bits(import_igpt(tmp_path / "out"), ours.state_dict())
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.zeros_like(p) if name.endswith("bias") else torch.randn_like(p) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Igpt(SPEC, Context()).eval()
    again.load_state_dict(import_weights(tmp_path / "theirs", SPEC))
    with torch.no_grad():
        close(again.net(tokens), logits_there(theirs, tokens))


def test_a_fine_tuned_one_is_their_classifier(libraries, tmp_path):
    """No bias on either side; the layer that says colours comes along."""
    spec = replace(SPEC, net=replace(SPEC.net, classes=7))
    igpt = randomise(Igpt(spec, Context())).eval()
    export_igpt(spec, igpt.state_dict(), "transformers", tmp_path / "out")
    kind = libraries.transformers.ImageGPTForImageClassification
    theirs, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and set(report["unexpected_keys"]) == {"lm_head.weight"}
    tokens = igpt.palette.tokens(pictures())
    start = torch.full((len(tokens), 1), 512)
    with torch.no_grad():
        there = theirs.eval()(input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits
    close(igpt.probes["classify"](pictures()), there)
    assert theirs.config.num_labels == 7
    assert_same_bits(import_weights(tmp_path / "out", spec), igpt.state_dict())
    old = replace(spec, net=replace(spec.net, classifier_bias=True))
    with pytest.raises(UserError, match="has no bias"):
        state = randomise(Igpt(old, Context())).state_dict()
        export_igpt(old, state, "transformers", tmp_path / "no")


def test_their_features_are_ours(libraries, ours, tmp_path):
    """The state that enters a block, as a linear probe takes it."""
    export_igpt(SPEC, ours.state_dict(), "transformers", tmp_path / "out")
    theirs = libraries.transformers.ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "out"
    ).eval()
    tokens = ours.palette.tokens(pictures())
    start = torch.full((len(tokens), 1), 512)
    with torch.no_grad():
        states = theirs.transformer(
            torch.cat([start, tokens[:, :-1]], 1), output_hidden_states=True
        ).hidden_states
        for layer in range(3):
            close(
                ours.net.features(tokens, [layer]),
                theirs.transformer.h[layer].ln_1(states[layer]).mean(1),
            )
        # transformers gives the last one after its norm
        close(ours.net.features(tokens, [3]), states[3].mean(1))


def test_their_processor_sees_our_tokens(libraries, ours, tmp_path):
    export_igpt(SPEC, ours.state_dict(), "transformers", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    levels = np.array(config["clusters"])
    x = pictures().numpy().reshape(-1, 3) / 127.5 - 1
    nearest = ((x[:, None] - levels[None]) ** 2).sum(2).argmin(1)
    # but for ties
    assert (ours.palette.tokens(pictures()).flatten().numpy() == nearest).mean() > 0.99
    assert np.rint((levels + 1) * 127.5).astype(int).tolist() == [
        list(c) for c in ours.palette.colours
    ]


def numbers(count, seed):
    """Centres of a k-means, as float32 has them."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def with_palette(centres, folder, **net):
    """SPEC with a palette of a file of these centres."""
    (folder / "palette.json").write_text(json.dumps({"clusters": centres.tolist()}))
    palette = read_palette(folder / "palette.json")
    return replace(SPEC, net=replace(SPEC.net, colours=len(centres), **net), palette=palette)


def their_tokens(libraries, folder, pixels):
    # where torchvision is there, theirs is another by default, which rounds in another order
    kind = libraries.transformers.ImageGPTImageProcessorPil
    processor = kind.from_pretrained(folder)
    found = processor([Image.fromarray(p) for p in pixels], return_tensors="np")
    return found[next(iter(found))].reshape(len(pixels), -1)


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (48, 1), (512, 2), (512, 3)])
def test_a_palette_of_numbers_gives_their_tokens(libraries, tmp_path, count, seed):
    """Every pixel, none of them rounded; and the numbers go out and come back to the bit."""
    spec = with_palette(numbers(count, seed), tmp_path, side=96)
    igpt = randomise(Igpt(spec, Context())).eval()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    export_igpt(spec, igpt.state_dict(), "transformers", tmp_path / "out")
    ours = igpt.palette.tokens(torch.from_numpy(pixels)).numpy()
    assert np.array_equal(ours, their_tokens(libraries, tmp_path / "out", pixels))
    processor = tmp_path / "out" / "preprocessor_config.json"
    assert json.loads(processor.read_text())["clusters"] == numbers(count, seed).tolist()
    assert read_palette(processor) == spec.palette
    rounded = bytes(c for colour in colours_of(spec.palette) for c in colour).hex()
    others = Palette(rounded).tokens(torch.from_numpy(pixels)).numpy()
    assert count < 48 or (others != ours).mean() > 0.002


def test_a_palette_of_numbers_gives_their_tokens_of_photographs(libraries, tmp_path):
    need("sklearn")
    from sklearn.datasets import load_sample_images

    photos = np.stack([x[:400, :400] for x in load_sample_images().images])
    centres = photos.reshape(-1, 3)[:: photos.size // 3 // 256][:256] / 127.5 - 1
    spec = with_palette((centres + 1e-3).clip(-1, 1).astype(np.float32), tmp_path, side=400)
    igpt = Igpt(spec, Context())
    export_igpt(spec, randomise(igpt).state_dict(), "transformers", tmp_path / "out")
    ours = igpt.palette.tokens(torch.from_numpy(photos)).numpy()
    assert np.array_equal(ours, their_tokens(libraries, tmp_path / "out", photos))
    assert len(np.unique(ours)) > 100


@pytest.mark.parametrize("bicubic", [True, False])
def test_their_processor_resizes_as_the_recipe_does(libraries, tmp_path, bicubic):
    igpt = randomise(Igpt(SPEC, Context())).eval()
    export(igpt, "transformers", tmp_path / "out", bicubic=bicubic)
    g = np.random.default_rng(0)
    picture = Image.fromarray(g.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((60, 60))
    pixels = np.array(picture)
    small = resize_crop(pixels, (0, 0, 60, 60), 6, bicubic)
    ours = igpt.palette.tokens(torch.from_numpy(small.copy())[None]).numpy()
    there = their_tokens(libraries, tmp_path / "out", pixels[None])
    assert (ours == there).mean() > 0.8  # pixels may be a level apart
    other = resize_crop(pixels, (0, 0, 60, 60), 6, not bicubic)
    assert not np.array_equal(small, other)
    far = igpt.palette.tokens(torch.from_numpy(other.copy())[None]).numpy()
    assert (far == there).mean() < (ours == there).mean()


def test_weights_of_another_palette_are_refused(ours, tmp_path):
    export_igpt(SPEC, ours.state_dict(), "transformers", tmp_path / "out")
    other = with_palette(numbers(512, 0), tmp_path)
    with pytest.raises(UserError, match="objective.palette=.*preprocessor_config.json"):
        import_weights(tmp_path / "out", other)
    processor = tmp_path / "out" / "preprocessor_config.json"
    again = replace(SPEC, palette=read_palette(processor))  # the cube, by its colours
    assert_same_bits(import_weights(tmp_path / "out", again), ours.state_dict())


def test_what_cannot_go_out_or_come_in_is_said(ours, tmp_path):
    other = replace(SPEC, net=replace(SPEC.net, causal=False))
    state = randomise(Igpt(other, Context())).state_dict()
    with pytest.raises(UserError, match="safetensors"):
        export_igpt(other, state, "transformers", tmp_path / "no")
    with pytest.raises(UserError, match="timm"):
        export_igpt(SPEC, ours.state_dict(), "timm", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    export_igpt(other, state, "safetensors", tmp_path / "ours")
    assert_same_bits(import_weights(tmp_path / "ours", other), state)
