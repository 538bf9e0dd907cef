"""Synonyms from the files of Princeton's WordNet, which METEOR matches words by.

The files (``index.noun``, ``data.noun`` and so on) do not come with any package of Python's; where they are looked for
is in ``find``. Their form is that of wndb(5WN), the way from an inflected word to its base that of morphy(7WN).
"""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from stepladder.errors import UsageError

PARTS = ("noun", "verb", "adj", "adv")
SYSTEM_FOLDERS = (
    "/usr/share/wordnet",  # Debian's and Ubuntu's package wordnet-base
    "/usr/share/wordnet-3.0/dict",  # Fedora's
    "/usr/local/WordNet-3.0/dict",  # Princeton's own installer
    "/opt/homebrew/opt/wordnet/dict",
)
HOW_TO_GET = (
    "apt-get install wordnet-base, or python -m nltk.downloader -d ~/nltk_data wordnet and unzip it there; files that "
    "lie elsewhere are found through the environment variable WNSEARCHDIR"
)

_ENDINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
_BIGGEST_CACHE = 65_536


class WordNet:
    """The word lists in one folder. Raises UsageError where a file is missing or is not of WordNet's form."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = {part: self._lines(f"index.{part}") for part in PARTS}
        self._exceptions = {part: _exceptions(self._lines(f"{part}.exc")) for part in PARTS}
        self._data = {part: self._mapped(f"data.{part}") for part in PARTS}
        self.synonyms = lru_cache(_BIGGEST_CACHE)(self._synonyms)

    def _synonyms(self, word: str) -> frozenset[str]:
        """Single words that share a meaning with ``word`` or a base of it, any part of speech; itself where known."""
        found = (
            other
            for part in PARTS
            for base in self._bases(word.lower(), part)
            for offset in self._offsets(base, part)
            for other in self._words(part, offset)
        )
        return frozenset(other for other in found if "_" not in other)

    def _bases(self, word: str, part: str) -> list[str]:
        """The word and the forms that it may be an inflection of, those that the index holds."""
        listed = self._exceptions[part].get(word)
        forms = _detached(word, part) if listed is None else listed
        return self._known((word, *forms), part)

    def _known(self, forms: Iterable[str], part: str) -> list[str]:
        return [form for form in dict.fromkeys(forms) if self._offsets(form, part)]

    def _offsets(self, lemma: str, part: str) -> list[int]:
        """Where the meanings of a base form stand in the data file."""
        key, lines = f"{lemma} ".encode(), self._index[part]
        place = bisect_left(lines, key)
        if place == len(lines) or not lines[place].startswith(key):
            return []
        fields = lines[place].split()
        return [int(field) for field in fields[-int(fields[2]) :]]

    def _words(self, part: str, offset: int) -> Iterator[str]:
        data = self._data[part]
        fields = data[offset : data.find(b"\n", offset)].split()
        if not fields or fields[0] != b"%08d" % offset:
            raise UsageError(f"{self.folder}: data.{part} and index.{part} are not of one version of WordNet")
        for place in range(int(fields[3], 16)):
            yield fields[4 + 2 * place].decode().partition("(")[0]  # adjectives may carry a marker: "afloat(p)"

    def _lines(self, name: str) -> list[bytes]:
        try:
            return (self.folder / name).read_bytes().splitlines()
        except OSError as error:
            raise UsageError(f"{self.folder / name}: cannot be read: {error.strerror or error}") from error

    def _mapped(self, name: str) -> mmap.mmap:
        try:
            with (self.folder / name).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: a file of no length
            raise UsageError(f"{self.folder / name}: cannot be read: {error}") from error


def folders() -> list[Path]:
    """Where the files may lie, in the order in which they are looked for; the named folder alone where one is named."""
    named = os.environ.get("WNSEARCHDIR")
    if named:
        return [Path(named)]
    nltk = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), str(Path.home() / "nltk_data")]
    nltk += [f"{sys.prefix}/nltk_data", "/usr/share/nltk_data", "/usr/local/share/nltk_data"]
    return [*map(Path, SYSTEM_FOLDERS), *(Path(place, "corpora", "wordnet") for place in nltk if place)]


def find() -> Path:
    """The first folder that holds WordNet's files. Raises UsageError that says how they can be got."""
    searched = folders()
    for folder in searched:
        if (folder / "index.noun").is_file():
            return folder
    place = f"in {searched[0]}" if len(searched) == 1 else "on this machine"
    raise UsageError(f"METEOR needs WordNet's files, which are not {place}: {HOW_TO_GET}")


def _exceptions(lines: Iterable[bytes]) -> dict[str, tuple[str, ...]]:
    split = (line.decode().split() for line in lines)
    return {words[0]: tuple(words[1:]) for words in split if words}


def _detached(word: str, part: str) -> tuple[str, ...]:
    """The word with each ending of the part of speech that it has taken off or replaced."""
    return tuple(word[: -len(ending)] + instead for ending, instead in _ENDINGS[part] if word.endswith(ending))
