"""iGPT with the same weights gives the same here and in transformers, and comes back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parity.alike import assert_same_bits, close, randomise
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import export_igpt, import_igpt, import_weights
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.igpt import Igpt
from vtx_scale.specs.igpt import IgptConfig, PixelGPTConfig

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


def test_what_cannot_go_out_or_come_in_is_said(ours, tmp_path):
    other = replace(SPEC, net=replace(SPEC.net, causal=False))
    state = Igpt(other, Context()).state_dict()
    with pytest.raises(UserError, match="safetensors"):
        export_igpt(other, state, "transformers", tmp_path / "no")
    with pytest.raises(UserError, match="timm"):
        export_igpt(SPEC, ours.state_dict(), "timm", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    export_igpt(other, state, "safetensors", tmp_path / "ours")
    assert_same_bits(import_weights(tmp_path / "ours", other), state)
