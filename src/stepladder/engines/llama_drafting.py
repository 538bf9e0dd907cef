"""llama.cpp's own speculative decoding: what a stage's option ``speculation`` asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from stepladder.decoding.memory import GIB, Probe, cache_bytes, free_bytes
from stepladder.engines.llama_head import cache_shape, difference, read_vocabulary
from stepladder.engines.model_file import verify
from stepladder.engines.options import Options
from stepladder.errors import EngineError, ModelFileError, nearest
from stepladder.types import NGRAM, Stage

NAMES = ("off", NGRAM, "auto")
MODEL_KEYS = ("draft", "n_max", "p_min")
NGRAM_KEYS = ("draft", "n_max", "n_match")
MOST_TOKENS = 64
SMALLER = 2 / 3
"""A drafter whose file is a larger part of its target's is not tried out: it could hardly pay."""

HALF = 2
"""Bytes of a number in llama.cpp's caches."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """Who drafts for a stage: another stage's file, or, with no ``path``, what followed the same tokens before.

    ``n_max`` tokens are drafted at the most. A model goes on while its next token has a probability of ``p_min``;
    n-grams need ``n_match`` tokens in a row that stood in the text before.
    """

    name: str
    path: str | None = None
    sha256: str | None = None
    n_max: int = 16
    p_min: float = 0.6
    n_match: int = 6

    def settings(self) -> dict[str, Any]:
        """What the process is told (``llama_child``)."""
        return {"path": self.path, "n_max": self.n_max, "p_min": self.p_min, "n_match": self.n_match}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stage's ``speculation``: who drafts, or who has yet to show that it pays, to be tried in this order.

    Of several models one is tried, the first that can draft for the stage; n-grams before it.
    """

    drafter: Drafter | None = None
    on_trial: tuple[Drafter, ...] = ()


def read_speculation(options: Options, stage: Stage, stages: Sequence[Stage]) -> Wanted:
    """The option of one stage; ``stages`` are all of its engine's, cheapest first. What is wrong is noted with
    ``options``."""
    options.allow("speculation")
    value = stage.options.get("speculation", "off")
    if isinstance(value, Mapping):
        return Wanted(_drafter(options, value, stage, stages))
    if not isinstance(value, str) or value not in NAMES:
        told = f"{nearest(value, NAMES)}, or a table with 'draft'" if isinstance(value, str) else "or a table"
        options.wrong("speculation", f"must be {', '.join(map(repr, NAMES))}, not {value!r}; {told}")
        return Wanted()
    if value == "auto":
        lower = takewhile(lambda each: each.name != stage.name, stages)
        return Wanted(on_trial=(Drafter(NGRAM), *(_model(each) for each in lower)))
    return Wanted() if value == "off" else Wanted(Drafter(NGRAM))


def _model(stage: Stage, **settings: Any) -> Drafter:
    sha256 = stage.options.get("sha256")
    return Drafter(stage.name, stage.model, sha256 if isinstance(sha256, str) else None, **{"n_max": 8, **settings})


def _drafter(options: Options, table: Mapping[str, Any], stage: Stage, stages: Sequence[Stage]) -> Drafter | None:
    others = {each.name: each for each in stages if each.name != stage.name}
    name = table.get("draft")
    if name not in (NGRAM, *others):
        known = (NGRAM, *others)
        cure = nearest(name, known) if isinstance(name, str) else f"valid: {', '.join(known)}"
        told = f"draft must be '{NGRAM}' or another stage of the engine '{stage.engine}', not {name!r}"
        why = "llama.cpp loads the drafter's file itself, beside its target"
        options.wrong("speculation", f"{told}; {cure} ({why})")
        return None
    keys = NGRAM_KEYS if name == NGRAM else MODEL_KEYS
    for key in table:
        if key not in keys:
            options.wrong("speculation", f"no such key '{key}' where '{name}' drafts; {nearest(key, keys)}")
    if name == NGRAM:
        return Drafter(NGRAM, n_max=_count(options, table, "n_max", 16), n_match=_count(options, table, "n_match", 6))
    return _model(
        others[str(name)], n_max=_count(options, table, "n_max", 8), p_min=_share(options, table, "p_min", 0.6)
    )


def _count(options: Options, table: Mapping[str, Any], key: str, default: int) -> int:
    value = table.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS:
        return value
    options.wrong("speculation", f"{key} must be a whole number from 1 to {MOST_TOKENS}, not {value!r}")
    return default


def _share(options: Options, table: Mapping[str, Any], key: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    options.wrong("speculation", f"{key} must be a number from 0 to 1, not {value!r}")
    return default


def check_drafter(stage: str, path: str, drafter: Drafter | None) -> None:
    """Raise ModelFileError or EngineError where this drafter cannot draft for the model file of a stage.

    Reads both files' vocabularies, so call it in a thread.
    """
    if drafter is None or drafter.path is None:
        return
    try:
        verify(drafter.path, drafter.sha256)
        found = difference(read_vocabulary(path), read_vocabulary(drafter.path))
    except ModelFileError as error:
        raise ModelFileError(f"stage '{stage}', drafter '{drafter.name}': {error}") from error
    if found is not None:
        raise EngineError(
            f"stage '{stage}': '{drafter.name}' cannot draft for it, since the two have different vocabularies: {found}"
        )


def check_room(stage: str, path: str, drafter: Drafter, context: int, *, probe: Probe = free_bytes) -> None:
    """Raise EngineError where a second process of a stage with this drafter is not worth trying, or does not fit.

    The weights of the stage itself are shared with its first process. ``context``: tokens of all answers at work, 0
    for the models' own. Reads the files' heads, so call it in a thread. Raises ModelFileError as they are read.
    """
    whole = Path(path).stat().st_size
    size = 0 if drafter.path is None else Path(drafter.path).stat().st_size
    if size > SMALLER * whole:
        raise EngineError(f"stage '{stage}': the file of '{drafter.name}' is more than two thirds of its own")
    need = size + sum(_cache(file, context) for file in (path, drafter.path) if file is not None)
    free = probe("cpu")
    if free is not None and need > free:
        raise EngineError(
            f"stage '{stage}': a second process with '{drafter.name}' needs {need / GIB:.2f} GiB, and {free / GIB:.2f} "
            "GiB are free"
        )


def _cache(path: str, context: int) -> int:
    layers, heads, width, longest = cache_shape(path)
    return cache_bytes(layers=layers, heads=heads, width=width, slots=1, context=context or longest, itemsize=HALF)
