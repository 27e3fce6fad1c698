"""The same weights give the same numbers here, in transformers, in open_clip and in timm;
they go out and come in.
"""

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.parity.alike import all_close, assert_same_bits, randomise
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.interop import export_clip, files, import_clip, resize_positions
from vtx_scale.interop.clip import (
    MEAN,
    OPEN_CLIP,
    STD,
    TRANSFORMERS,
    mlp_ratio,
    open_clip_config,
    transformers_config,
)
from vtx_scale.interop.rename import to_foreign
from vtx_scale.launch.initial import load_source
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.clip import Clip
from vtx_scale.specs.clip import CLIP_SIZES, ClipConfig, TextTowerConfig, image_tower
from vtx_scale.specs.run import Run
from vtx_scale.strategies.single import Single

SMALL = ClipConfig(
    image=image_tower("s/16", resolution=32, width=48, depth=2, heads=3, mlp=192, patch=8),
    text=TextTowerConfig(width=32, depth=2, heads=2, context=24, vocab=258),
    embed=40,
)


def with_activation(activation: str, **image: object) -> ClipConfig:
    return replace(
        SMALL,
        image=replace(SMALL.image, activation=activation, **image),
        text=replace(SMALL.text, activation=activation),
    )


SPECS = {
    "quick_gelu": SMALL,
    "gelu": with_activation("gelu"),
    "gelu_tanh": with_activation("gelu_tanh"),
    "g/14's ratio": with_activation("gelu", width=44, heads=2, mlp=192),
    "bigG/14's ratio": with_activation("gelu", width=52, heads=2, mlp=256),
    "eps": with_activation("quick_gelu", eps=1e-2),
}
TEXTS = [
    "",
    "a photo of a cat",
    "one two three, and more than the context of this text tower holds",
]


def model(spec: ClipConfig) -> Clip:
    clip = Clip(spec, Context()).eval()
    randomise(clip)
    return clip


def inputs(spec: ClipConfig) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 pixels (3, S, S, 3), the same as other libraries want them (3, 3, S, S),
    token ids (3, T).
    """
    side = spec.image.resolution
    pixels = torch.randint(
        0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    normal = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return (
        pixels,
        normal.permute(0, 3, 1, 2),
        torch.from_numpy(tokenizer("bytes").encode_all(TEXTS, spec.text.context)),
    )


@torch.no_grad()
def here(clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Features of images and texts, of unit length, and the logits (images, texts)."""
    pixels, _, tokens = inputs(clip.spec)
    image, text = clip.encode_image(pixels), clip.encode_text(tokens)
    logits = clip.logit_scale.exp() * image @ text.T
    return image, text, logits if clip.logit_bias is None else logits + clip.logit_bias


@torch.no_grad()
def there(theirs: nn.Module, spec: ClipConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The same from a model of transformers or open_clip."""
    _, pixels, tokens = inputs(spec)
    if hasattr(theirs, "get_logits"):
        return (
            theirs.encode_image(pixels, normalize=True),
            theirs.encode_text(tokens.long(), normalize=True),
            theirs.get_logits(pixels, tokens.long())[0],
        )
    out = theirs(pixel_values=pixels, input_ids=tokens.long())
    return out.image_embeds, out.text_embeds, out.logits_per_image


def opened(libraries: ModuleType, to: str, folder) -> nn.Module:
    """An exported folder, by the other library's own loading code."""
    if to == "open_clip":
        return libraries.open_clip.create_model(f"local-dir:{folder}").eval()
    theirs, report = libraries.transformers.CLIPModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    return theirs.eval()


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_out_and_in(libraries, to, spec, tmp_path):
    ours = model(spec)
    files = export_clip(spec, ours.state_dict(), to, tmp_path / "out")
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    all_close(here(ours), there(opened(libraries, to, tmp_path / "out"), spec))
    assert_same_bits(import_clip(tmp_path / "out"), ours.state_dict())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_our_own_format(loss, tmp_path):
    state = model(replace(SMALL, loss=loss)).state_dict()
    weights, _ = export_clip(replace(SMALL, loss=loss), state, "safetensors", tmp_path / "out")
    assert_same_bits(import_clip(tmp_path / "out"), state)
    assert_same_bits(import_clip(weights), state)


def test_timm_has_the_image_tower(libraries, tmp_path):
    for name, spec in SPECS.items():
        out = tmp_path / name.replace("/", "")
        ours = model(spec)
        if name == "eps":
            with pytest.raises(UserError, match="eps"):
                export_clip(spec, ours.state_dict(), "timm", out)
            continue
        export_clip(spec, ours.state_dict(), "timm", out)
        tower = libraries.timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        with torch.no_grad():
            theirs = nn.functional.normalize(tower(inputs(spec)[1]), dim=-1)
        all_close(here(ours)[:1] * 3, (theirs,) * 3)


def test_sigmoid_goes_to_open_clip_alone(libraries, tmp_path):
    spec = replace(SMALL, loss="sigmoid")
    ours = model(spec)
    export_clip(spec, ours.state_dict(), "open_clip", tmp_path / "out")
    all_close(here(ours), there(opened(libraries, "open_clip", tmp_path / "out"), spec))
    assert_same_bits(import_clip(tmp_path / "out"), ours.state_dict())
    with pytest.raises(UserError, match="open_clip"):
        export_clip(spec, ours.state_dict(), "transformers", tmp_path / "other")


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "parts"])
def test_in_from_transformers(libraries, parts, tmp_path):
    """Their model, their file: one, or several with an index."""
    config = transformers_config(SMALL, torch.float32)["config.json"]
    theirs = libraries.transformers.CLIPModel(libraries.transformers.CLIPConfig(**config)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if parts else "1GB")
    assert (
        len(list(tmp_path.glob("*.safetensors"))) > 1
        if parts
        else (tmp_path / "model.safetensors").exists()
    )
    ours = Clip(SMALL, Context()).eval()
    ours.load_state_dict(import_clip(tmp_path))
    all_close(here(ours), there(theirs, SMALL))


@pytest.mark.parametrize("apart", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_in_from_open_clip(libraries, apart, tmp_path):
    """Their model, their names in a file of tensors;
    OpenAI's constants beside them do not matter.
    """
    config = open_clip_config(SMALL)["open_clip_config.json"]["model_cfg"]
    theirs = getattr(libraries.open_clip, "CustomTextCLIP" if apart else "CLIP")(**config).eval()
    randomise(theirs)
    constants = (
        {} if apart else {"input_resolution": torch.tensor(32), "context_length": torch.tensor(24)}
    )
    save_file({**theirs.state_dict(), **constants}, tmp_path / "weights.safetensors")
    ours = Clip(SMALL, Context()).eval()
    ours.load_state_dict(import_clip(tmp_path / "weights.safetensors"))
    all_close(here(ours), there(theirs, SMALL))


@pytest.mark.parametrize("size", CLIP_SIZES)
def test_published_sizes_have_the_same_tensors(libraries, size):
    """Names and shapes, on the meta device."""
    spec = ClipConfig.size(size)
    hf = libraries.transformers
    with torch.device("meta"):
        state = Clip(spec, Context()).state_dict()
        theirs = hf.CLIPModel(
            hf.CLIPConfig(**transformers_config(spec, torch.float32)["config.json"])
        ).state_dict()
        other = libraries.open_clip.CLIP(
            **open_clip_config(spec)["open_clip_config.json"]["model_cfg"]
        ).state_dict()
    for table, want in ((TRANSFORMERS, theirs), (OPEN_CLIP, other)):
        assert {k: v.shape for k, v in to_foreign(table, state).items()} == {
            k: v.shape for k, v in want.items()
        }


def test_mlp_ratio_comes_back():
    pairs = [
        (width, mlp)
        for width in range(32, 2049, 8)
        for mlp in (width * 4 - 1, width * 4, 6144, 8192)
    ]
    # else the plain quotient would do
    assert any(int(width * (mlp / width)) != mlp for width, mlp in pairs)
    assert all(int(width * mlp_ratio(width, mlp)) == mlp for width, mlp in pairs)


def test_another_resolution(libraries, tmp_path):
    """`init.from` at 48 and at 16 pixels takes weights of 32:
    the positions are those that open_clip makes.
    """
    ours = model(SMALL)
    export_clip(SMALL, ours.state_dict(), "open_clip", tmp_path / "out")
    for side in (48, 16):
        spec = replace(SMALL, image=replace(SMALL.image, resolution=side))
        theirs = libraries.open_clip.create_model(
            f"local-dir:{tmp_path / 'out'}", force_image_size=side
        ).eval()
        with torch.device("meta"):
            big = Clip(spec, Context()).eval()
        strategy = Single(torch.device("cpu"))
        strategy.prepare(big)
        load_source(str(tmp_path / "out"), Run(objective=spec), strategy)
        assert torch.equal(big.image.positions[:, 0], ours.image.positions[:, 0])
        all_close(here(big), there(theirs, spec))
    assert resize_positions(ours.state_dict(), SMALL)["image.positions"].shape == (1, 17, 48)


def test_pixels_are_prepared_alike(libraries, tmp_path):
    """The image processor that transformers makes from the folder normalises as the
    model here does.
    """
    export_clip(SMALL, model(SMALL).state_dict(), "transformers", tmp_path / "out")
    processor = libraries.transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels, normal, _ = inputs(SMALL)
    theirs = processor([Image.fromarray(x) for x in pixels.numpy()], return_tensors="pt")[
        "pixel_values"
    ]
    assert (theirs - normal).abs().max() < 1e-5
    assert processor(Image.new("RGB", (64, 80)), return_tensors="pt")["pixel_values"].shape == (
        1,
        3,
        32,
        32,
    )


@pytest.mark.parametrize("to", ["open_clip", "timm"])
def test_pixels_are_said_to_be_the_librarys(libraries, to, tmp_path):
    """What its own loading code reads from the folder: CLIP's mean and deviation, each where it
    belongs, the size, and the resize.
    """
    export_clip(SMALL, model(SMALL).state_dict(), to, tmp_path / "out")
    if to == "timm":
        there = libraries.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        constants, read = libraries.timm.data.constants, there.pretrained_cfg
        mean, std = constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD
        assert tuple(read["input_size"]) == (3, 32, 32) and read["crop_pct"] == 1.0
    else:
        there = libraries.open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
        mean, std = libraries.open_clip.OPENAI_DATASET_MEAN, libraries.open_clip.OPENAI_DATASET_STD
        read = there.visual.preprocess_cfg
        assert read["size"] == 32 or tuple(read["size"]) == (32, 32)
        assert read["resize_mode"] == "shortest"
    assert tuple(read["mean"]) == tuple(mean) and tuple(read["std"]) == tuple(std)
    assert read["interpolation"] == "bicubic" and tuple(mean) != tuple(std)


def test_refusals(tmp_path, monkeypatch):
    """One sentence each, and nothing left behind."""
    state = model(SMALL).state_dict()
    odd = replace(SMALL, image=replace(SMALL.image, patch_bias=True))
    for spec, to, weights, word in [
        (SMALL, "tensorflow", state, "transformers, open_clip, timm or safetensors"),
        (odd, "open_clip", state, "safetensors"),
        (
            replace(SMALL, text=replace(SMALL.text, activation="gelu")),
            "open_clip",
            state,
            "one activation",
        ),
        (SMALL, "transformers", {**state, "image.extra": torch.zeros(1)}, "image.extra"),
    ]:
        with pytest.raises(UserError, match=word):
            export_clip(spec, weights, to, tmp_path / "out")
    full = tmp_path / "full"
    full.mkdir()
    export_clip(SMALL, state, "safetensors", full)  # an empty folder may be there
    before = {p.name: p.read_bytes() for p in full.iterdir()}
    with pytest.raises(UserError, match="not an empty folder"):
        export_clip(SMALL, state, "transformers", full)
    assert before == {p.name: p.read_bytes() for p in full.iterdir()}

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", no_space)
    with pytest.raises(OSError, match="No space"):
        export_clip(SMALL, state, "transformers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [full]


def test_what_is_not_read(tmp_path):
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04.")
    for path in (pickle, tmp_path):
        with pytest.raises(UserError, match="convert it to safetensors"):
            import_clip(path)
    for name, state, word in [
        (
            "resnet",
            {"visual.conv1.weight": torch.zeros(1), "visual.bn1.weight": torch.zeros(1)},
            "visual.bn1.weight",
        ),
        ("other", {"conv1.weight": torch.zeros(1)}, "conv1.weight"),
        (
            "torn",
            {
                "vision_model.embeddings.patch_embedding.weight": torch.zeros(1),
                "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(1),
            },
            "layers.0.self_attn.k_proj",
        ),
    ]:
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=word):
            import_clip(tmp_path / f"{name}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="no safetensors file"):
        import_clip(tmp_path / "cut.safetensors")


def test_the_end_token_is_the_last_id():
    """transformers pools at the end token by its number;
    ours is the last id, and the largest in every text.
    """
    config = transformers_config(SMALL, torch.float32)["config.json"]["text_config"]
    for name in ("bytes", "clip"):
        words = tokenizer(name)
        assert (words.start, words.end) == (words.vocab - 2, words.vocab - 1)
    assert config["eos_token_id"] == tokenizer("bytes").end
    assert math.isclose(
        math.exp(
            transformers_config(SMALL, torch.float32)["config.json"]["logit_scale_init_value"]
        ),
        1 / 0.07,
    )
