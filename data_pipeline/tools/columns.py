"""The columns of a table that count: as a user names them, else guessed by name and type."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.errors import UserError

IMAGE = (
    *("image", "img", "picture", "path", "image_path", "file", "file_name", "filename"),
    *("filepath", "file_path", "url", "jpg", "png", "bytes"),
)
CAPTION = ("caption", "captions", "text", "txt", "title", "description", "sentence", "sentences")
LABEL = ("label", "labels", "cls", "class", "class_name", "category", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that count; "" where there is none."""

    image: str = ""
    caption: str = ""
    label: str = ""

    def of(self, table: str, names: list[str], kinds: Mapping[str, str] | None = None) -> "Columns":
        """Those of a table with these columns, found by types and usual names where none is given.

        kinds: "Image" or "ClassLabel" of the columns of which the table says so. A table that has
        pictures alone, or of which `image` alone is named, needs no more. Raises UserError where
        there is no column of pictures, or neither captions nor labels.
        """
        kinds = kinds or {}
        for name in (self.image, self.caption, self.label):
            if name and name not in names:
                raise UserError(f"{table} has no column {name!r}: it has {', '.join(names)[:200]}.")
        known = {name.lower(): name for name in reversed(names)}

        def usual(several: tuple[str, ...], kind: str) -> str:
            found = [known[name] for name in several if name in known]
            typed = [name for name in (*found, *names) if kinds.get(name) == kind]
            return next(iter((*typed, *found)), "")

        image = self.image or usual(IMAGE, "Image")
        caption, label = self.caption, self.label
        if not caption and not label:
            caption, label = usual(CAPTION, ""), usual(LABEL, "ClassLabel")
        alone = names == [image] or bool(self.image)
        if not image or not (caption or label or alone):
            lacks = (
                "pictures (--image)" if not image else "captions (--caption) or labels (--label)"
            )
            more = f", or say --image {image} for pictures alone" if image else ""
            raise UserError(
                f"{table}: name the column of {lacks}{more}: it has {', '.join(names)[:200]}."
            )
        return Columns(image, caption, label)

    def guess(self, table: str, classes: int) -> str:
        """A sentence on what was taken. classes: the names that labels have."""
        parts = [f"pictures from {self.image!r}"]
        parts.append(f"captions from {self.caption!r}" if self.caption else "no captions")
        named = f" ({classes:,} classes)" if classes else ""
        parts.append(f"labels from {self.label!r}{named}" if self.label else "no labels")
        return f"{table}: {', '.join(parts)}; --image, --caption and --label name other columns."


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` says of the columns of an Arrow schema, {} where it is not of
    theirs: `_type` ("Image", "ClassLabel", ...) and, of classes, `names`.
    """
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: of for name, of in found.items() if isinstance(of, dict) and "_type" in of}


def kinds_of(schema: Any) -> dict[str, str]:
    """`_type` of the columns of an Arrow schema; "Image" also of plain {"bytes", "path"}."""
    found = {name: str(of["_type"]) for name, of in features_of(schema).items()}
    for field in schema:
        if field.name not in found and str(field.type) == "struct<bytes: binary, path: string>":
            found[field.name] = "Image"
    return found


def names_of(schema: Any, column: str) -> list[str]:
    """The names of the classes whose numbers stand in a column, [] where none are known."""
    names = features_of(schema).get(column, {}).get("names") if column else None
    return [str(name) for name in names] if isinstance(names, list) else []
