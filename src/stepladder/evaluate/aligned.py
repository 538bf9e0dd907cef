"""An outcomes table as aligned arrays: one line for each query, one column for each stage of a ladder."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stepladder.errors import UsageError, nearest
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.types import CostUnit, Request

Matrix = NDArray[np.float64]
Hashes = NDArray[np.uint64]

MILLION = 1_000_000
ALL = "all"
"""The split that means every row."""


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """usd for a million tokens in and out, one number for each stage."""

    price_in: tuple[float, ...]
    price_out: tuple[float, ...]


Pricing = Sequence[float] | TokenPrices | None
"""A price of one request for each stage, or prices of tokens, or None: the table's own costs."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Repeated answers of a stage to a query: their mean quality and their number, both (n, k)."""

    mean: Matrix
    count: Matrix

    def take(self, numbers: NDArray[Any]) -> Samples:
        """Those of some queries."""
        return Samples(self.mean[numbers], self.count[numbers])


@dataclass(frozen=True, eq=False)
class Aligned:
    """n queries × k stages, cheapest stage first.

    ``rows[i][j]`` is what stage j made of query i. ``quality`` in [0, 1] and ``cost`` (what is billed, in
    ``cost_unit``) are (n, k). ``pricing`` is what the costs were made from. ``dropped`` counts the queries of the split
    that lacked one of the stages, ``repeated`` the further rows of a query and stage: for quality and cost the first
    alone counts, ``samples`` has them all (None where nothing was repeated). ``others`` (n, m) are the qualities of the
    table's models that are no stage, NaN where one was not asked: they too tell how hard a query is.
    """

    stages: tuple[str, ...]
    rows: tuple[tuple[OutcomeRow, ...], ...]
    quality: Matrix
    cost: Matrix
    cost_unit: CostUnit
    pricing: Pricing = None
    dropped: int = 0
    repeated: int = 0
    samples: Samples | None = None
    others: Matrix | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """The queries as requests."""
        return tuple(row[0].request for row in self.rows)

    @property
    def levels(self) -> tuple[str | None, ...]:
        """Each query's class of complexity, where the table knows it."""
        return tuple(row[0].level for row in self.rows)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Each query's dataset; an empty text where the table names none."""
        return tuple(row[0].dataset or "" for row in self.rows)

    @property
    def tasks(self) -> tuple[tuple[str, str], ...]:
        """Each query's dataset and subset; an empty text where the table names none."""
        return tuple((row[0].dataset or "", row[0].subset or "") for row in self.rows)

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """(n,) numbers of the groups from 0 up; queries of one group rest on the same fact.

        Queries of one group id are one group, and so are all that a shared prompt ties together, link by link.
        """
        return _connected(self.hashes)

    @cached_property
    def hashes(self) -> Hashes:
        """(n, 2): 8 bytes for each query's group, and 8 for its prompt, spaces and capitals aside."""
        return np.array([_hashes(row[0]) for row in self.rows], dtype=np.uint64).reshape(-1, 2)

    def take(self, which: NDArray[Any]) -> Aligned:
        """The queries that a mask or an array of numbers picks."""
        numbers = np.arange(len(self))[which]
        return Aligned(
            self.stages,
            tuple(self.rows[i] for i in numbers),
            self.quality[numbers],
            self.cost[numbers],
            self.cost_unit,
            self.pricing,
            self.dropped,
            self.repeated,
            None if self.samples is None else self.samples.take(numbers),
            None if self.others is None else self.others[numbers],
        )

    def mean_output_tokens(self) -> tuple[float, ...] | None:
        """Mean length of each stage's answers, in tokens; None where some are not known."""
        counts = [[row.output_tokens for row in line] for line in self.rows]
        if not counts or any(count is None for line in counts for count in line):
            return None
        return tuple(np.array(counts, dtype=np.float64).mean(axis=0).tolist())


def align(
    rows: Iterable[OutcomeRow],
    models: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    split: str = ALL,
    pricing: Pricing = None,
) -> Aligned:
    """The rows of ``models`` (cheapest first) in ``split``, of the queries that all of them answered.

    ``names`` renames the models to a ladder's stages. Raises UsageError where a model or the split is not in the
    table (the nearest name is told), where no query is left, or where a row lacks its prompt or what its price needs.
    """
    rows = list(rows)
    _check_names(rows, models, names)
    lines, dropped, again = _lines(rows, models, split)
    if not lines:
        raise UsageError(f"no query of split '{split}' has outcomes of all of {', '.join(models)}: {dropped} have some")
    _check_prompts(lines)
    cost, unit = _costs(lines, models, pricing)
    quality = np.array([[row.quality for row in line] for line in lines], dtype=np.float64)
    stages, repeated = tuple(names or models), sum(map(len, again.values()))
    samples = _samples(lines, quality, again) if again else None
    others = _others((row for row in rows if split in (ALL, row.split)), models, lines)
    return Aligned(stages, tuple(lines), quality, cost, unit, pricing, dropped, repeated, samples, others)


def expected_costs(data: Aligned, mean_cost: Matrix, mean_output: Matrix | None) -> Matrix:
    """(n, k): what a call is expected to cost before it is made, in ``data.cost_unit``.

    A price of a request is known. With prices of tokens the prompt's length is known, the answer's is taken to be the
    stage's ``mean_output``; the table's own costs are taken to be their ``mean_cost``. Both come from training rows.
    """
    if isinstance(data.pricing, TokenPrices) and mean_output is not None:
        prompts = np.array([[row.prompt_tokens or 0 for row in line] for line in data.rows], dtype=np.float64)
        billed: Matrix = prompts * data.pricing.price_in + mean_output * data.pricing.price_out
        return billed / MILLION
    if data.pricing is None or isinstance(data.pricing, TokenPrices):
        return np.tile(np.asarray(mean_cost, dtype=np.float64), (len(data), 1))
    return data.cost


def read_prices(path: str | Path, models: Sequence[str]) -> TokenPrices:
    """Prices from TOML or JSON: a table with ``price_in`` and ``price_out`` for each model, or a ladder.toml.

    Raises UsageError where the file cannot be read, or lacks a model (the nearest is told) or one of its prices.
    """
    tree = _tree(Path(path))
    listed = tree.get("stages")
    if isinstance(listed, list):
        tree = {str(stage.get("name")): stage for stage in listed if isinstance(stage, Mapping)}
    found = [_prices_of(path, tree, model) for model in models]
    return TokenPrices(tuple(pair[0] for pair in found), tuple(pair[1] for pair in found))


# ── lines ────────────────────────────────────────────────────────────────────


def _check_names(rows: Sequence[OutcomeRow], models: Sequence[str], names: Sequence[str] | None) -> None:
    known = sorted({row.model for row in rows})
    if not models or len(set(models)) != len(models):
        raise UsageError("--stages should name each model once, cheapest first")
    for model in models:
        if model not in known:
            raise UsageError(f"the table has no outcomes of '{model}'; {nearest(model, known)}")
    if names is not None and (len(names) != len(models) or len(set(names)) != len(names)):
        raise UsageError(f"{len(names)} names for {len(models)} stages; give one name to each, no name twice")


Query = tuple[str | None, str]
"""Dataset and id."""


def _lines(
    rows: Sequence[OutcomeRow], models: Sequence[str], split: str
) -> tuple[list[tuple[OutcomeRow, ...]], int, dict[tuple[Query, int], list[float]]]:
    """Complete lines in the table's order, the number of incomplete ones, and the qualities of rows that came again."""
    column = {model: number for number, model in enumerate(models)}
    found: dict[Query, dict[int, OutcomeRow]] = {}
    again: dict[tuple[Query, int], list[float]] = {}
    for row in rows:
        if row.model in column and split in (ALL, row.split):
            query, stage = (row.dataset, row.query_id), column[row.model]
            line = found.setdefault(query, {})
            if stage in line:
                again.setdefault((query, stage), []).append(row.quality)
            line.setdefault(stage, row)
    if not found:
        _no_split(rows, split)
    lines = [tuple(line[j] for j in range(len(models))) for line in found.values() if len(line) == len(models)]
    return lines, len(found) - len(lines), again


def _samples(
    lines: Sequence[tuple[OutcomeRow, ...]], quality: Matrix, again: Mapping[tuple[Query, int], list[float]]
) -> Samples:
    place = {(line[0].dataset, line[0].query_id): number for number, line in enumerate(lines)}
    total, count = quality.copy(), np.ones_like(quality)
    for (query, stage), further in again.items():
        if query in place:  # not a query that lacks a stage
            total[place[query], stage] += sum(further)
            count[place[query], stage] += len(further)
    return Samples(total / count, count)


def _others(rows: Iterable[OutcomeRow], models: Sequence[str], lines: Sequence[tuple[OutcomeRow, ...]]) -> Matrix:
    """(n, m) qualities of the models that are no stage, the first of each query's."""
    place = {(line[0].dataset, line[0].query_id): number for number, line in enumerate(lines)}
    told: dict[tuple[str, int], float] = {}
    for row in rows:
        number = place.get((row.dataset, row.query_id))
        if number is not None and row.model not in models:
            told.setdefault((row.model, number), row.quality)
    column = {model: number for number, model in enumerate(sorted({model for model, _ in told}))}
    found = np.full((len(lines), len(column)), np.nan)
    for (model, number), quality in told.items():
        found[number, column[model]] = quality
    return found


def _no_split(rows: Sequence[OutcomeRow], split: str) -> None:
    known = sorted({row.split for row in rows if row.split is not None})
    none = f"it names no splits at all: give the prompts a 'split', or --split {ALL} takes every row"
    told = nearest(split, [*known, ALL]) if known else none
    raise UsageError(f"the table has no rows of split '{split}' for these stages; {told}")


def _check_prompts(lines: Sequence[tuple[OutcomeRow, ...]]) -> None:
    for line in lines:
        if line[0].prompt is None and line[0].messages is None:
            raise UsageError(f"query '{line[0].query_id}' has neither prompt nor messages: nothing to predict from")


# ── costs ────────────────────────────────────────────────────────────────────


def _costs(lines: Sequence[tuple[OutcomeRow, ...]], models: Sequence[str], pricing: Pricing) -> tuple[Matrix, CostUnit]:
    if isinstance(pricing, TokenPrices):
        return _by_tokens(lines, pricing), "usd"
    if pricing is not None:
        if len(pricing) != len(models):
            raise UsageError(f"{len(pricing)} costs for {len(models)} stages; give one for each")
        return np.tile(np.asarray(pricing, dtype=np.float64), (len(lines), 1)), "relative"
    return _recorded(lines)


def _by_tokens(lines: Sequence[tuple[OutcomeRow, ...]], prices: TokenPrices) -> Matrix:
    counts = np.array([[_tokens(row) for row in line] for line in lines], dtype=np.float64)
    billed: Matrix = counts[..., 0] * prices.price_in + counts[..., 1] * prices.price_out
    return billed / MILLION


def _tokens(row: OutcomeRow) -> tuple[int, int]:
    if row.prompt_tokens is None or row.output_tokens is None:
        raise UsageError(f"query '{row.query_id}', '{row.model}': prices need its token counts; or give --costs")
    return row.prompt_tokens, row.output_tokens


def _recorded(lines: Sequence[tuple[OutcomeRow, ...]]) -> tuple[Matrix, CostUnit]:
    units: dict[CostUnit, str] = {}
    for line in lines:
        for row in line:
            if row.cost is None:
                raise UsageError(f"query '{row.query_id}', '{row.model}' has no cost: give --costs or --prices")
            units.setdefault(row.cost_unit or "relative", row.query_id)
    if len(units) > 1:
        told = ", ".join(f"{unit} (query '{query}')" for unit, query in units.items())
        raise UsageError(f"the table's costs are in several units: {told}; give --costs or --prices")
    return np.array([[row.cost for row in line] for line in lines], dtype=np.float64), next(iter(units))


def _tree(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        tree = orjson.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is no valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: should hold a table for each model")
    return tree


def _prices_of(path: str | Path, tree: Mapping[str, Any], model: str) -> tuple[float, float]:
    entry = tree.get(model)
    if not isinstance(entry, Mapping):
        raise UsageError(f"{path}: no prices of '{model}'; {nearest(model, sorted(tree))}")
    found = [entry.get(key) for key in ("price_in", "price_out")]
    for key, value in zip(("price_in", "price_out"), found, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UsageError(f"{path}: {model}.{key} should be usd for a million tokens, from 0 up, not {value!r}")
    return float(found[0]), float(found[1])  # type: ignore[arg-type]


# ── groups ───────────────────────────────────────────────────────────────────


def _connected(hashes: Hashes) -> NDArray[np.intp]:
    """(n,) the components of the graph whose edges are a group's hash in common, or a prompt's.

    Rising by the smallest group hash of each: where no prompt is in two groups, as np.unique numbers the groups.
    """
    groups: NDArray[np.intp] = np.unique(hashes[:, 0], return_inverse=True)[1]
    _, first, prompts = np.unique(hashes[:, 1], return_index=True, return_inverse=True)
    beside = groups[first][prompts]  # the group that each query's prompt was met in first
    links = np.unique(np.column_stack([groups, beside])[groups != beside], axis=0)
    if not len(links):
        return groups
    above = list(range(int(groups.max()) + 1))
    for one, other in links.tolist():
        low, high = sorted((_root(above, one), _root(above, other)))
        above[high] = low
    roots = np.array([_root(above, group) for group in range(len(above))])
    found: NDArray[np.intp] = np.unique(roots[groups], return_inverse=True)[1]
    return found


def _root(above: list[int], group: int) -> int:
    """The smallest group that this one is known to be tied to; halves the way there."""
    while above[group] != group:
        above[group] = above[above[group]]
        group = above[group]
    return group


def _hashes(row: OutcomeRow) -> tuple[int, int]:
    prompt = _hash(f"prompt:{' '.join(row.request.text.casefold().split())}")
    return (prompt if row.group_id is None else _hash(f"group:{row.group_id}")), prompt


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
