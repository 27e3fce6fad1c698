"""A data set of Hugging Face's hub, fetched and prepared by its own library `datasets`: the Arrow
tables in that library's cache.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError

HUB = re.compile(r"hf:(?://datasets/)?([^:]+)(?::([^:/]+))?$")


def of_hub(source: str, say: Callable[[str], None]) -> dict[str, tuple[Path, list[str]]]:
    """By split: (a folder, the tables below it). source: hf:NAME or hf:NAME:CONFIGURATION.

    say: takes a sentence before anything is fetched. Raises UserError without the library, and
    with its own words where the data set cannot be had.
    """
    match = HUB.match(source)
    assert match is not None
    load = library()
    say(f"{source}: fetched by Hugging Face's datasets where it is not in its cache.")
    try:
        found = load(match[1], match[2])
        tables = {
            str(split): [os.path.abspath(file["filename"]) for file in part.cache_files]
            for split, part in found.items()
        }
    except Exception as e:  # whatever the library, or a network below it, raises
        text = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise UserError(f"{source} cannot be had: {text}") from None
    out = {}
    for split, files in tables.items():
        if files:
            root = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
            out[split] = root, [str(Path(file).relative_to(root)) for file in files]
    if not out:
        raise UserError(f"{source} has no rows: look at its name and its configuration.")
    return out


def library() -> Callable[..., Any]:
    """`datasets.load_dataset`. Raises UserError where the library is missing."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            "Data sets of Hugging Face's hub are fetched by datasets: "
            "pip install 'vtx-scale[huggingface]'."
        ) from None
    load: Callable[..., Any] = load_dataset
    return load
