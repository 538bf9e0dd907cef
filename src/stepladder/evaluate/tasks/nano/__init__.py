"""Graded tasks of the embedded ladder, generated: eight families, three levels, three disjoint splits.

`generate("judged", 4000, seed=1)` gives tasks; `draw` gives one. The mix is 40 % simple, 30 % medium and 30 % complex.
Splits: "nano-train" teaches the embedded models, "train" teaches quality predictors, "judged" judges both. Sums, lists
and other instances belong to one split by a hash of their operands. A fact (a word, a capital, an element) may be in
nano's training, else nobody could know it, but belongs to either "train" or "judged". The wordings of "train" and
"judged" are never shown in nano's training.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from itertools import chain, repeat
from random import Random
from typing import TypeVar

from stepladder.evaluate.tasks import Level, Split, Task

from .dates import dates
from .draft import Draft, Maker
from .facts import choice, fact
from .logic import logic
from .numbers import arithmetic, expressions, units
from .strings import strings
from .wording import dress

__all__ = ["FAMILIES", "LEVEL_SHARES", "Task", "draw", "generate", "split_of"]

LEVEL_SHARES: dict[Level, float] = {"simple": 0.4, "medium": 0.3, "complex": 0.3}
FAMILIES: dict[str, tuple[Maker, float]] = {
    "facts": (fact, 0.28),
    "choice": (choice, 0.12),
    "arithmetic": (arithmetic, 0.14),
    "strings": (strings, 0.14),
    "dates": (dates, 0.09),
    "units": (units, 0.09),
    "logic": (logic, 0.08),
    "expressions": (expressions, 0.06),
}
"""Family -> (maker, share of each level)."""

_Key = TypeVar("_Key", bound=str)

SPLITS: tuple[Split, ...] = ("nano-train", "train", "judged")
_KNOWLEDGE = frozenset({"facts", "choice"})
_KNOWLEDGE_JUDGED = 0.25
_INSTANCE_BOUNDS = (0.70, 0.90)
_MOST_REDRAWS = 20_000


def split_of(group_id: str, knowledge: bool) -> Split:
    """The split that a group belongs to. A fact belongs to "train" or "judged" (and is taught to nano besides)."""
    place = int.from_bytes(blake2b(group_id.encode(), digest_size=8).digest(), "big") / 2**64
    if knowledge:
        return "judged" if place < _KNOWLEDGE_JUDGED else "train"
    if place < _INSTANCE_BOUNDS[0]:
        return "nano-train"
    return "train" if place < _INSTANCE_BOUNDS[1] else "judged"


def draw(rng: Random, split: Split, family: str, level: Level) -> Task:
    """One task of `split`; the same state of `rng` gives the same task. Prompts may repeat between calls."""
    draft = _draft(rng, split, family, level)
    prompt = dress(rng, draft.render(rng, split != "nano-train"))
    query_id = f"nano-{blake2b(prompt.encode(), digest_size=6).hexdigest()}"
    return Task(query_id, family, level, prompt, draft.answer, draft.grader, draft.group, split)


def generate(split: Split, n: int, seed: int) -> list[Task]:
    """`n` tasks of `split` with distinct prompts, in a fixed mix of levels and families, shuffled by `seed`.

    Raises ValueError for an unknown split, a negative `n`, or more tasks than a family can word differently.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are: {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n must not be negative: {n}")
    rng = Random(f"{split}/{seed}")
    seen: set[str] = set()
    tasks = [_fresh(rng, split, family, level, seen) for level, family in _plan(n)]
    rng.shuffle(tasks)
    return tasks


def _fresh(rng: Random, split: Split, family: str, level: Level, seen: set[str]) -> Task:
    for _ in range(_MOST_REDRAWS):
        task = draw(rng, split, family, level)
        if task.prompt not in seen:
            seen.add(task.prompt)
            return task
    raise ValueError(f"no new {level} {family!r} prompt left for split {split!r}; ask for fewer tasks")


def _draft(rng: Random, split: Split, family: str, level: Level) -> Draft:
    make, knowledge = FAMILIES[family][0], family in _KNOWLEDGE
    taught = knowledge and split == "nano-train"
    while True:
        draft = make(rng, level)
        if taught or split_of(draft.group, knowledge) == split:
            return draft


def _plan(n: int) -> list[tuple[Level, str]]:
    """(level, family) of each of `n` tasks, in the fixed shares."""
    plan: list[tuple[Level, str]] = []
    for level, count in apportion(n, LEVEL_SHARES).items():
        shares = {family: share for family, (_, share) in FAMILIES.items()}
        parts = (repeat((level, family), k) for family, k in apportion(count, shares).items())
        plan.extend(chain.from_iterable(parts))
    return plan


def apportion(total: int, shares: Mapping[_Key, float]) -> dict[_Key, int]:
    """Whole numbers in the given shares (which sum to 1) that add up to `total`, by largest remainders."""
    counts = {key: int(total * share) for key, share in shares.items()}
    by_rest = sorted(shares, key=lambda key: counts[key] - total * shares[key])
    for key in by_rest[: total - sum(counts.values())]:
        counts[key] += 1
    return counts
