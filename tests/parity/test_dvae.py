"""The encoder of a discrete VAE with the same weights gives the same here and in transformers,
and comes back.
"""

import pytest
import torch

from tests.parity.alike import assert_same_bits, close, randomise
from vtx_scale.backbones.dvae import Codec
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop import export_codec, import_codec
from vtx_scale.objectives.dvae import mapped
from vtx_scale.specs.dvae import CodecConfig

SPEC = CodecConfig(width=8, blocks=2, vocab=40, stem=12, resolution=32)


def encoder(state):
    return {k: v for k, v in state.items() if k.startswith("encoder.")}


def test_transformers_opens_what_we_write_and_we_what_it_has(libraries, tmp_path):
    ours = randomise(Codec(SPEC)).eval()
    export_codec(SPEC, ours.state_dict(), "transformers", tmp_path / "out")
    kind = libraries.transformers.FlavaImageCodebook
    theirs, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (
        not report["missing_keys"]
        and not report["unexpected_keys"]
        and not report["mismatched_keys"]
    )
    pixels = torch.randint(
        0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    x = mapped(pixels, torch.float32)
    with torch.no_grad():
        close(ours.encoder(x), theirs.blocks(x))
        assert torch.equal(ours.encoder(x).argmax(1), theirs.get_codebook_indices(x))
    assert_same_bits(import_codec(tmp_path / "out", SPEC), encoder(ours.state_dict()))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Codec(SPEC).eval()
    again.load_state_dict(import_codec(tmp_path / "theirs", SPEC), strict=False)
    with torch.no_grad():
        close(again.encoder(x), theirs.blocks(x))


def test_what_cannot_go_out_is_said(tmp_path):
    ours = Codec(SPEC)
    for spec, to, word in (
        (CodecConfig(groups=3), "transformers", "four groups"),
        (SPEC, "timm", "safetensors"),
    ):
        with pytest.raises(UserError, match=word):
            export_codec(spec, ours.state_dict(), to, tmp_path / "no")
    export_codec(SPEC, ours.state_dict(), "safetensors", tmp_path / "whole")
    assert_same_bits(import_codec(tmp_path / "whole", SPEC), ours.state_dict())
