"""pass@k against the definition that it estimates: the share of k-subsets that hold a right answer."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.cli.collect import told_passes
from stepladder.errors import UsageError
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.pass_at_k import mean_pass_at_k, pass_at_k


def rows(answers: dict[str, str], model: str = "small") -> list[OutcomeRow]:
    """Rows of problems; "101" are three answers, the second wrong."""
    return [
        OutcomeRow(query_id=problem, model=model, quality=float(right))
        for problem, found in answers.items()
        for right in map(int, found)
    ]


@given(answers=st.lists(st.booleans(), min_size=1, max_size=8), data=st.data())
def test_it_is_the_share_of_subsets_with_a_right_answer(answers: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(combinations(answers, k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(len(answers), sum(answers), k) == pytest.approx(share, abs=1e-12)


def test_many_answers_do_not_overflow() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (0, 0, 1)])
def test_counts_that_cannot_be(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {right} right answers in {n}"):
        pass_at_k(n, right, k)


def test_the_mean_is_over_problems() -> None:
    table = rows({"p": "10", "q": "0000"}) + rows({"p": "11"}, model="large")
    assert mean_pass_at_k(table, 1) == {"small": 0.25, "large": 1.0}
    assert mean_pass_at_k(table, 2) == {"small": 0.5, "large": 1.0}
    assert mean_pass_at_k([], 1) == {}


def test_collect_tells_it_where_there_are_several_answers() -> None:
    table = rows({"p": "10", "q": "000"}) + rows({"p": "11", "q": "01"}, model="large")
    assert told_passes(table) == ["small: pass@2 0.500", "large: pass@2 1.000"]
    assert told_passes([*table, *rows({"r": "1"})]) == [], "one answer is no more than the mean tells"
    assert told_passes([*table, OutcomeRow(query_id="p", model="small", quality=0.5)]) == []
    assert told_passes([]) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (OutcomeRow(query_id="x", model="m", quality=0.5), "'x' and 'm': quality should be 0 or 1, not 0.5"),
        (OutcomeRow(query_id="x", model="m", quality=1.0), "'x' by 'm': pass@2 of 1 right answers in 1"),
    ],
)
def test_rows_that_it_cannot_be_told_from(row: OutcomeRow, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mean_pass_at_k([row], 2)
