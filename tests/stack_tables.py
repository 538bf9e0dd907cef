"""Small tables and stacks for tests, each fitted once a session and with few trees."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from outcome_tables import make_row
from stepladder.evaluate.aligned import Aligned, align
from stepladder.predictors.artifact import Artifact
from stepladder.train import boost, choose, stack
from stepladder.train.stack import Stacked, fit_stack

SMALL = ("a", "b")
SIGNALS = ("word", "task", "kin", "answer")
PLACES = ("river", "tower", "market", "castle", "garden", "harbour", "bridge", "valley")
TOPICS = 12
OTHERS = 6
"""Models of the small table that are no stage."""


def small(queries: int = 160, *, seed: int = 0, flipped: int | None = None, others: bool = False) -> Aligned:
    """Two tasks, two queries a group. Stage a is right where no prime is asked for; stage b but for one in ten.

    ``flipped`` is a group whose qualities are told the wrong way round.
    """
    chance, rows = np.random.default_rng(seed), []
    for number in range(queries):
        task, hard = ("sums", "places")[number % 4 // 2], bool(chance.integers(2))
        place, drawn = PLACES[int(chance.integers(len(PLACES)))], int(chance.integers(10**6))
        what = "prime" if hard else "number"
        prompt = f"Add the {what} {drawn} to 7" if task == "sums" else f"Which {what} of houses has {place} {drawn}?"
        right = {"a": float(not hard), "b": float(chance.random() < 0.9)}
        more = {f"m{i}": float(chance.random() < (0.3 if hard else 0.8)) for i in range(OTHERS if others else 0)}
        for name, quality in {**right, **more}.items():
            told = 1.0 - quality if number // 2 == flipped else quality
            more_of = {"pred": ("41", "42")[int(told)], "output_tokens": 10 + int(chance.integers(5))}
            group = f"g{seed}-{number // 2}"
            rows.append(
                make_row(f"{seed}-{number}", name, told, prompt=prompt, dataset=task, group_id=group, **more_of)
            )
    return align(rows, SMALL, pricing=(1.0, 3.0))


def telling(queries: int = 450, seed: int = 1) -> Aligned:
    """Four stages, each with a signal of its own: a word of the prompt, its dataset, the words that it shares with
    prompts of the same kind, and nothing but what the answer says."""
    chance, rows = np.random.default_rng(seed), []
    vocabulary = [[f"{letter}{topic}{n}" for n in range(8)] for topic, letter in enumerate("abcdefghijkl"[:TOPICS])]
    of_topic = chance.permutation(np.arange(TOPICS) % 2)
    for number in range(queries):
        topic, word, task = int(chance.integers(TOPICS)), int(chance.integers(2)), int(chance.integers(2))
        said = chance.choice(vocabulary[topic], 6, replace=False).tolist()
        said.insert(int(chance.integers(6)), ("maybe", "surely")[word])
        prompt = " ".join([("tell me", "solve for x:")[task], *said, str(int(chance.integers(10**6)))])
        right = {"word": word, "task": task, "kin": int(of_topic[topic]), "answer": int(chance.integers(2))}
        for name in SIGNALS:
            pred = ("x", "a long and well reasoned answer of 42")[right[name]] if name == "answer" else "42"
            rows.append(
                make_row(f"{seed}-{number}", name, float(right[name]), prompt=prompt, dataset=f"d{task}", pred=pred)
            )
    return align(rows, SIGNALS, pricing=(1.0, 2.0, 3.0, 4.0))


def noise(queries: int = 500, seed: int = 2) -> Aligned:
    """Answers that are right by chance, to prompts of any words."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(queries):
        words = [f"w{int(word)}" for word in chance.integers(0, 400, 12)]
        rows += [
            make_row(f"{seed}-{number}", name, float(chance.random() < share), prompt=" ".join(words), pred=words[0])
            for name, share in (("a", 0.3), ("b", 0.7))
        ]
    return align(rows, SMALL, pricing=(1.0, 3.0))


def fitted(data: Aligned, seed: int = 0, trees: int = 30) -> Stacked:
    """A stack of few trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "TREES", trees)
        return fit_stack(data, seed)


@cache
def small_stack() -> Stacked:
    return fitted(small())


@cache
def both_profiles() -> Artifact:
    """The small stack with its profile fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost, "TREES", 10)
        return choose.with_fast(small_stack().artifact(SMALL), small(), 0)
