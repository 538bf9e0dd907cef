"""BLEU, chrF and METEOR: the values that their libraries publish, and what is said where something is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.errors import MissingExtraError, UsageError
from stepladder.evaluate import text_scores, wordnet
from stepladder.evaluate.graders import grade
from stepladder.evaluate.text_scores import bleu, chrf, meteor, meteor_exact_stem

SCORES = ("bleu", "chrf", "meteor_exact_stem")
WORDS = st.lists(st.sampled_from(["a", "red", "bird", "birds", "that", "sings", "."]), min_size=1, max_size=9)
GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
GUIDED = "It is a guide to action that ensures that the military will forever heed Party commands"

LICENCE = "  1 This stands for the licence that the files begin with.\n"
NOUNS = "00000059 06 n 02 car 0 auto 0 000 | a motor vehicle\n"
VERBS = "00000059 38 v 02 stop 0 come_to_rest 0 000 | come to a halt\n"


@pytest.fixture
def few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A WordNet of three words and one exception."""
    files = {
        "index.noun": "auto n 1 0 1 1 00000059\ncar n 1 0 1 1 00000059\n",
        "index.verb": "come_to_rest v 1 0 1 1 00000059\nstop v 1 0 1 1 00000059\n",
        "data.noun": NOUNS,
        "data.verb": VERBS,
        "verb.exc": "stopt stop\n",
    }
    for part in wordnet.PARTS:
        for name in (f"index.{part}", f"data.{part}", f"{part}.exc"):
            (tmp_path / name).write_text(("" if name.endswith("exc") else LICENCE) + files.get(name, ""))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    text_scores._wordnet.cache_clear()
    yield tmp_path
    text_scores._wordnet.cache_clear()


# ── values ───────────────────────────────────────────────────────────────────


def test_bleu_by_hand() -> None:
    # 6, 5, 4 and 3 n-grams match by 6/6, 4/5, 2/4 and 1/3; brevity penalty exp(1 - 7/6). sacrebleu prints 51.15.
    assert bleu("The dog bit the man.", "The dog had bit the man.") == pytest.approx(0.5115, abs=5e-5)
    assert bleu("a b c", "a b c") == 1.0, "shorter than four words, and no more than 1 by rounding"
    assert bleu("", "a b c") == 0.0


def test_chrf_by_hand() -> None:
    # Precision 1; recall 2/3 of letters and 1/2 of pairs, 7/12 on average; F2 = 5 PR / (4 P + R).
    assert chrf("ab", "abc") == pytest.approx(5 * (7 / 12) / (4 + 7 / 12))
    assert chrf("ab", "abc") == chrf("a b", "ab c"), "white space does not count"
    assert chrf("xyz", "abc") == 0.0


def test_meteor_is_nltks(few_words: Path) -> None:
    # The value in nltk's own documentation of single_meteor_score, which owes nothing to synonyms.
    assert meteor_exact_stem(GUIDE, GUIDED) == meteor(GUIDE, GUIDED) == pytest.approx(0.6944, abs=5e-5)


def test_synonyms_count_in_meteor_alone(few_words: Path) -> None:
    text, reference = "the car stopped", "the auto stopped"
    assert meteor(text, reference) == pytest.approx(1 - 0.5 / 27), "three words in one chunk"
    # Two of three words, in two chunks: F = 2/3, halved by the penalty.
    assert meteor_exact_stem(text, reference) == pytest.approx(1 / 3)
    assert meteor("cats", "cat") == meteor_exact_stem("cats", "cat") == 0.5, "one stem"
    assert meteor("dog", "cat") == 0.0


def test_wordnet_finds_bases(few_words: Path) -> None:
    words = wordnet.WordNet(wordnet.find())
    assert words.synonyms("cars") == words.synonyms("Auto") == {"car", "auto"}
    assert words.synonyms("stopt") == {"stop"}, "an exception; phrases are no synonyms of a word"
    assert words.synonyms("stops") == {"stop"}
    assert words.synonyms("ca") == words.synonyms("zebra") == frozenset()


@pytest.mark.skipif(not any((folder / "index.noun").is_file() for folder in wordnet.folders()), reason="no WordNet")
def test_the_whole_wordnet() -> None:
    words = wordnet.WordNet(wordnet.find())
    assert {"auto", "automobile"} <= words.synonyms("cars")
    assert "child" in words.synonyms("children")
    assert "better" in words.synonyms("good") | words.synonyms("better")
    assert meteor("the car stopped", "the auto stopped") > meteor_exact_stem("the car stopped", "the auto stopped")


# ── laws ─────────────────────────────────────────────────────────────────────


@given(text=WORDS, reference=WORDS)
@settings(max_examples=60, deadline=None)
def test_scores_stay_in_the_unit_interval(text: list[str], reference: list[str]) -> None:
    for name in SCORES:
        assert 0.0 <= grade(name, " ".join(text), " ".join(reference)) <= 1.0


@given(text=st.text(max_size=40), words=WORDS)
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_scored_and_none_beats_the_reference(text: str, words: list[str]) -> None:
    reference = " ".join(words)
    for name in SCORES:
        assert grade(name, text, reference) <= grade(name, reference, reference) + 1e-9


@pytest.mark.parametrize("name", [*SCORES, "meteor"])
def test_a_reference_without_words_is_a_mistake(name: str, few_words: Path) -> None:
    with pytest.raises(ValueError, match="the reference holds no word"):
        grade(name, "a", " \n")


# ── what is missing ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "module"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("meteor_exact_stem", "nltk")]
)
def test_the_extra_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[text\]"):
        grade(name, "a", "a")


def test_without_wordnet_there_is_no_meteor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "folders", lambda: [tmp_path])
    text_scores._wordnet.cache_clear()
    with pytest.raises(UsageError, match=r"wordnet-base.*WNSEARCHDIR"):
        meteor("a", "a")
    assert meteor_exact_stem("a b", "a b") > 0


def test_a_folder_that_is_named_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    with pytest.raises(UsageError, match=f"which are not in {tmp_path}"):
        wordnet.find()


def test_folders_of_nltk_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert tmp_path / "corpora" / "wordnet" in wordnet.folders()


@pytest.mark.parametrize("name", ["index.adv", "data.verb", "noun.exc"])
def test_a_file_that_is_missing_is_named(name: str, few_words: Path) -> None:
    (few_words / name).unlink()
    with pytest.raises(UsageError, match=f"{name}: cannot be read"):
        wordnet.WordNet(few_words)


def test_an_empty_file_is_named(few_words: Path) -> None:
    (few_words / "data.noun").write_text("")
    with pytest.raises(UsageError, match=r"data\.noun: cannot be read"):
        wordnet.WordNet(few_words)


def test_files_of_two_versions_are_refused(few_words: Path) -> None:
    (few_words / "data.noun").write_text(LICENCE + "\n" + NOUNS)
    with pytest.raises(UsageError, match=r"data\.noun and index\.noun are not of one version"):
        wordnet.WordNet(few_words).synonyms("car")
