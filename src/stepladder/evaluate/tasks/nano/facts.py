"""Families "facts" and "choice": word meanings, capitals and elements, asked in both directions or with options."""

from __future__ import annotations

import gzip
import json
from functools import cache, partial
from importlib.resources import files
from random import Random
from typing import NamedTuple

from stepladder.evaluate.tasks import Level

from .draft import Draft
from .wording import phrase

# How often the plain facts come up beside the words; there are few of them, so they are asked seldom.
_CAPITAL_SHARE = 0.08
_ELEMENT_SHARE = 0.06
_OPTIONS: dict[Level, int] = {"simple": 3, "medium": 4, "complex": 4}


class Word(NamedTuple):
    """A word with its part of speech and its short gloss."""

    word: str
    pos: str
    gloss: str


class Tables(NamedTuple):
    """The facts of one level: words, (country, capital) pairs, (element, symbol, atomic number) rows."""

    words: tuple[Word, ...]
    capitals: tuple[tuple[str, str], ...]
    elements: tuple[tuple[str, str, int], ...]


@cache
def tables() -> dict[str, Tables]:
    """The facts by level, read from the package's compressed table at the first call and kept."""
    raw = json.loads(gzip.decompress((files(__package__) / "tables.json.gz").read_bytes()))
    return {
        level: Tables(
            tuple(Word(*row) for row in raw["words"][level]),
            tuple((country, capital) for country, capital in raw["capitals"][level]),
            tuple((name, symbol, number) for name, symbol, number in raw["elements"][level]),
        )
        for level in ("simple", "medium", "complex")
    }


def fact(rng: Random, level: Level) -> Draft:
    """A fact asked openly: a gloss is graded by ROUGE-L, everything else exactly."""
    roll = rng.random()
    if roll < _CAPITAL_SHARE:
        return _capital(rng, level)
    if roll < _CAPITAL_SHARE + _ELEMENT_SHARE:
        return _element(rng, level)
    return _definition(rng, rng.choice(tables()[level].words))


def choice(rng: Random, level: Level) -> Draft:
    """A fact asked with three or four options, one letter to answer."""
    roll, facts = rng.random(), tables()[level]
    if roll < _CAPITAL_SHARE:
        country, capital = rng.choice(facts.capitals)
        others = [other for _, other in facts.capitals]
        question = Question("choose_capital", {"country": country}, capital, f"capital:{country}")
        return _options(rng, level, question, others)
    if roll < _CAPITAL_SHARE + _ELEMENT_SHARE:
        name, symbol, _ = rng.choice(facts.elements)
        others = [other for _, other, _ in facts.elements]
        return _options(rng, level, Question("choose_symbol", {"element": name}, symbol, f"element:{name}"), others)
    entry = rng.choice(facts.words)
    others = [rng.choice(facts.words).word for _ in range(8)]
    question = Question("choose_word", {"gloss": entry.gloss}, entry.word, f"word:{entry.word}")
    return _options(rng, level, question, others)


def _draft(kind: str, slots: dict[str, str], answer: str, grader: str, group: str) -> Draft:
    return Draft(partial(_render, kind, slots), answer, grader, group)


def _render(kind: str, slots: dict[str, str], rng: Random, heldout: bool) -> str:
    return phrase(rng, kind, heldout, slots)


def _definition(rng: Random, entry: Word) -> Draft:
    group = f"word:{entry.word}"
    if rng.random() < 0.5:
        return _draft("word_for", {"gloss": entry.gloss}, entry.word, "exact", group)
    article = "an" if entry.word[0] in "aeiou" else "a"
    kind = "define_noun" if entry.pos == "noun" and rng.random() < 0.5 else "define"
    slots = {"word": entry.word, "a_word": f"{article} {entry.word}"}
    return _draft(kind, slots, entry.gloss, "rouge_l", group)


def _capital(rng: Random, level: Level) -> Draft:
    country, capital = rng.choice(tables()[level].capitals)
    slots = {"country": country, "capital": capital}
    if rng.random() < 0.5:
        return _draft("capital_of", slots, capital, "exact", f"capital:{country}")
    return _draft("country_of", slots, country, "exact", f"capital:{country}")


def _element(rng: Random, level: Level) -> Draft:
    name, symbol, number = rng.choice(tables()[level].elements)
    slots = {"element": name, "symbol": symbol}
    kinds = (("symbol_of", symbol, "exact"), ("element_of", name, "exact"), ("number_of", str(number), "numeric"))
    kind, answer, grader = rng.choice(kinds)
    return _draft(kind, slots, answer, grader, f"element:{name}")


class Question(NamedTuple):
    """A question to be given options: its kind of phrasing, its slots, the right option and the fact's group."""

    kind: str
    slots: dict[str, str]
    right: str
    group: str


def _options(rng: Random, level: Level, question: Question, others: list[str]) -> Draft:
    wrong = sorted(set(others) - {question.right})
    shown = [question.right, *rng.sample(wrong, _OPTIONS[level] - 1)]
    rng.shuffle(shown)
    text = " ".join(f"{letter}) {option}" for letter, option in zip("ABCD", shown, strict=False))
    answer = "ABCD"[shown.index(question.right)]
    return _draft(question.kind, {**question.slots, "options": text}, answer, "choice", question.group)
