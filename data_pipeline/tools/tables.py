"""`vtx data build` of tables: CSV, TSV, parquet, and Arrow as Hugging Face's `save_to_disk` has it,
with a column of pictures and one of captions or labels.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder, Storage
from vtx_scale.data_pipeline.tools.columns import Columns, kinds_of, names_of
from vtx_scale.data_pipeline.tools.packing import Input, Left, named
from vtx_scale.data_pipeline.tools.rows import sample_of, word_of
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.sides import ALL, Side
from vtx_scale.data_pipeline.tools.stream import arrow, file_of

CELL = 64 << 20  # bytes of a cell
ROWS = 64  # of a parquet table that are held at a time
FEW = 16  # rows of which nobody says that they are sorted
SORTED = (
    "the rows are sorted by class and keep their order, so that batches are of few classes: "
    "shuffle the table and build it again."
)


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
    side: Side = ALL

    def __call__(self, part: Part) -> Iterator[Sample | Left]:
        """A sample a row, or why it is left out."""
        for i, cells in enumerate(self.cells(part)):
            row = f"{part.table} row {part.row + i}"
            if cells is None:
                if not self.side.held:
                    yield Left(row, "columns")
                continue
            image, caption, label = cells
            if not self.side.takes(image):
                continue
            number = part.number + i
            yield sample_of(self.storage, number, row, image, caption, label, self.classes)

    def cells(self, part: Part) -> Iterator[tuple[Any, Any, Any] | None]:
        """(image, caption, label) a row, None of one that has not as many cells as columns."""
        yield from reading(part.table)[1](self.storage, part)


@dataclass
class Labels:
    """What tables say of their classes: the names of numbers, else the words that stand there.

    words: how often each stands there. alike: rows whose word is that of the row before.
    """

    names: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    alike: int = 0
    last: str | None = None

    def add(self, cells: Iterable[Any]) -> None:
        """The labels of the rows that come next."""
        for cell in cells:
            word = word_of(cell)
            self.words[word] += 1
            self.alike += word == self.last
            self.last = word

    def listed(self) -> list[str]:
        """The names of classes in the order of their numbers, [] where numbers have none."""
        words = self.words.keys() - {""}
        if self.names:
            return self.names
        return [] if all(word.isdecimal() for word in words) else sorted(words)

    def sorted_by_class(self) -> bool:
        """Whether neighbours have one class far more often than in a shuffled table, where they
        have it as often as two rows that are drawn.
        """
        rows = self.words.total()
        if rows < FEW or len(self.words) < 2:
            return False
        drawn = sum(count * count for count in self.words.values()) / rows**2
        return self.alike / (rows - 1) > (1 + drawn) / 2


def tables(
    storage: Storage, names: list[str], columns: Columns, each: int, side: Side = ALL
) -> Input:
    """The rows of tables that lie on a side, one behind the other, of `each` rows a shard.

    columns: as a user gave them. Labels that are no numbers are names of classes, numbered in
    order; what a data set of Hugging Face's says of its classes counts. Raises UserError where a
    table cannot be read or lacks a column, or pyarrow is missing.
    """
    parts: list[Part] = []
    labels = Labels()
    tags = []
    for name in names:
        head = storage.head(name)
        tags.append([name, head.tag if head else ""])
        first = parts[-1].number + parts[-1].rows if parts else 0
        parts += reading(name)[0](storage, name, columns, each, first, labels)
    listed = labels.listed()
    classes = {} if labels.names else {word: i for i, word in enumerate(listed)}
    about = {"tables": tags, "columns": repr(columns), "each": each, **side.about()}
    found = parts[0].columns if parts else columns
    guess = found.guess(names[0] if len(names) == 1 else "the tables", len(listed))
    holds = bool(found.caption), bool(found.label), len(listed)
    read = Rows(storage, classes, side)
    warning = SORTED if labels.sorted_by_class() else ""
    return Input(about, parts, len(parts), read, named(listed), 0, guess, holds, warning)


Look = Callable[[Storage, str, Columns, int, int, Labels], list[Part]]
Cells = Callable[[Storage, Part], Iterator[tuple[Any, Any, Any] | None]]


def reading(table: str) -> tuple[Look, Cells]:
    """How the parts of a table are found, and how their cells are read, by its name."""
    if table.lower().endswith(".parquet"):
        return parquet_parts, parquet_cells
    if table.lower().endswith(".arrow"):
        return arrow_parts, arrow_cells
    return text_parts, text_cells


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
    storage: Storage, table: str, columns: Columns, each: int, first: int, labels: Labels
) -> list[Part]:
    """The parts of a CSV or TSV table; what its labels say goes to `labels`."""
    parts: list[Part] = []
    with storage.open(table) as source, file_of(source) as file:
        names, delimiter, start = header_of(file, table)
        chosen = columns.of(table, names)
        label = names.index(chosen.label) if chosen.label else -1
        begin, rows, number = start, 0, 0
        try:
            for cells in filter(None, csv.reader(lines_of(file), delimiter=delimiter)):
                if label >= 0 and len(cells) == len(names):
                    labels.add([cells[label]])
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
    storage: Storage, table: str, columns: Columns, each: int, first: int, labels: Labels
) -> list[Part]:
    """The parts of a parquet table; what its labels say goes to `labels`."""
    with storage.open(table) as source, file_of(source) as file:
        opened = parquet_file(file, table)
        schema = opened.schema_arrow
        chosen = columns.of(table, list(schema.names), kinds_of(schema))
        labels.names = labels.names or names_of(schema, chosen.label)
        if chosen.label:
            for batch in opened.iter_batches(1 << 16, columns=[chosen.label]):
                labels.add(batch.column(0).to_pylist())
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


@contextmanager
def arrow_stream(storage: Storage, table: str) -> Iterator[Any]:
    """A stream of record batches. Raises UserError without pyarrow, where it is none, and where it
    does not lie on this machine.
    """
    pyarrow = arrow()
    if not isinstance(storage, Folder):
        raise UserError(f"{storage}/{table}: Arrow tables are read on this machine: copy it here.")
    try:
        with pyarrow.memory_map(str(storage.root / table)) as source:
            with pyarrow.ipc.open_stream(source) as stream:
                yield stream
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{table} is no Arrow stream that can be read ({e}).") from None


def arrow_parts(
    storage: Storage, table: str, columns: Columns, each: int, first: int, labels: Labels
) -> list[Part]:
    """The parts of an Arrow table; what its labels say goes to `labels`."""
    with arrow_stream(storage, table) as stream:
        chosen = columns.of(table, list(stream.schema.names), kinds_of(stream.schema))
        labels.names = labels.names or names_of(stream.schema, chosen.label)
        rows = 0
        for batch in stream:
            if chosen.label:
                labels.add(batch[chosen.label].to_pylist())
            rows += len(batch)
    return [
        Part(table, chosen, a, first + a, a + 1, min(each, rows - a)) for a in range(0, rows, each)
    ]


def arrow_cells(storage: Storage, part: Part) -> Iterator[tuple[Any, Any, Any] | None]:
    """The cells that count of the rows of a part; of the mapped file no others are read."""
    of, at = part.columns, 0
    wanted = [x for x in (of.image, of.caption, of.label) if x]
    with arrow_stream(storage, part.table) as stream:
        for batch in stream:
            a, b = max(part.at - at, 0), min(part.at + part.rows - at, len(batch))
            at += len(batch)
            if at - len(batch) >= part.at + part.rows:
                return
            for begin in range(a, b, ROWS):
                few = batch.select(wanted).slice(begin, min(ROWS, b - begin))
                for row in few.to_pylist():
                    yield row[of.image], cell(row, of.caption), cell(row, of.label)


def cell(row: dict[str, Any], column: str) -> Any:
    """What stands in a column, "" where it is null; None where there is no such column."""
    if not column:
        return None
    return "" if row[column] is None else row[column]
