"""The page that goes with exported weights, README.md: what they are, from which data and recipe,
what was measured, and code that opens them.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtx_scale.interop.tokens import TextForm

LIBRARIES = {"transformers": "transformers", "timm": "timm", "open_clip": "open_clip"}
PICTURE = """\
from PIL import Image

pictures = [Image.open("photo.jpg").convert("RGB")]
"""
MIDDLE = """\

def middle(picture):
    side, (w, h) = min(picture.size), picture.size
    left, top = (w - side) // 2, (h - side) // 2
    return picture.crop((left, top, left + side, top + side))


"""
CAPTIONS = """\
captions = ["a photo of a cat", "a photo of a dog"]
"""


@dataclass(frozen=True)
class Card:
    """title: of what was trained. to: the library. where: the folder's name on the Hub, or ".".
    model: the class that opens it in transformers, with what its `from_pretrained` needs beside the
    place. step: finished ones. about: run.json. figures: evaluator -> its newest numbers and their
    step. classes: names of the classifier's outputs. text: how captions are read, None where none
    are. programs: file -> (shape, type) of what it takes.
    """

    title: str
    to: str
    where: str
    model: str
    step: int
    about: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    text: TextForm | None = None
    options: str = ""
    programs: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


def card(about: Card) -> str:
    """The page, Markdown with the Hub's front matter."""
    run = about.about
    objective = run["recipe"]["objective"]
    front = ["---", "tags:", "- vtx-scale"]
    if about.to in LIBRARIES:
        front.insert(1, f"library_name: {LIBRARIES[about.to]}")
    lines = [
        *front,
        "---",
        f"# {about.title}, for {about.to}",
        "",
        f"Trained by vtx-scale {run['versions'].get('vtx-scale', '')}".rstrip()
        + f" for {about.step} of {run['recipe'].get('steps', about.step)} steps.",
        "",
        f"* objective: `{objective['spec'].rpartition(':')[2]}`",
        f"* recipe: hash `{run['hash']}`, all of it in `recipe.json`",
        f"* data: fingerprint `{run['data']}`",
    ]
    if average := run["recipe"].get("optim", {}).get("average"):
        lines.append(f"* weights: their moving average, which kept {average} of itself at a step")
    if about.classes:
        lines.append(f"* classes: {len(about.classes)}, named in `classes.txt`")
    lines += ["", "## Figures", "", *figures(about.figures), "", "## Use", "", *use(about)]
    return "\n".join(lines) + "\n"


def figures(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of what the evaluators said."""
    if not found:
        return ["No evaluator has run."]
    rows = [
        f"| {name} | {number} | {value:.6g} | {int(values['step'])} |"
        for name, values in found.items()
        for number, value in values.items()
        if number != "step"
    ]
    return ["| evaluator | number | value | step |", "|---|---|---|---|", *rows]


def use(about: Card) -> list[str]:
    """Code that opens the folder."""
    code = {
        "transformers": of_transformers,
        "timm": of_timm,
        "open_clip": of_open_clip,
        "torch_export": of_programs,
        "onnx": of_programs,
    }.get(about.to, of_tensors)(about)
    lines = ["```python", *code.rstrip().splitlines(), "```"]
    if about.text is not None and about.text.canonical and about.to == "transformers":
        lines += [
            "",
            "`pipeline` fills captions up to 64 ids of itself: give it "
            f'`tokenizer_kwargs={{"max_length": {about.text.context}}}`.',
        ]
    return lines


def of_transformers(about: Card) -> str:
    if about.text is not None:
        return of_pairs(about)
    if about.model.startswith("ImageGPT"):
        return of_colours(about)
    if about.model == "FlavaImageCodebook":
        return of_codes(about)
    named = "print([model.config.id2label[int(k)] for k in output.logits.argmax(1)])\n"
    return (
        f"import torch\n{PICTURE.splitlines()[0]}\n"
        f"from transformers import AutoImageProcessor, {about.model}\n\n"
        f"{PICTURE.splitlines()[2]}\n"
        f"model = {about.model}.from_pretrained({about.where!r}{about.options}).eval()\n"
        f"process = AutoImageProcessor.from_pretrained({about.where!r})\n"
        "with torch.no_grad():\n"
        '    output = model(**process(pictures, return_tensors="pt"))\n'
        f"{named if about.classes else ''}"
    )


def of_pairs(about: Card) -> str:
    return (
        f"import torch\n{PICTURE.splitlines()[0]}\n"
        "from transformers import AutoModel, AutoProcessor\n\n"
        f"{PICTURE.splitlines()[2]}\n{CAPTIONS}"
        f"model = AutoModel.from_pretrained({about.where!r}).eval()\n"
        f"process = AutoProcessor.from_pretrained({about.where!r})\n"
        "inputs = process(\n"
        '    images=pictures, text=captions, padding="max_length", truncation=True, '
        'return_tensors="pt"\n)\n'
        "with torch.no_grad():\n"
        "    output = model(**inputs)\n"
        "print(output.logits_per_image, output.image_embeds.shape, output.text_embeds.shape)\n"
    )


def of_colours(about: Card) -> str:
    """The middle square is cut out first: the library squashes what is none."""
    return (
        "import torch\nfrom PIL import Image\n"
        f"from transformers import AutoImageProcessor, {about.model}\n\n"
        f"{PICTURE.splitlines()[2]}\n{MIDDLE}"
        "squares = [middle(p) for p in pictures]\n"
        f"model = {about.model}.from_pretrained({about.where!r}).eval()\n"
        f"process = AutoImageProcessor.from_pretrained({about.where!r})\n"
        'colours = process(squares, return_tensors="pt")["input_ids"]\n'
        "start = torch.full((len(colours), 1), model.config.vocab_size - 1)  # stands in front\n"
        "with torch.no_grad():\n"
        "    output = model(input_ids=torch.cat([start, colours[:, :-1]], 1))\n"
    )


def of_codes(about: Card) -> str:
    return (
        "import numpy as np\nimport torch\nfrom PIL import Image\n"
        f"from transformers import {about.model}\n\n"
        f"{PICTURE.splitlines()[2]}\n{MIDDLE}"
        "side = 256  # of the squares that it is to see, a multiple of 8\n"
        "squares = [np.asarray(middle(p).resize((side, side))) for p in pictures]\n"
        "pixels = 0.1 + 0.8 * torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255\n"
        f"model = {about.model}.from_pretrained({about.where!r}).eval()\n"
        "with torch.no_grad():\n"
        "    output = model.get_codebook_indices(pixels)\n"
    )


def of_timm(about: Card) -> str:
    place = "local-dir:." if about.where == "." else f"hf-hub:{about.where}"
    named = (
        'print([model.pretrained_cfg["label_names"][int(k)] for k in output.argmax(1)])\n'
        if about.classes
        else ""
    )
    return (
        f"import timm\nimport torch\n{PICTURE}\n"
        f"model = timm.create_model({place!r}, pretrained=True).eval()\n"
        "transform = timm.data.create_transform(\n"
        "    **timm.data.resolve_model_data_config(model), is_training=False\n)\n"
        "with torch.no_grad():\n"
        f"    output = model(torch.stack([transform(p) for p in pictures]))\n{named}"
    )


def of_open_clip(about: Card) -> str:
    place = "local-dir:." if about.where == "." else f"hf-hub:{about.where}"
    return (
        f"import open_clip\nimport torch\n{PICTURE}{CAPTIONS}\n"
        f"model, _, transform = open_clip.create_model_and_transforms({place!r})\n"
        f"tokenize = open_clip.get_tokenizer({place!r})\n"
        "with torch.no_grad():\n"
        "    image = model.eval().encode_image(\n"
        "        torch.stack([transform(p) for p in pictures]), normalize=True\n    )\n"
        "    text = model.encode_text(tokenize(captions), normalize=True)\n"
        "print(image @ text.T)\n"
    )


def of_programs(about: Card) -> str:
    """The first program on zeros: a batch of two."""
    name, (shape, kind) = next(iter(about.programs.items()))
    data = (
        f"# {name} takes {kind} ({', '.join(['N', *map(str, shape)])}): pixels 0..255, or ids\n"
        f"inputs = np.zeros((2, {', '.join(map(str, shape))}), np.{kind})\n"
    )
    if about.to == "torch_export":
        return (
            f"import numpy as np\nimport torch\n\n{data}"
            f"program = torch.export.load({name!r}).module()\n"
            "output = program(torch.from_numpy(inputs))\n"
        )
    return (
        f"import numpy as np\nimport onnxruntime\n\n{data}"
        f"session = onnxruntime.InferenceSession({name!r})\n"
        "(output,) = session.run(None, {session.get_inputs()[0].name: inputs})\n"
    )


def of_tensors(about: Card) -> str:
    return textwrap.dedent("""\
        from safetensors.torch import load_file

        output = load_file("model.safetensors")  # names and shapes are vtx-scale's or the library's
        """)
