"""What stands beside exported weights, so that the folder is enough: tokenizer, names of classes,
recipe and page.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vtx_scale.data_pipeline.text import tokenizer_file
from vtx_scale.interop.tokens import TextForm, framed, open_clips_own, tokenizer_config

CONFIG = "config.json"
OPEN_CLIP = "open_clip_config.json"


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file of JSON; a stranger's name tables may write none."""
    if not file.is_file():
        return
    body = json.loads(file.read_text())
    change(body)
    write_json(file, body)


def write_json(file: Path, body: Any) -> None:
    file.write_text(json.dumps(body, indent=2) + "\n")


def add_tokenizer(folder: Path, to: str, name: str, form: TextForm | None, hub: str = "") -> None:
    """The tokenizer of a name in an exported folder: as `to` opens it, where it knows one.

    form: how captions are framed, None of an objective that frames them in a way of its own: then
    the tokenizer's own file goes along. hub: the folder's name there. open_clip's built-in one is
    not written.
    """
    file = tokenizer_file(name)
    if form is None:
        if file is not None:
            (folder / file.name).write_bytes(file.read_bytes())
        return
    if to == "timm" or (to == "open_clip" and open_clips_own(name)):
        return
    # open_clip cleans captions before its tokenizer sees them
    framed(name, form, clean=to != "open_clip").save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(name, form))
    if to == "open_clip":
        cleans = file is not None and file.suffix != ".json"

        def named(body: dict[str, Any]) -> None:
            body["model_cfg"]["text_cfg"] |= {
                "hf_tokenizer_name": hub or "tokenizer.json",
                "tokenizer_kwargs": {"clean": "lower" if cleans else "whitespace"},
            }

        changed(folder / OPEN_CLIP, named)


def add_classes(folder: Path, to: str, names: Sequence[str]) -> None:
    """What a classifier's outputs are called, one name each: where `to` looks for it, and in
    classes.txt.
    """
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    if to == "timm":
        changed(folder / CONFIG, lambda body: body.update(label_names=list(names)))
    elif to == "transformers":
        labels = {
            "id2label": {str(k): name for k, name in enumerate(names)},
            "label2id": {name: k for k, name in enumerate(names)},
        }
        changed(folder / CONFIG, lambda body: body.update(labels))


def opens(folder: Path, to: str) -> bool:
    """Whether a library finds in a folder what it needs to build the model."""
    needed = {"transformers": CONFIG, "timm": CONFIG, "open_clip": OPEN_CLIP}
    return to not in needed or (folder / needed[to]).is_file()


def model_of(folder: Path) -> tuple[str, str]:
    """The class that opens a folder of transformers, and what it is to be told beside the place."""
    name = str(*json.loads((folder / CONFIG).read_text()).get("architectures", ["AutoModel"]))
    if not (folder / "model.safetensors").is_file():
        return name, ""
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        pooled = any("pooler" in key for key in file.keys())
    plain = name in ("ViTModel", "DeiTModel") and not pooled
    return name, ", add_pooling_layer=False" if plain else ""
