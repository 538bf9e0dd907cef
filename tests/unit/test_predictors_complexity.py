"""How complex a question is."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.errors import ArtifactError
from stepladder.predictors.complexity import CLASSES, PAPER_PROMPTS, LearnedComplexity, rules
from stepladder.predictors.grams import BUCKETS, DENSE, READ_CHARS, _tokens, excerpt, hashed_grams

WEIRD = [
    "",
    " ",
    "\x00",
    "🪜" * 300,
    "\udc80",
    "なぜ",
    "a" * 1_000_000,
    "\n".join("x" for _ in range(5000)),
    "\n" * 9000,
]


@pytest.mark.parametrize(("prompt", "label"), PAPER_PROMPTS)
def test_rules_label_the_papers_prompts_as_the_paper_does(prompt: str, label: str) -> None:
    assert rules(prompt) == label


def test_the_papers_mix_is_4_3_3() -> None:
    labels = [label for _, label in PAPER_PROMPTS]
    assert [labels.count(name) for name in CLASSES] == [4, 3, 3]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Thanks!", "simple"),
        ("WHY IS THE SKY BLUE?", "medium"),
        ("光合成を説明してください", "medium"),
        ("分散システムを設計して", "complex"),
        ("Write a Python function that reverses a list.", "complex"),
        ("What does this print?\n```\nprint(1)\n```", "complex"),
        ("word " * 45, "medium"),
        ("word " * 200, "complex"),
        ("語" * 2000, "complex"),
        ("", "simple"),
    ],
)
def test_rules_by_words_structure_and_length(text: str, label: str) -> None:
    assert rules(text) == label


def test_long_texts_are_read_at_both_ends() -> None:
    assert excerpt("x" * READ_CHARS) == "x" * READ_CHARS
    assert excerpt("a" * 600 + "b" * 600) == "a" * 500 + "b" * 500


@pytest.mark.parametrize("text", WEIRD)
def test_weird_texts_get_probabilities(text: str) -> None:
    rng = np.random.default_rng(0)
    learned = LearnedComplexity(rng.normal(size=(BUCKETS + DENSE, 3)) * 5, np.zeros(3))
    chances = learned.proba(text)
    assert sum(chances) == pytest.approx(1.0)
    assert all(chance >= 0 for chance in chances)
    assert rules(text) in CLASSES


def test_hashing_is_stable_across_processes_and_machines() -> None:
    rows, amounts = hashed_grams("Hi you 12")
    assert rows.tolist() == [*HI_YOU_12, BUCKETS, BUCKETS + 1]
    assert amounts[:-2].tolist() == pytest.approx([1 / np.sqrt(len(HI_YOU_12))] * len(HI_YOU_12))
    assert hashed_grams("HI YOU 99")[0].tolist() == rows.tolist()
    assert rows.max() < BUCKETS + DENSE
    assert rows.min() >= 0


@given(st.text(alphabet="abZ09_é日 \n\t\x0b\x0c\x1c\x00.,-'\"()%", max_size=60))
def test_signs_stand_alone_and_words_together(text: str) -> None:
    data = text.encode()
    assert _tokens(data) == re.findall(rb"[\w\x80-\xff]+|[^\w\s\x80-\xff]", data)


HI_YOU_12: list[int] = [10231, 16178, 11684, 16197, 15792, 14879, 2215, 13542, 1124, 8256, 8137]


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ArtifactError, match="should have weights"):
        LearnedComplexity(np.zeros((4, 3)), np.zeros(3))
    with pytest.raises(ArtifactError, match="complexity_weights"):
        LearnedComplexity.from_arrays({})
