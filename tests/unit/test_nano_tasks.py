"""The nano tasks: splits that share nothing, a fixed mix, answers that their own graders accept."""

from __future__ import annotations

import operator
from collections import Counter
from datetime import date, timedelta
from functools import cache
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.evaluate.graders import grade
from stepladder.evaluate.tasks import Split, Task
from stepladder.evaluate.tasks.nano import FAMILIES, LEVEL_SHARES, SPLITS, apportion, draw, generate, split_of
from stepladder.evaluate.tasks.nano.dates import spoken
from stepladder.evaluate.tasks.nano.facts import tables
from stepladder.evaluate.tasks.nano.phrases import PHRASINGS
from stepladder.evaluate.tasks.nano.wording import normal_form, shown_template

SIZES: dict[Split, int] = {"nano-train": 5000, "train": 5000, "judged": 4000}
KNOWLEDGE = {"facts", "choice"}
SEEDS = st.integers(0, 2**32)


@cache
def sample(split: Split) -> tuple[Task, ...]:
    return tuple(generate(split, SIZES[split], seed=1))


def test_train_and_judged_share_no_group() -> None:
    assert not {t.group_id for t in sample("train")} & {t.group_id for t in sample("judged")}


def test_instances_of_nano_training_are_asked_nowhere_else() -> None:
    shown = {t.group_id for t in sample("nano-train") if t.family not in KNOWLEDGE}
    assert not shown & {t.group_id for split in ("train", "judged") for t in sample(split)}


def test_no_prompt_is_in_two_splits_or_twice_in_one() -> None:
    prompts = [t.prompt for split in SPLITS for t in sample(split)]
    assert len(set(prompts)) == len(prompts)


def test_the_judged_phrasings_are_never_shown_in_training() -> None:
    rng = Random(0)
    for kind, phrasing in PHRASINGS.items():
        shown = {normal_form(template) for template in phrasing.shown}
        shown |= {normal_form(shown_template(rng, kind)) for _ in range(1000)}
        assert len(phrasing.shown) >= 8, kind
        assert len(phrasing.heldout) >= 3, kind
        assert not shown & {normal_form(template) for template in phrasing.heldout}, kind


@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_answer_is_right(split: Split) -> None:
    wrong = [t for t in sample(split) if grade(t.grader, t.answer, t.answer) != 1.0]
    assert not wrong


@pytest.mark.parametrize("split", SPLITS)
def test_the_mix_is_fixed(split: Split) -> None:
    tasks = sample(split)
    levels = Counter(t.level for t in tasks)
    assert {level: n / len(tasks) for level, n in levels.items()} == pytest.approx(LEVEL_SHARES)
    families = Counter(t.family for t in tasks if t.level == "medium")
    assert families == apportion(levels["medium"], {name: share for name, (_, share) in FAMILIES.items()})


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    assert generate("judged", 300, seed=7) == generate("judged", 300, seed=7)
    assert generate("judged", 300, seed=7) != generate("judged", 300, seed=8)


def test_ids_are_unique_within_a_split() -> None:
    assert len({t.query_id for t in sample("train")}) == SIZES["train"]


def test_unknown_split_and_negative_size_are_refused() -> None:
    with pytest.raises(ValueError, match="nano-train, train, judged"):
        generate("test", 1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        generate("judged", -1, seed=0)


def test_every_word_has_one_gloss_and_every_gloss_one_word() -> None:
    words = [entry for level in LEVEL_SHARES for entry in tables()[level].words]
    assert len({entry.word for entry in words}) == len({entry.gloss for entry in words}) == len(words) > 11_000


def test_a_fact_belongs_to_train_or_judged() -> None:
    assert {split_of(f"word:{n}", knowledge=True) for n in range(200)} == {"train", "judged"}
    assert {split_of(f"sum:{n}", knowledge=False) for n in range(200)} == set(SPLITS)


@given(seed=SEEDS, split=st.sampled_from(SPLITS), family=st.sampled_from(sorted(FAMILIES)))
def test_any_draw_is_well_formed(seed: int, split: Split, family: str) -> None:
    for level in LEVEL_SHARES:
        task = draw(Random(seed), split, family, level)
        assert task == draw(Random(seed), split, family, level)
        assert (task.family, task.level, task.split) == (family, level, split)
        assert task.prompt.strip()
        assert "{" not in task.prompt
        assert len(task.prompt) <= 400
        assert 0 < len(task.answer) <= 100
        assert grade(task.grader, task.answer, task.answer) == 1.0


@given(seed=SEEDS)
def test_worked_sums_are_true(seed: int) -> None:
    for family in ("arithmetic", "expressions"):
        for line in draw(Random(seed), "nano-train", family, "complex").answer.split("; "):
            left, right = line.split("=")
            op = next(c for c in left if c in "+-*/")
            a, b = (int(n) for n in left.split(op))
            result = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[op](a, b)
            assert result == int(right)


@given(seed=SEEDS)
def test_sorted_lists_are_sorted(seed: int) -> None:
    task = draw(Random(seed), "train", "strings", "complex")
    if task.group_id.startswith("strings:sort_numbers:"):
        numbers = [int(n) for n in task.answer.split()]
        assert numbers == sorted(numbers)
        assert sorted(task.group_id.split(":")[2].split()) == sorted(task.answer.split())


def test_dates_know_leap_years() -> None:
    assert spoken(date(2024, 2, 28) + timedelta(days=2)) == "1 March 2024"


@given(total=st.integers(0, 10_000))
def test_apportion_adds_up(total: int) -> None:
    assert sum(apportion(total, LEVEL_SHARES).values()) == total
