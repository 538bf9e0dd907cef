"""Build the fact tables of the nano tasks from WordNet 3.0 (Debian package wordnet-base) and plain_facts.py.

    apt-get install wordnet-base
    python3 tools/nano/build_tables.py

writes src/stepladder/evaluate/tasks/nano/tables.json.gz (deterministic: the same input gives the same bytes).
Every word has one gloss and every gloss one word, so a definition can be asked in both directions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import plain_facts

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "src/stepladder/evaluate/tasks/nano/tables.json.gz"
POS_OF_SENSE_KEY = {"1": "noun", "2": "verb", "3": "adj", "5": "adj", "4": "adv"}
PLAIN_WORD = re.compile(r"[a-z]{3,12}")
PLAIN_GLOSS = re.compile(r"[a-z][a-z0-9 ,'-]*[a-z0-9]")
# Left out: glosses that mark a word as offensive, and subjects that a demonstration need not teach.
UNWANTED = re.compile(
    r"sexual|prostitut|genital|offensive|obscen|slur\b|vulgar|disparag|derogat|copulat|nazi|excrement|anus"
)


@dataclass(frozen=True, slots=True)
class Grade:
    """How many words one level takes, and the longest gloss (in words) it admits."""

    level: str
    words: int
    longest_gloss: int


GRADES = (Grade("simple", 480, 6), Grade("medium", 2500, 8), Grade("complex", 8500, 10))


@dataclass(frozen=True, slots=True)
class Entry:
    """One sense: a word, its part of speech, a short gloss and how often the sense was tagged in WordNet's corpora."""

    word: str
    pos: str
    gloss: str
    tags: int


def tag_counts(folder: Path) -> dict[tuple[str, str], int]:
    """Tag count of the first sense of each (lemma, part of speech), from cntlist.rev."""
    counts: dict[tuple[str, str], int] = {}
    for line in (folder / "cntlist.rev").read_text("latin-1").splitlines():
        key, sense, count = line.split()
        lemma, rest = key.split("%", 1)
        if sense == "1":
            counts[lemma, POS_OF_SENSE_KEY[rest[0]]] = int(count)
    return counts


def short_gloss(gloss: str) -> str:
    """The first clause of a gloss, without examples and remarks in parentheses."""
    text = re.sub(r"\([^)]*\)", " ", re.split('[;"]', gloss, maxsplit=1)[0])
    return " ".join(text.split()).strip(" ,:").lower()


def glosses(folder: Path, pos: str) -> dict[str, str]:
    """Short gloss of each synset offset of one part of speech."""
    found: dict[str, str] = {}
    for line in (folder / f"data.{pos}").read_text("latin-1").splitlines():
        if not line.startswith(" "):
            head, gloss = line.split(" | ", 1)
            found[head.split()[0]] = "" if UNWANTED.search(gloss) else short_gloss(gloss)
    return found


def first_senses(folder: Path, pos: str) -> Iterator[tuple[str, str]]:
    """(lemma, synset offset of its first sense) for one part of speech."""
    for line in (folder / f"index.{pos}").read_text("latin-1").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            yield fields[0], fields[-int(fields[2])]


def usable(word: str, gloss: str) -> bool:
    """A plain word with a plain gloss of 2 to 10 words that does not give the word away."""
    if not PLAIN_WORD.fullmatch(word) or not PLAIN_GLOSS.fullmatch(gloss):
        return False
    return 2 <= len(gloss.split()) <= 10 and word[:5] not in gloss


def stable_order(text: str) -> str:
    """A fixed pseudo-random sort key, so that ties of tag count are not broken alphabetically."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def entries(folder: Path) -> list[Entry]:
    """All usable senses, most often tagged first."""
    counts = tag_counts(folder)
    found: list[Entry] = []
    for pos in ("noun", "verb", "adj", "adv"):
        texts = glosses(folder, pos)
        for lemma, offset in first_senses(folder, pos):
            if usable(lemma, texts[offset]):
                found.append(Entry(lemma, pos, texts[offset], counts.get((lemma, pos), 0)))
    return sorted(found, key=lambda e: (-e.tags, stable_order(e.word + e.pos)))


def one_to_one(ordered: list[Entry]) -> list[Entry]:
    """Keep the first entry of each word and of each gloss."""
    words: set[str] = set()
    texts: set[str] = set()
    kept: list[Entry] = []
    for entry in ordered:
        if entry.word not in words and entry.gloss not in texts:
            kept.append(entry)
        words.add(entry.word)
        texts.add(entry.gloss)
    return kept


def graded_words(ordered: list[Entry]) -> dict[str, list[list[str]]]:
    """Level -> [word, part of speech, gloss] rows: the commonest words with the shortest glosses are simple."""
    left = list(ordered)
    levels: dict[str, list[list[str]]] = {}
    for grade in GRADES:
        taken = [e for e in left if len(e.gloss.split()) <= grade.longest_gloss][: grade.words]
        chosen = {e.word for e in taken}
        left = [e for e in left if e.word not in chosen]
        levels[grade.level] = [[e.word, e.pos, e.gloss] for e in taken]
    return levels


def element_rows() -> dict[str, list[list[str | int]]]:
    """Level -> [name, symbol, atomic number] rows."""
    levels: dict[str, list[list[str | int]]] = {"simple": [], "medium": [], "complex": []}
    for number, item in enumerate(plain_facts.ELEMENTS.replace("\n", "").split(","), start=1):
        name, symbol = item.split()
        medium = "medium" if name in plain_facts.MEDIUM_ELEMENTS else "complex"
        levels["simple" if name in plain_facts.SIMPLE_ELEMENTS else medium].append([name, symbol, number])
    return levels


def capital_rows(text: str) -> list[list[str]]:
    """[country, capital] rows of one level."""
    return [line.split(": ") for line in text.strip().splitlines()]


def main() -> None:
    """Write the tables and print how many facts each level got."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    folder = parser.parse_args().wordnet
    capitals = {
        "simple": capital_rows(plain_facts.SIMPLE_CAPITALS),
        "medium": capital_rows(plain_facts.MEDIUM_CAPITALS),
        "complex": capital_rows(plain_facts.COMPLEX_CAPITALS),
    }
    tables = {"words": graded_words(one_to_one(entries(folder))), "elements": element_rows(), "capitals": capitals}
    raw = json.dumps(tables, ensure_ascii=True, separators=(",", ":")).encode()
    TABLES.write_bytes(gzip.compress(raw, 9, mtime=0))
    for name, levels in tables.items():
        print(name, {level: len(rows) for level, rows in levels.items()})
    print(f"{len(raw)} bytes, {TABLES.stat().st_size} compressed")


if __name__ == "__main__":
    main()
