"""A judgement as one page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepladder.evaluate.tables import Table, facts, tables


def page(found: Mapping[str, Any]) -> str:
    """Everything that ``tables`` has, with the facts above and the notes below."""
    told = [f"- {_cell(note)}" for note in found["notes"]]
    parts = [f"# {_cell(' < '.join(found['stages']))}", *map(_cell, facts(found)), *map(_table, tables(found))]
    return "\n\n".join([*parts, "\n".join(["## Notes", "", *told])]) + "\n"


def _table(table: Table) -> str:
    align = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [_line(table.head), _line(align), *(_line([_cell(cell) for cell in line]) for line in table.lines)]
    return "\n".join([f"## {table.title}", "", *([f"{_cell(table.told)}.", ""] if table.told else []), *lines])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """The text where a bar, a star or a line's end would mean something else."""
    plain = " ".join(text.split())
    for mark in ("\\", "|", "*", "_", "`", "<", "["):
        plain = plain.replace(mark, f"\\{mark}")
    return plain
