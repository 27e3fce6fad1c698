"""What commands print: JSON for programs, tables for people."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(value: Any) -> None:
    print(json.dumps(value), flush=False)


def print_table(rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
    """Rows for people; numbers stand right."""
    if not rows:
        return
    columns = columns or list(rows[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for c in columns:
        right = isinstance(rows[0].get(c), int | float) and not isinstance(rows[0].get(c), bool)
        table.add_column(c, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[c]) for c in columns))
    # a pipe has no width to wrap at; what stands in a cell, [extras] or a caption, is no markup
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, emoji=False).print(table)


def print_values(name: str, values: dict[str, Any]) -> None:
    """A line each, for terminals of 80 columns: numbers, then what is no number, such as paths."""
    numbers = {k: v for k, v in values.items() if not isinstance(v, str)}
    print_table(
        [
            {name: k, "value": cell(v) if isinstance(v, int) else f"{v:.4g}"}
            for k, v in numbers.items()
        ]
    )
    for key, text in values.items():
        if key not in numbers:
            print(f"{key}: {text}")


def cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
