"""Family "strings": reversing, sorting, counting and picking from short lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from stepladder.evaluate.tasks import Level

from .draft import Draft
from .facts import tables
from .wording import phrase

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = (
    "apple ball bird boat bread bridge candle car chair cloud coat cow dog door egg fish flag flower fork frog "
    "garden gate glass goat hat hill horse house ice ink jar key king kite lake lamp leaf lemon lion milk moon "
    "mouse nail nest nut ocean onion orange owl paper pen pig plate pond queen rain ring river road rock rose "
    "salt sand ship shoe snow spoon star stone sun table tiger tower tree uncle van vase water whale wheel window "
    "wolf yard zebra"
)
WORDS = tuple(_WORDS.split())
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def strings(rng: Random, level: Level) -> Draft:
    """One question about a list; longer lists and composed steps at higher levels."""
    return rng.choice(_MAKERS[level])(rng)


def _draft(kind: str, items: Sequence[str], answer: str, grader: str = "exact", **slots: str) -> Draft:
    listed = " ".join(items)
    group = ":".join(["strings", kind, listed, *slots.values()])
    return Draft(partial(_render, kind, {**slots, "items": listed}), answer, grader, group)


def _render(kind: str, slots: dict[str, str], rng: Random, heldout: bool) -> str:
    return phrase(rng, kind, heldout, slots)


def _reverse(fewest: int, most: int, rng: Random) -> Draft:
    count = rng.randint(fewest, most)
    pool = WORDS if rng.random() < 0.4 else LETTERS
    items = rng.sample(pool, count)
    return _draft("reverse", items, " ".join(reversed(items)))


def _sort_numbers(fewest: int, most: int, highest: int, rng: Random) -> Draft:
    numbers = rng.sample(range(1, highest + 1), rng.randint(fewest, most))
    return _draft("sort_numbers", [str(n) for n in numbers], " ".join(str(n) for n in sorted(numbers)))


def _sort_words(fewest: int, most: int, rng: Random) -> Draft:
    words = rng.sample(WORDS, rng.randint(fewest, most))
    return _draft("sort_words", words, " ".join(sorted(words)))


def _count_items(fewest: int, most: int, rng: Random) -> Draft:
    words = rng.sample(WORDS, rng.randint(fewest, most))
    return _draft("count_items", words, str(len(words)), "numeric")


def _nth(fewest: int, most: int, rng: Random) -> Draft:
    words = rng.sample(WORDS, rng.randint(fewest, most))
    place = rng.randrange(len(words))
    return _draft("nth", words, words[place], nth=ORDINALS[place])


def _count_of(fewest: int, most: int, rng: Random) -> Draft:
    few = rng.sample(LETTERS, 3)
    items = [rng.choice(few) for _ in range(rng.randint(fewest, most))]
    wanted = rng.choice(items)
    return _draft("count_of", items, str(items.count(wanted)), "numeric", x=wanted)


def _nth_smallest(fewest: int, most: int, rng: Random) -> Draft:
    numbers = rng.sample(range(1, 100), rng.randint(fewest, most))
    place = rng.randrange(1, len(numbers) - 1)
    answer = str(sorted(numbers)[place])
    return _draft("nth_smallest", [str(n) for n in numbers], answer, "numeric", nth=ORDINALS[place])


def _spell_back(rng: Random) -> Draft:
    word = rng.choice(tables()[rng.choice(("simple", "medium"))].words).word
    return _draft("spell_back", (), " ".join(reversed(word)), word=word)


def _unique(rng: Random) -> Draft:
    few = rng.sample(WORDS, rng.randint(4, 6))
    items = few + [rng.choice(few) for _ in range(rng.randint(2, 4))]
    rng.shuffle(items)
    return _draft("unique", items, " ".join(dict.fromkeys(items)))


_MAKERS = {
    "simple": (
        partial(_reverse, 3, 4),
        partial(_sort_numbers, 3, 3, 9),
        partial(_count_items, 2, 6),
        partial(_nth, 3, 5),
    ),
    "medium": (
        partial(_reverse, 5, 7),
        partial(_sort_numbers, 4, 6, 99),
        partial(_nth, 6, 9),
        partial(_count_of, 7, 12),
        partial(_sort_words, 3, 4),
    ),
    "complex": (
        partial(_reverse, 9, 12),
        partial(_sort_numbers, 7, 9, 999),
        partial(_sort_words, 5, 8),
        partial(_nth_smallest, 5, 8),
        _spell_back,
        _unique,
    ),
}
