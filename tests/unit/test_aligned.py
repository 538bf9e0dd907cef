"""Outcomes tables as arrays: what is taken, what it costs, and what is refused with a name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcome_tables import STAGES, make_aligned, make_row, make_table
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned, TokenPrices, align, expected_costs, read_prices
from stepladder.evaluate.reference import SEEN, from_metrics, overlap, reference_of, seen, suited, to_metrics


def test_only_queries_that_all_stages_answered():
    rows = [make_row("1", "a", 0.5), make_row("1", "b", 1.0), make_row("2", "a", 0.25), make_row("3", "c", 1.0)]
    found = align(rows, ("b", "a"), pricing=(2.0, 1.0))
    assert found.quality.tolist() == [[1.0, 0.5]]
    assert found.cost.tolist() == [[2.0, 1.0]]
    assert (len(found), found.dropped, found.cost_unit, found.stages) == (1, 1, "relative", ("b", "a"))


def test_splits_names_and_repeated_rows():
    rows = make_table(40)
    some = align(rows, STAGES, names=("s", "m", "l"), split="validation", pricing=(1, 2, 3))
    assert (len(some), some.stages) == (10, ("s", "m", "l"))
    assert len(align(rows, STAGES, pricing=(1, 2, 3))) == 40
    assert align(rows + rows[:2], STAGES, pricing=(1, 2, 3)).repeated == 2


def test_one_query_id_in_two_datasets_is_two_queries():
    rows = [make_row("1", "a", quality, dataset=name) for name, quality in (("x", 0.0), ("y", 1.0))]
    assert align(rows, ("a",), pricing=(1,)).datasets == ("x", "y")


def test_costs_from_tokens_and_from_the_table():
    rows = [
        make_row("1", "a", 1.0, prompt_tokens=100, output_tokens=10, cost=0.5, cost_unit="gpu_s"),
        make_row("2", "a", 1.0, prompt_tokens=200, output_tokens=30, cost=1.5, cost_unit="gpu_s"),
    ]
    priced = align(rows, ("a",), pricing=TokenPrices((1.0,), (10.0,)))
    np.testing.assert_allclose(priced.cost[:, 0], [200e-6, 500e-6])
    expected = expected_costs(priced, np.array([9.0]), np.array([20.0]))
    np.testing.assert_allclose(expected[:, 0], [300e-6, 400e-6])  # the answer's length is not known before
    own = align(rows, ("a",))
    assert (own.cost[:, 0].tolist(), own.cost_unit) == ([0.5, 1.5], "gpu_s")
    assert expected_costs(own, np.array([1.0]), None).tolist() == [[1.0], [1.0]]
    assert expected_costs(make_aligned(4), np.array([9.0]), None)[0].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"models": ("smal", "large")}, "no outcomes of 'smal'; did you mean 'small'"),
        ({"models": ("small", "small")}, "each model once"),
        ({"split": "trian"}, "no rows of split 'trian'.*did you mean 'train'"),
        ({"names": ("a",)}, "1 names for 3 stages"),
        ({"pricing": (1.0,)}, "1 costs for 3 stages"),
        ({"pricing": None}, "query 'q0-0', 'small' has no cost: give --costs or --prices"),
    ],
)
def test_what_is_refused(change, told):
    settings = {"models": STAGES, "pricing": (1.0, 2.0, 4.0)} | change
    with pytest.raises(UsageError, match=told):
        align(make_table(8), **settings)


def test_rows_that_cannot_be_used():
    with pytest.raises(UsageError, match="query '1' has neither prompt nor messages"):
        align([make_row("1", "a", 1.0, prompt=None)], ("a",), pricing=(1,))
    with pytest.raises(UsageError, match="prices need its token counts"):
        align([make_row("1", "a", 1.0)], ("a",), pricing=TokenPrices((1.0,), (1.0,)))
    with pytest.raises(UsageError, match="names no splits at all"):
        align([make_row("1", "a", 1.0)], ("a",), split="train", pricing=(1,))
    with pytest.raises(UsageError, match="no query of split 'all' has outcomes of all"):
        align([make_row("1", "a", 1.0), make_row("2", "b", 1.0)], ("a", "b"), pricing=(1, 2))
    mixed = [make_row("1", "a", 1.0, cost=1.0, cost_unit="usd"), make_row("2", "a", 1.0, cost=1.0)]
    with pytest.raises(UsageError, match="several units: usd .query '1'., relative"):
        align(mixed, ("a",))


def test_prices_from_files(tmp_path):
    (tmp_path / "p.toml").write_text("[a]\nprice_in = 1\nprice_out = 2.5\n", "utf-8")
    assert read_prices(tmp_path / "p.toml", ("a",)) == TokenPrices((1.0,), (2.5,))
    (tmp_path / "ladder.toml").write_text('[[stages]]\nname = "a"\nprice_in = 3\nprice_out = 4\n', "utf-8")
    assert read_prices(tmp_path / "ladder.toml", ("a",)) == TokenPrices((3.0,), (4.0,))
    (tmp_path / "p.json").write_text('{"a": {"price_in": 1}}', "utf-8")
    with pytest.raises(UsageError, match="a.price_out should be usd"):
        read_prices(tmp_path / "p.json", ("a",))
    with pytest.raises(UsageError, match="no prices of 'b'; valid: a"):
        read_prices(tmp_path / "p.toml", ("b",))
    for name, text, told in (("x.toml", "a =", "no valid TOML"), ("x.json", "[1]", "a table for each model")):
        (tmp_path / name).write_text(text, "utf-8")
        with pytest.raises(UsageError, match=told):
            read_prices(tmp_path / name, ("a",))
    with pytest.raises(UsageError, match="cannot be read"):
        read_prices(tmp_path / "none.toml", ("a",))


def test_groups_and_prompts_are_known_again():
    rows = [
        make_row("1", "a", 1.0, prompt="What  is\nit?", group_id="g"),
        make_row("2", "a", 1.0, prompt="other", group_id="g"),
        make_row("3", "a", 1.0, prompt="what is IT?"),
        make_row("4", "a", 1.0, prompt="new"),
    ]
    data = align(rows, ("a",), pricing=(1,))
    assert data.groups[0] == data.groups[1]
    assert data.groups[2] == data.groups[0]  # the same prompt, in no group by name
    assert len(set(data.groups.tolist())) == 2
    known = {SEEN: seen(data.take(np.array([0])))}
    assert overlap(data, known).tolist() == [True, True, True, False]
    assert overlap(data, {}).tolist() == [False] * 4
    assert known[SEEN].dtype == np.uint64


def tied(pairs: list[tuple[int | None, int]]) -> Aligned:
    """Queries of these groups and prompts."""
    rows = [
        make_row(str(number), "a", 1.0, prompt=f"p{prompt}", group_id=None if group is None else f"g{group}")
        for number, (group, prompt) in enumerate(pairs)
    ]
    return align(rows, ("a",), pricing=(1,))


def components(pairs: list[tuple[int | None, int]]) -> list[set[int]]:
    """The same by merging sets until nothing is left to merge."""
    found: list[tuple[set[int], set[object]]] = []
    for number, (group, prompt) in enumerate(pairs):
        members, keys = {number}, {("p", prompt)} | ({("g", group)} if group is not None else set())
        for other in [some for some in found if some[1] & keys]:
            found.remove(other)
            members, keys = members | other[0], keys | other[1]
        found.append((members, keys))
    return [members for members, _ in found]


PAIRS = st.lists(st.tuples(st.none() | st.integers(0, 12), st.integers(0, 15)), min_size=1, max_size=30)


@given(PAIRS)
def test_a_group_is_all_that_groups_and_prompts_tie_together(pairs):
    groups = tied(pairs).groups.tolist()
    assert sorted(set(groups)) == list(range(max(groups) + 1))
    told = [{place for place, group in enumerate(groups) if group == number} for number in range(max(groups) + 1)]
    assert sorted(map(sorted, told)) == sorted(map(sorted, components(pairs)))


@given(PAIRS)
def test_groups_that_share_no_prompt_are_numbered_by_their_hash(pairs):
    data = tied([(group, number if group is not None else -prompt) for number, (group, prompt) in enumerate(pairs, 1)])
    assert data.groups.tolist() == np.unique(data.hashes[:, 0], return_inverse=True)[1].tolist()


def test_one_prompt_under_many_group_ids_is_one_group():
    groups = tied([(0, 0), (1, 0), (2, 1), (2, 2), (3, 2), (4, 3)]).groups.tolist()
    assert groups[0] == groups[1] != groups[2] == groups[3] == groups[4] != groups[5] != groups[0]
    assert len(set(tied([(number, 0) for number in range(9)]).groups.tolist())) == 1
    chain = [(number // 2, (number + 1) // 2) for number in range(4000)]
    assert set(tied(chain).groups.tolist()) == {0}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["train", "validation"]), st.integers(0, 9)), max_size=20))
def test_other_models_are_read_in_the_split_alone_and_their_first_row_counts(asked):
    stages = [make_row(str(query), "a", 1.0, split=split) for query in range(4) for split in ("train", "validation")]
    further = [make_row(str(query), "other", value / 9, split=split) for query, split, value in asked]
    never = make_row("never asked", "other", 0.0, split="train")
    for split in ("train", "validation"):
        data = align([*stages, *further, never], ("a",), split=split, pricing=(1,))
        expected: dict[int, float] = {}
        for query, where, value in asked:
            if where == split:
                expected.setdefault(query, value / 9)
        assert data.others is not None
        assert data.others.shape == (4, 1 if expected else 0)
        if expected:
            np.testing.assert_array_equal(data.others[:, 0], [expected.get(query, np.nan) for query in range(4)])


def test_other_models_of_all_splits_count_first_as_stages_do():
    rows = [make_row("1", model, value, split=split) for split, value in (("x", 0.25), ("y", 0.75)) for model in "ab"]
    data = align(rows, ("a",), pricing=(1,))
    assert data.others is not None
    assert data.quality.tolist() == data.others.tolist() == [[0.25]]


def test_a_reference_survives_in_an_artifacts_metrics():
    data = make_aligned(60)
    reference = reference_of(data)
    back = from_metrics(to_metrics(reference, STAGES), STAGES)
    assert back is not None
    np.testing.assert_array_equal(back.quality, reference.quality)
    assert (dict(back.by_class), dict(back.datasets)) == (dict(reference.by_class), {"made": 60})
    assert back.output_tokens is not None
    assert back.output_tokens.tolist() == [20.0, 30.0, 40.0]
    assert from_metrics({}, STAGES) is None


def test_costs_in_another_unit_are_taken_from_the_rows():
    trained = reference_of(make_aligned(20))
    own = align([make_row("1", name, 1.0, cost=7.0, cost_unit="usd") for name in STAGES], STAGES)
    found, notes = suited(trained, "relative", own)
    assert found.cost.tolist() == [7.0, 7.0, 7.0]
    assert "trained with costs in relative" in notes[0]
    assert suited(trained, "relative", make_aligned(4)) == (trained, [])


def test_what_other_models_made_of_a_query_is_of_its_own_split_and_the_first():
    """Ids may come again in another split, for another question."""
    rows = [
        make_row("0", model, quality, split=split, prompt=f"{split} question")
        for split, quality in (("validation", 0.75), ("train", 0.25))
        for model in ("a", "m", "n")
    ]
    again = make_row("0", "m", 1.0, split="train", prompt="train question")
    data = align([*rows, again], ("a",), split="train", pricing=(1,))
    assert data.others.tolist() == [[0.25, 0.25]]
    assert align(rows, ("a", "m", "n"), split="train", pricing=(1, 2, 3)).others.shape == (1, 0)
