"""`vtx data build` of tables: CSV, TSV and parquet with a column of pictures and one of captions or
labels.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.packing import Input, Left, named
from vtx_scale.data_pipeline.tools.rows import sample_of, word_of
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.stream import arrow, file_of

TABLES = (".csv", ".tsv", ".parquet")
IMAGE = (
    *("image", "img", "picture", "path", "image_path", "file", "file_name", "filename"),
    *("filepath", "file_path", "url", "jpg", "png", "bytes"),
)
CAPTION = ("caption", "text", "txt", "title")
LABEL = ("label", "cls", "class", "class_name")
CELL = 64 << 20  # bytes of a cell
ROWS = 64  # of a parquet table that are held at a time


@dataclass(frozen=True)
class Columns:
    """The names of the columns that count; "" where there is none."""

    image: str = ""
    caption: str = ""
    label: str = ""

    def of(self, table: str, names: list[str]) -> "Columns":
        """Those of a table with these columns, found by usual names where none is given.

        Raises UserError where there is no column of pictures, or neither captions nor labels.
        """
        for name in (self.image, self.caption, self.label):
            if name and name not in names:
                raise UserError(f"{table} has no column {name!r}: it has {', '.join(names)[:200]}.")
        known = {name.lower(): name for name in reversed(names)}

        def usual(several: tuple[str, ...]) -> str:
            return next((known[name] for name in several if name in known), "")

        image = self.image or usual(IMAGE)
        caption, label = self.caption, self.label
        if not caption and not label:
            caption, label = usual(CAPTION), usual(LABEL)
        if not image or not (caption or label):
            lacks = (
                "pictures (--image)" if not image else "captions (--caption) or labels (--label)"
            )
            raise UserError(
                f"{table}: name the column of {lacks}: it has {', '.join(names)[:200]}."
            )
        return Columns(image, caption, label)


@dataclass(frozen=True)
class Part:
    """Rows of a table that make a shard. at: the byte of the first in a text, its row in parquet.

    number: of the first in the set. row: of the first in its table, from 1.
    """

    table: str
    columns: Columns
    at: int
    number: int
    row: int
    rows: int


@dataclass(frozen=True)
class Rows:
    """Reads a part of a table."""

    storage: Storage
    classes: dict[str, int]

    def __call__(self, part: Part) -> Iterator[Sample | Left]:
        """A sample a row, or why it is left out."""
        for i, cells in enumerate(self.cells(part)):
            row = f"{part.table} row {part.row + i}"
            if cells is None:
                yield Left(row, "columns")
                continue
            image, caption, label = cells
            number = part.number + i
            yield sample_of(self.storage, number, row, image, caption, label, self.classes)

    def cells(self, part: Part) -> Iterator[tuple[Any, Any, Any] | None]:
        """(image, caption, label) a row, None of one that has not as many cells as columns."""
        read = parquet_cells if part.table.lower().endswith(".parquet") else text_cells
        yield from read(self.storage, part)


def tables(storage: Storage, names: list[str], columns: Columns, each: int) -> Input:
    """The rows of tables, one behind the other, `each` in a shard.

    columns: as a user gave them. Labels that are no numbers are names of classes, numbered in
    order. Raises UserError where a table cannot be read or lacks a column, or pyarrow is missing.
    """
    parts: list[Part] = []
    words: set[str] = set()
    tags = []
    for name in names:
        head = storage.head(name)
        tags.append([name, head.tag if head else ""])
        look = parquet_parts if name.lower().endswith(".parquet") else text_parts
        first = parts[-1].number + parts[-1].rows if parts else 0
        parts += look(storage, name, columns, each, first, words)
    words.discard("")
    known = sorted(words) if not all(word.isdecimal() for word in words) else []
    classes = {word: i for i, word in enumerate(known)}
    about = {"tables": tags, "columns": repr(columns), "each": each}
    return Input(about, parts, len(parts), Rows(storage, classes), named(classes))


def lines_of(file: io.BufferedReader) -> Iterator[str]:
    """Lines of a text from where the file is; it stands behind the last that was taken."""
    for line in file:
        yield line.decode("utf-8", "replace")


def header_of(file: io.BufferedReader, table: str) -> tuple[list[str], str, int]:
    """(columns, delimiter, the byte behind the header). Raises UserError where there is none."""
    csv.field_size_limit(CELL)
    start = file.peek(3)[:3]
    file.seek(3 if start == b"\xef\xbb\xbf" else 0)
    first = file.peek(1 << 16).split(b"\n", 1)[0]
    usual = "\t" if table.lower().endswith(".tsv") else ","
    delimiter = max([usual, ",", "\t", ";"], key=lambda letter: first.count(letter.encode()))
    names = next(csv.reader(lines_of(file), delimiter=delimiter), [])
    if not any(names):
        raise UserError(f"{table} is empty: its first line names the columns.")
    return names, delimiter, file.tell()


def text_parts(
    storage: Storage, table: str, columns: Columns, each: int, first: int, words: set[str]
) -> list[Part]:
    """The parts of a CSV or TSV table; the words of its labels go to `words`."""
    parts: list[Part] = []
    with storage.open(table) as source, file_of(source) as file:
        names, delimiter, start = header_of(file, table)
        chosen = columns.of(table, names)
        label = names.index(chosen.label) if chosen.label else -1
        begin, rows, number = start, 0, 0
        try:
            for cells in filter(None, csv.reader(lines_of(file), delimiter=delimiter)):
                if label >= 0 and len(cells) == len(names):
                    words.add(cells[label].strip())
                rows += 1
                if rows == each:
                    parts.append(Part(table, chosen, begin, first + number, number + 1, rows))
                    begin, number, rows = file.tell(), number + rows, 0
        except csv.Error as e:
            raise UserError(f"{table}, row {number + rows + 1}: {e}: mend that row.") from None
    if rows:
        parts.append(Part(table, chosen, begin, first + number, number + 1, rows))
    return parts


def text_cells(storage: Storage, part: Part) -> Iterator[tuple[Any, Any, Any] | None]:
    """The cells that count of the rows of a part."""
    with storage.open(part.table) as source, file_of(source) as file:
        names, delimiter, _ = header_of(file, part.table)
        places = [
            names.index(name) if name else -1
            for name in (part.columns.image, part.columns.caption, part.columns.label)
        ]
        file.seek(part.at)
        reader = filter(None, csv.reader(lines_of(file), delimiter=delimiter))
        for _, cells in zip(range(part.rows), reader, strict=False):
            if len(cells) != len(names):
                yield None
                continue
            image, caption, label = (cells[i] if i >= 0 else None for i in places)
            yield image, caption, label


def parquet_file(source: Any, table: str) -> Any:
    """A parquet table for reading. Raises UserError without pyarrow, or where it is none."""
    arrow()
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(source)
    except (ArrowException, OSError) as e:
        raise UserError(f"{table} is no parquet table that can be read ({e}).") from None


def parquet_parts(
    storage: Storage, table: str, columns: Columns, each: int, first: int, words: set[str]
) -> list[Part]:
    """The parts of a parquet table; the words of its labels go to `words`."""
    with storage.open(table) as source, file_of(source) as file:
        opened = parquet_file(file, table)
        chosen = columns.of(table, list(opened.schema_arrow.names))
        if chosen.label:
            for batch in opened.iter_batches(1 << 16, columns=[chosen.label]):
                words.update(word_of(x) for x in set(batch.column(0).to_pylist()))
        rows = opened.metadata.num_rows
    return [
        Part(table, chosen, a, first + a, a + 1, min(each, rows - a)) for a in range(0, rows, each)
    ]


def parquet_cells(storage: Storage, part: Part) -> Iterator[tuple[Any, Any, Any] | None]:
    """The cells that count of the rows of a part; row groups without any of them are not read."""
    of = part.columns
    wanted = [x for x in (of.image, of.caption, of.label) if x]
    with storage.open(part.table) as source, file_of(source) as file:
        opened = parquet_file(file, part.table)
        begin = 0
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            at, begin = begin, begin + rows
            if begin <= part.at or at >= part.at + part.rows:
                continue
            for batch in opened.iter_batches(ROWS, row_groups=[group], columns=wanted):
                a, b = max(part.at - at, 0), min(part.at + part.rows - at, len(batch))
                at += len(batch)
                for row in batch.slice(a, b - a).to_pylist() if b > a else ():
                    yield row[of.image], cell(row, of.caption), cell(row, of.label)


def cell(row: dict[str, Any], column: str) -> Any:
    """What stands in a column, "" where it is null; None where there is no such column."""
    if not column:
        return None
    return "" if row[column] is None else row[column]
