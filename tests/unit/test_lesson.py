"""What a table teaches: its tasks, and what many models' qualities have in common."""

from __future__ import annotations

import numpy as np
import pytest

from outcome_tables import make_row
from stack_tables import OTHERS, small
from stepladder.evaluate.aligned import Aligned, align
from stepladder.train.lesson import FEWEST_MODELS, FEWEST_OF_TASK, MOST_TASKS, factors_of, lesson_of, tasks_of


def labelled(labels: list[dict[str, str]]) -> Aligned:
    rows = [make_row(str(number), "a", 1.0, **label) for number, label in enumerate(labels)]
    return align(rows, ("a",), pricing=(1.0,))


def test_tasks_are_datasets_and_subsets():
    labels = [{"dataset": "d", "subset": name} for name in ("x", "y", "z") for _ in range(FEWEST_OF_TASK)]
    tasks = tasks_of(labelled(labels))
    assert tasks is not None
    assert tasks.tolist() == np.repeat([0, 1, 2], FEWEST_OF_TASK).tolist()


def test_small_tasks_are_one():
    sizes = {"big": FEWEST_OF_TASK, "also": FEWEST_OF_TASK, "few": 3, "fewer": 2}
    tasks = tasks_of(labelled([{"dataset": name} for name, count in sizes.items() for _ in range(count)]))
    assert tasks is not None
    assert len(set(tasks.tolist())) == 3
    assert len(set(tasks[-5:].tolist())) == 1
    assert tasks[-1] not in tasks[:-5]


def test_names_with_spaces_are_not_run_together():
    pairs = [("a b", "c"), ("a", "b c")]
    tasks = tasks_of(labelled([{"dataset": d, "subset": s} for d, s in pairs for _ in range(FEWEST_OF_TASK)]))
    assert tasks is not None
    assert tasks.tolist() == np.repeat([1, 0], FEWEST_OF_TASK).tolist()


def test_families_come_before_datasets():
    labels = [{"dataset": "same", "family": name, "level": "simple"} for name in "ab" for _ in range(FEWEST_OF_TASK)]
    tasks = tasks_of(labelled(labels))
    assert tasks is not None
    assert set(tasks.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "labels",
    [
        [{"dataset": "d"}] * 60,
        [{"dataset": f"d{n}"} for n in range(60)],
        [{"dataset": f"d{n % (MOST_TASKS + 1)}"} for n in range((MOST_TASKS + 1) * FEWEST_OF_TASK)],
    ],
    ids=["one", "all too small", "too many"],
)
def test_tables_that_tell_no_tasks(labels):
    assert tasks_of(labelled(labels)) is None


def test_factors_need_other_models():
    assert OTHERS >= FEWEST_MODELS
    assert factors_of(lesson_of(small())).shape == (160, 0)
    lesson = lesson_of(small(others=True))
    factors = factors_of(lesson)
    assert factors.shape[0] == 160
    assert factors.shape[1] > 1
    assert factors.std(axis=0) == pytest.approx(np.ones(factors.shape[1]))
    all_of = np.hstack([lesson.quality, lesson.others])
    easy = (all_of - all_of.mean(axis=0)).mean(axis=1)
    assert np.corrcoef(factors[:, 0], easy)[0, 1] == pytest.approx(1.0)


def test_models_that_were_not_always_asked():
    lesson = lesson_of(small(others=True))
    holes = lesson.others.copy()
    holes[::3] = np.nan
    assert np.isfinite(factors_of(lesson._replace(others=holes))).all()


def test_taking_queries():
    lesson = lesson_of(small(others=True))
    some = lesson.take(np.array([5, 3]))
    assert some.texts == (lesson.texts[5], lesson.texts[3])
    assert some.groups.tolist() == lesson.groups[[5, 3]].tolist()
    assert some.quality.tolist() == lesson.quality[[5, 3]].tolist()
    assert lesson.tasks is not None
    assert some.tasks is not None
    assert some.tasks.tolist() == lesson.tasks[[5, 3]].tolist()
