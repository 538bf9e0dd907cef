"""Small outcomes tables for tests: stages whose quality follows from the question, or from chance."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stepladder.evaluate.aligned import Aligned, Pricing, align
from stepladder.evaluate.outcomes import OutcomeRow

REPLAY_LADDER = """
[costs]
model = "fixed"
[[stages]]
name = "a"
engine = "replay"
model = "a"
cost = 1
table = "TABLE"
"""
"""A ladder of one stage that answers from the table put in TABLE's place."""

STAGES = ("small", "medium", "large")
RIGHT = {"simple": (0.9, 0.95, 0.97), "medium": (0.3, 0.9, 0.93), "complex": (0.05, 0.3, 0.9)}
ASKED = {
    "simple": "What is {0}+{1}?",
    "medium": "Explain why river {0} is longer than {1}",
    "complex": "Prove lemma {0} about {1} primes",
}


def make_row(query_id: str, model: str, quality: float, **more: object) -> OutcomeRow:
    return OutcomeRow(query_id=query_id, model=model, quality=quality, **({"prompt": f"question {query_id}"} | more))  # type: ignore[arg-type]


def make_table(queries: int, *, seed: int = 0, models: Sequence[str] = STAGES) -> list[OutcomeRow]:
    """Right or wrong answers drawn by the class of the question; three quarters are of split train."""
    chance, rows = random.Random(seed), []
    for number in range(queries):
        level = chance.choice(list(RIGHT))
        prompt = ASKED[level].format(number, chance.randrange(1000))
        split = "train" if number % 4 else "validation"
        for model, right in zip(models, RIGHT[level], strict=True):
            rows.append(
                make_row(
                    f"q{seed}-{number}",
                    model,
                    float(chance.random() < right),
                    dataset="made",
                    prompt=prompt,
                    split=split,
                    level=level,
                    prompt_tokens=10,
                    output_tokens=20 + 10 * models.index(model),
                )
            )
    return rows


def make_aligned(queries: int, *, seed: int = 0, pricing: Pricing = (1.0, 2.0, 4.0)) -> Aligned:
    return align(make_table(queries, seed=seed), STAGES, pricing=pricing)
