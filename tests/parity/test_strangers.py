"""Exports opened by who has only the export: from JPEGs that are no squares, and from captions, to
the features that the run itself gives.
"""

import html
import io
import json
import subprocess
import sys
from pathlib import Path

import ftfy
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.parity.alike import randomise
from tests.require import need
from tests.runs import environment, smoke
from vtx_scale.data_pipeline.tools.toy import CLASSES
from vtx_scale.launch import override
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.export import write
from vtx_scale.launch.open_run import OpenRun
from vtx_scale.objectives.base import Context
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.palette import colours_of

SIZES = ((640, 427), (427, 640), (500, 281), (225, 300), (200, 150), (301, 224))
CAPTIONS = ["", "a photo of a cat", "It's Ünïcode \u201cquoted\u201d, two  blanks", "x " * 200]
TEXTS = ["a photo of a cat", "a red circle", "a large blue square left of a dog"]
SIDE, PATCH = 224, 32
TWO = (f"objective.image.resolution={SIDE}", f"objective.image.patch={PATCH}")
ONE = (f"objective.net.resolution={SIDE}", f"objective.net.patch={PATCH}")
RUNS = {  # name -> recipe, keys, libraries, probe of pictures
    "clip": ("clip_vit_b32", TWO, ("transformers", "open_clip", "timm"), "encode_image"),
    "clip_bilinear": (
        "clip_vit_b32",
        (*TWO, "data.bicubic=false"),
        ("transformers", "open_clip", "timm"),
        "encode_image",
    ),
    "siglip": ("siglip_vit_b16", TWO, ("transformers", "timm"), "encode_image"),
    "siglip_bilinear": (
        "siglip_vit_b16",
        (*TWO, "data.bicubic=false"),
        ("transformers", "timm"),
        "encode_image",
    ),
    "vit": (
        "vit_b16_imagenet",
        (*ONE, "data.centre=0.875", "data.bicubic=true"),
        ("transformers", "timm"),
        "classify",
    ),
    "resnet": (
        "resnet50_imagenet",
        (ONE[0], "objective.net.blocks=1,1,1,1", "data.centre=0.9", "data.bicubic=false"),
        ("timm",),
        "classify",
    ),
    "dino": (
        "dino_vit_s16",
        (*ONE, "objective.crops.local_size=96"),
        ("transformers", "timm"),
        "features",
    ),
}
PIPELINES = {
    "clip-transformers": "zero-shot-image-classification",
    "siglip-transformers": "zero-shot-image-classification",
    "vit-transformers": "image-classification",
    "dino-transformers": "image-feature-extraction",
}
CELLS = [(name, to) for name, (_, _, libraries, _) in RUNS.items() for to in libraries]


def photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG with detail of all sizes, as photographs have."""
    rng, (w, h) = np.random.default_rng(seed), size
    whole = np.zeros((h, w, 3))
    for octave in range(1, 8):
        grid = rng.normal(size=(2**octave, 2**octave, 3)) / 2**octave
        for c in range(3):
            part = Image.fromarray(grid[..., c].astype(np.float32))
            whole[..., c] += np.asarray(part.resize(size, Image.Resampling.BICUBIC))
    pixels = np.clip(128 + 90 * whole, 0, 255).astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "JPEG", quality=95)
    return body.getvalue()


def opened(folder: Path, recipe: str, *keys: str) -> OpenRun:
    """A run whose weights are drawn, with what a training writes in its folder."""
    run = smoke(*keys, recipe=recipe)
    spec = run.objective
    objective = import_object(type(spec).build)(spec, Context(tokenizer=run.data.tokenizer))
    randomise(objective)
    folder.mkdir()
    about = {"recipe": override.to_dict(run), "hash": "5ab1e", "data": "f00d", "versions": {}}
    (folder / "run.json").write_text(json.dumps(about))
    line = {"name": "zero_shot", "step": 7, "top1": 0.625}
    (folder / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    return OpenRun(folder, run, 8, objective.eval())


def rows(run, jpegs) -> torch.Tensor:
    """(N, S, S, 3) uint8: what the run's own reader makes of pictures."""
    reader = reader_of(run, False)
    members = {"txt": b"a cat", "cls": b"1", "__key__": "k", "__url__": "u"}
    read = [reader({"jpg": jpeg, **members}, lambda view, n: np.zeros(n)) for jpeg in jpegs]
    return torch.from_numpy(np.stack([row["image"] for row in read]))


def cleaned(text: str) -> str:
    """open_clip's "whitespace" cleaning."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(run, library) -> what a stranger gets; run -> what we get."""
    need("interop")
    at = tmp_path_factory.mktemp("strangers")
    jpegs = [photograph(size, k) for k, size in enumerate(SIZES)]
    paths = [at / f"{k}.jpg" for k in range(len(jpegs))]
    for path, body in zip(paths, jpegs, strict=True):
        path.write_bytes(body)
    ours, folders = {}, []
    for name, (recipe, keys, libraries, probe) in RUNS.items():
        run = opened(at / name, recipe, *keys)
        ours[name] = {"image": run.probes[probe](rows(run.recipe, jpegs))}
        if "encode_text" in run.probes:
            ours[name]["text"] = run.probes["encode_text"](CAPTIONS)
            # open_clip cleans captions before a tokenizer that is not its own sees them
            ours[name]["cleaned"] = run.probes["encode_text"]([*map(cleaned, CAPTIONS)])
            ours[name]["scores"] = scores(run.model, run.probes, ours[name]["image"])
        for to in libraries:
            folders.append(at / f"{name}-{to}")
            write(run, to, folders[-1])
    run = opened(at / "igpt", "igpt_s")
    folders.append(at / "igpt-transformers")
    write(run, "transformers", folders[-1])
    pixels = rows(run.recipe, jpegs)
    ours["igpt"] = {"pixels": pixels.int(), "tokens": run.model.palette.tokens(pixels)}
    plan = {"folders": [*map(str, folders)], "pictures": [*map(str, paths)], "captions": CAPTIONS}
    plan |= {"pipelines": PIPELINES, "texts": TEXTS}
    (at / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("apart.py"), at / "plan.json", at],
        text=True,
        capture_output=True,
        timeout=240,
        env=environment({"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}),
    )
    assert done.returncode == 0, done.stderr
    theirs = {folder.name: dict(np.load(at / f"{folder.name}.npz")) for folder in folders}
    return ours, theirs, at


@torch.no_grad()
def scores(model, probes, image: torch.Tensor) -> torch.Tensor:
    """Of each of `TEXTS` for each picture, as the objective's loss reads them."""
    text = probes["encode_text"](TEXTS)
    logits = model.logit_scale.exp() * torch.nn.functional.cosine_similarity(
        image[:, None], text[None], dim=2
    )
    bias = getattr(model, "logit_bias", None)  # where the loss is of pairs
    return logits.softmax(1) if bias is None else (logits + bias).sigmoid()


def least(a: torch.Tensor, b: torch.Tensor) -> float:
    """The smallest cosine between rows."""
    return torch.nn.functional.cosine_similarity(a, b, dim=1).min().item()


@pytest.mark.parametrize("name,to", CELLS)
def test_the_same_features(found, name, to):
    ours, theirs, _ = found
    want, have = ours[name], theirs[f"{name}-{to}"]
    assert least(want["image"], torch.from_numpy(have["image"])) >= 0.9999
    if "text" in want and to != "timm":
        text = want["cleaned" if to == "open_clip" else "text"]
        assert least(text, torch.from_numpy(have["text"])) >= 1 - 1e-6


@pytest.mark.parametrize("folder", PIPELINES)
def test_a_pipeline_says_the_same(found, folder):
    """transformers' own, from the files of pictures: log odds, and features of the token."""
    ours, theirs, _ = found
    name, have = folder.partition("-")[0], torch.from_numpy(theirs[folder]["pipeline"]).float()
    if name == "dino":
        assert least(ours[name]["image"], have) >= 0.9999
        return
    want = ours[name]["image"].softmax(1) if name == "vit" else ours[name]["scores"]
    off, apart = (want.logit() - have.logit()).abs().max(), want.logit().std(1).max()
    assert off < 0.02 and apart > 0.1, (off, apart)


def test_an_igpt_sees_the_same_colours(found):
    """Cut on the card, for the library squashes: then at most half of them are the same. All but
    pixels that are equally far from both colours, of which the library's rounding picks one:
    every 32nd level of a channel lies in the middle of two of the palette "cube".
    """
    ours, theirs, _ = found
    pixels, mine = (ours["igpt"][name].numpy() for name in ("pixels", "tokens"))
    other = theirs["igpt-transformers"]["colours"]
    assert (mine == other).mean() > 0.9
    table = np.array(colours_of("cube"))
    far = [
        np.square(table[tokens] - pixels.reshape(len(pixels), -1, 3)) for tokens in (mine, other)
    ]
    np.testing.assert_array_equal(far[0].sum(2), far[1].sum(2))


def test_another_rule_would_show(found, tmp_path):
    """Squashed in place of cut, or cut in place of squashed: below the bound of the test above."""
    ours, _, at = found
    jpegs = [(at / f"{k}.jpg").read_bytes() for k in range(len(SIZES))]
    for name in ("clip", "siglip", "vit"):
        recipe, keys, _, probe = RUNS[name]
        run = opened(tmp_path / name, recipe, *keys)
        right = rows(run.recipe, jpegs)
        assert least(run.probes[probe](right), ours[name]["image"]) == pytest.approx(1, abs=1e-6)
        pictures = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]
        if name == "siglip":
            other = [ImageOps.fit(p, (SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures]
        else:
            other = [p.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures]
        wrong = torch.from_numpy(np.stack([np.asarray(p) for p in other]))
        assert least(run.probes[probe](wrong), ours[name]["image"]) < 0.9999


@pytest.mark.parametrize("name,to", CELLS)
def test_the_filter_is_the_runs(found, name, to):
    """Which hardly shows in features."""
    at = found[2] / f"{name}-{to}"
    bicubic = json.loads((at / "recipe.json").read_text())["recipe"]["data"]["bicubic"]
    if to == "transformers":
        have = json.loads((at / "preprocessor_config.json").read_text())["resample"]
        assert have == (Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
    elif to == "timm":
        have = json.loads((at / "config.json").read_text())["pretrained_cfg"]["interpolation"]
        assert have == ("bicubic" if bicubic else "bilinear")
    else:
        have = json.loads((at / "open_clip_config.json").read_text())["preprocess_cfg"]
        assert have["interpolation"] == ("bicubic" if bicubic else "bilinear")


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_classes_have_their_names(found, to):
    _, theirs, at = found
    names = list(CLASSES)
    assert theirs[f"vit-{to}"]["names"].tolist() == names
    assert (at / f"vit-{to}" / "classes.txt").read_text().splitlines() == names


def test_the_page_and_the_recipe(found):
    """What it is, its data, its figures."""
    _, _, at = found
    for folder in at.glob("*-*"):
        if not folder.is_dir():
            continue
        page, kept = (
            (folder / "README.md").read_text(),
            json.loads((folder / "recipe.json").read_text()),
        )
        assert all(x in page for x in ("`f00d`", "`5ab1e`", "| zero_shot | top1 | 0.625 | 7 |"))
        about = json.loads((at / folder.name.partition("-")[0] / "run.json").read_text())
        assert kept == {**about, "step": 8}


def test_without_torchvision_timm_and_open_clip_do_not_open():
    """docs/objectives.md says so: an export needs neither."""
    need("interop")
    code = "import sys; sys.modules['torchvision'] = None; import {}"
    for library in ("timm", "open_clip"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(library)], text=True, capture_output=True
        )
        assert done.returncode and "torchvision" in done.stderr
