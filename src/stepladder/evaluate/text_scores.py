"""Graders of free text by closeness to a reference: BLEU and chrF by sacrebleu, METEOR by nltk; extra [text].

All give a quality in [0, 1]. They raise ValueError where the reference holds no word, MissingExtraError without the
extra.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from stepladder.errors import MissingExtraError
from stepladder.evaluate.wordnet import WordNet, find

EXTRA = "text"


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al. 2002), smoothed exponentially, with effective order: as sacrebleu gives it, / 100.

    Effective order leaves out n-grams longer than the texts; sacrebleu's tokenizer "13a", case counts.
    """
    return _share(_sacrebleu().BLEU(effective_order=True).sentence_score(text, [_worded(reference)]).score)


def chrf(text: str, reference: str) -> float:
    """chrF2 (Popović 2015): F-score of character n-grams up to 6, recall counting twice; sacrebleu's, / 100."""
    return _share(_sacrebleu().CHRF().sentence_score(text, [_worded(reference)]).score)


def meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee & Lavie 2005; alpha .9, beta 3, gamma .5) with exact, stem and synonym matches, by nltk.

    Its synonyms are those of WordNet: raises UsageError that says how to get its files where they are not at hand.
    Equal texts of m words score 1 - 0.5 / m³, not 1: that is the measure's own penalty for one chunk. nltk looks for
    synonyms among the stems of words, so that "auto" is found for "car" and "automobile" (stem "automobil") is not; its
    numbers are kept as they are, to be those that others print.
    """
    return _meteor(text, reference, _wordnet())


def meteor_exact_stem(text: str, reference: str) -> float:
    """METEOR without synonyms: matches of equal words and equal stems alone. Its numbers are lower than METEOR's."""
    return _meteor(text, reference, _NoSynonyms())


def _meteor(text: str, reference: str, synonyms: _Synonyms) -> float:
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise MissingExtraError("METEOR", EXTRA) from error
    tokens = NLTKWordTokenizer().tokenize
    return float(single_meteor_score(tokens(_worded(reference)), tokens(text), wordnet=synonyms))


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingExtraError("BLEU and chrF", EXTRA) from error
    return metrics


def _worded(reference: str) -> str:
    if not reference.strip():
        raise ValueError(f"the reference holds no word: {reference!r}")
    return reference


def _share(score: float) -> float:
    """A score of 100, which rounding may have carried past it."""
    return min(1.0, score / 100.0)


# ── the part of nltk's WordNet reader that its METEOR asks ───────────────────


class _Synonyms(Protocol):
    def synsets(self, word: str) -> Iterable[_Synset]: ...


@dataclass(frozen=True, slots=True)
class _Lemma:
    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class _Synset:
    words: frozenset[str]

    def lemmas(self) -> list[_Lemma]:
        return [_Lemma(word) for word in self.words]


class _NoSynonyms:
    def synsets(self, word: str) -> Iterable[_Synset]:
        del word
        return ()


@dataclass(frozen=True, slots=True)
class _FromWordNet:
    """All synonyms of a word as one set: METEOR joins the sets of its meanings anyway."""

    words: WordNet

    def synsets(self, word: str) -> Iterable[_Synset]:
        return (_Synset(self.words.synonyms(word)),)


@cache
def _wordnet() -> _FromWordNet:
    return _FromWordNet(WordNet(find()))
