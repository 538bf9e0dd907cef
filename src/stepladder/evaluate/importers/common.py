"""What all importers share: cells that are checked, questions that are dropped, splits, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.grouping import BY_GROUP, chosen_split
from stepladder.evaluate.outcomes import COLUMNS, OutcomeRow
from stepladder.evaluate.records import Record, read_records

SHOWN = 80
DROP_KEYS = ("query_id", "sample_id", "eval_prompt", "prompt")
"""Where a table of questions to leave out says which: by id, or by the prompt's words."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The rows, and how many were left out for which reason."""

    rows: list[OutcomeRow]
    left_out: Mapping[str, int]


@dataclass(slots=True)
class Gathering:
    """Rows on their way into a table: what is to be dropped is, every row has a split, none stands twice.

    ``split`` is the name for all rows; "by-group" draws train, validation or test from the question (60/20/20).
    """

    drop: frozenset[str] = frozenset()
    split: str = BY_GROUP
    rows: list[OutcomeRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _known: dict[tuple[str, str], str] = field(default_factory=dict)
    _dropped: set[str] = field(default_factory=set)

    def is_dropped(self, query_id: str, prompt: str) -> bool:
        """True where the question's id or prompt is among those to leave out; notes that it was met."""
        met = {query_id, prompt} & self.drop
        self._dropped |= met
        return bool(met)

    def add(self, row: OutcomeRow, record: Record) -> None:
        """Keep a row. Raises UsageError where the same query and model stood before."""
        first = self._known.setdefault((row.query_id, row.model), record.where)
        if first != record.where:
            raise UsageError(f"{record.where}: '{row.query_id}' of '{row.model}' stands at {first} already")
        split = chosen_split(self.split)(row.group_id or row.query_id, row.split)
        self.rows.append(replace(row, split=split))

    def finish(self, what: str) -> Imported:
        """What came of it. Raises UsageError where no row is left, or where nothing that was to be dropped was met."""
        if self.drop and not self._dropped:
            raise UsageError(f"--drop: none of its {len(self.drop)} questions is in {what}")
        if not self.rows:
            raise UsageError(f"{what}: holds no rows that can be used")
        return Imported(self.rows, dict(self.left_out))


def read_dropped(path: str | Path) -> frozenset[str]:
    """Ids or prompts to leave out: a table with a column of ``DROP_KEYS``, or a text of one id a line.

    Raises UsageError where it names none.
    """
    path = Path(path)
    if path.suffix == ".txt":
        found = frozenset(line.strip() for line in _text_of(path).splitlines() if line.strip())
    else:
        found = frozenset(_named(record) for record in read_records(path))
    if not found:
        raise UsageError(f"{path}: names no question to drop")
    return found


def _named(record: Record) -> str:
    for key in DROP_KEYS:
        if record.values.get(key) not in {None, ""}:
            return str(record.values[key])
    raise UsageError(f"{record.where}: names no question; one of {', '.join(DROP_KEYS)} should")


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


# ── cells ────────────────────────────────────────────────────────────────────


def cell(record: Record, column: str, as_column: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """A cell as the outcomes table's ``as_column`` holds it, checked as that column is.

    Raises UsageError that names file, line, column and value, and what would be right.
    """
    value = record.values.get(column)
    try:
        return COLUMNS[as_column](convert(value))
    except ValueError as error:
        raise UsageError(f"{record.where}: {column} {error}: {shown(value)}") from error


def require(record: Record, columns: Iterable[str], what: str) -> None:
    """Raise UsageError naming the columns that a table of this source has and this one does not."""
    missing = [name for name in columns if name not in record.values]
    if missing:
        here = ", ".join(map(str, record.values)) or "none"
        raise UsageError(
            f"{record.path}: is no table of {what}: it has no column {', '.join(missing)} (it has: {here})"
        )


def truth(value: Any) -> float:
    """1.0 or 0.0 from True or False, as a value or as a text; raises ValueError."""
    words = {"true": 1.0, "false": 0.0}
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError("should be True or False")


def number(value: Any) -> Any:
    """A number from a text, as CSV holds it; others as they are. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise ValueError("should be a number") from error


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    told = repr(value)
    return told if len(told) <= SHOWN else told[: SHOWN - 1] + "…"
