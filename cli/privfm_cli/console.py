"""Where words go: results to standard output, everything else to standard error; boxes on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

__all__ = ["WIDTH", "Column", "say", "show", "show_json", "show_table"]

WIDTH = 100
"""Where sentences are wrapped."""


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right."""

    heading: str
    right: bool = True


def say(text: str) -> None:
    """Write `text` to standard error."""
    typer.echo(text, err=True)


def show(text: str = "") -> None:
    """Write `text`, a result, to standard output."""
    typer.echo(text)


def show_json(value: dict[str, Any]) -> None:
    """Write one object to standard output; ValueError for a number that JSON does not have."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output: drawn on a terminal, aligned words elsewhere."""
    if sys.stdout.isatty():
        _draw(columns, rows)
    else:
        for line in aligned(columns, rows):
            show(line)


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the heading and the rows as lines of equal columns.

    Example:
        >>> aligned([Column("hospital", right=False), Column("epsilon")], [("north", "7.9")])
        ['hospital  epsilon', 'north         7.9']
    """
    table = [[column.heading for column in columns], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return ["  ".join(_pad(*cell) for cell in zip(row, widths, columns, strict=True)).rstrip() for row in table]


def _pad(text: str, width: int, column: Column) -> str:
    return text.rjust(width) if column.right else text.ljust(width)


def _draw(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
