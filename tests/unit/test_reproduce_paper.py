"""The paper's arithmetic, reckoned by hand beside what the module reckons."""

from __future__ import annotations

from itertools import product

import pytest

from stepladder.reproduce import paper

FOUND = paper.findings()


def told_of(cell: str) -> str:
    return " ".join(finding.told for finding in FOUND if cell in finding.cells)


@pytest.mark.parametrize(
    ("lam", "shares", "cost", "quality", "ms"),
    [
        (0.5, (1.0, 0.0, 0.0), 1.00, 0.718, 640),
        (2, (0.7, 0.3, 0.0), 1.09, 0.793, 763),
        (5, (0.4, 0.3, 0.3), 1.33, 0.877, 1141),
        (20, (0.0, 0.4, 0.6), 1.60, 0.907, 1560),
    ],
)
def test_the_rule_on_the_papers_matrix(lam, shares, cost, quality, ms):
    found = paper.greedy(lam)
    assert found.shares == pytest.approx(shares)
    assert (found.cost, found.quality, found.ms) == pytest.approx((cost, quality, ms))


def test_single_stages_are_the_papers_rows():
    found = [paper.single(stage).quality for stage in range(3)]
    assert found == pytest.approx([paper.TABLE_42[f"{name} Only"].quality for name in ("13B", "34B", "70B")])


def test_the_most_quality_with_given_shares_is_that_of_trying_everything():
    matrix = [[0.88, 0.91, 0.93]] * 4 + [[0.72, 0.85, 0.91]] * 3 + [[0.50, 0.75, 0.90]] * 3
    best = {}
    for way in product(range(3), repeat=10):
        counts = tuple(way.count(stage) for stage in range(3))
        if counts in ((4, 6, 0), (3, 5, 2)):
            best[counts] = max(
                best.get(counts, 0.0), sum(row[stage] for row, stage in zip(matrix, way, strict=True)) / 10
            )
    assert paper.most_quality((0.4, 0.6, 0.0)) == pytest.approx(best[4, 6, 0]) == pytest.approx(0.832)
    assert paper.most_quality((0.3, 0.5, 0.2)) == pytest.approx(best[3, 5, 2])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("4.2:Adaptive:quality", "quality 0.936 is above 0.915"),
        ("4.2:Adaptive:quality", "allows a quality of 0.832 at most"),
        ("2.1:complex:70B", "0.92 on complex prompts in §2.1, 0.90 in the matrix"),
        ("4.1:10:shares", "first used at λ = 10 in table 4.1, at λ = 20"),
        ("5.1.1:saving", "1 − 1.0/1.8 = 44% at most"),
        ("4.1:5:cost", "= 1.180, not 1.30"),
        ("4.1:10:cost", "= 1.310, not 1.42"),
        ("4.1:20:cost", "= 1.455, not 1.65"),
        ("4.1:5:shares", "40% / 30% / 30%: cost 1.33, quality 0.877, 1,141 ms"),
        ("4.1:20:shares", "1.5 / 4.5 / 4"),
        ("4.3:medium", "are 2.25"),
        ("4.2:Fixed 13B→34B:cost", "1.36 is no mix of 1.0 and 1.3"),
        ("4.2:Fixed 13B→70B:ms", "1,606 ms at quality 0.866"),
        ("4.2:Adaptive:ms", "901 ms, not 879 (886 by §3.2)"),
        ("4.2:Adaptive:quality", "single stages follow from it to the last digit"),
        ("4.1:10:shares", "simple prompts are worth the same on 13B and 34B: the first is taken"),
        ("4.3:medium", "nor have all six together (64.2%, of which 15.0% complex ones)"),
        ("4.2:Fixed 13B→34B:cost", "34B after 13B for 28% costs 1.36 too, but takes 954 ms at 0.787 at the most"),
        ("4.2:Fixed 13B→70B:quality", "70B after 13B for 33% costs 1.60 too, but takes 1,300 ms at 0.844 at the most"),
    ],
)
def test_contradictions_and_the_cells_that_they_mark(cell, words):
    assert words in told_of(cell)


@pytest.mark.parametrize(
    "cell", ["4.1:0.5:cost", "4.1:1:shares", "4.2:13B Only:better", "4.2:34B Only:cost", "4.3:simple"]
)
def test_what_agrees_is_not_marked(cell):
    assert cell not in paper.marks()


def test_marks_are_the_numbers_of_the_notes():
    for cell, numbers in paper.marks().items():
        assert [cell in FOUND[number - 1].cells for number in numbers] == [True] * len(numbers)
    assert sum(len(numbers) for numbers in paper.marks().values()) == sum(len(each.cells) for each in FOUND)


def test_the_improvement_column_follows_from_the_tables_numbers():
    found = {name: paper.followed(line) for name, line in paper.TABLE_42.items() if line.better is not None}
    assert found["70B Only"] == pytest.approx((1 - 879 / 1921, 1 - 1.30 / 1.80, 0.936 / 0.915 - 1))
    assert found["13B Only"] == pytest.approx((-(879 / 660 - 1), -0.30, 0.936 / 0.718 - 1))
    for name, given in found.items():
        assert given == pytest.approx(paper.TABLE_42[name].better, abs=0.0051), name


def test_the_most_quality_with_a_share_on_one_stage():
    assert paper.most_on(2, 0.0) == pytest.approx(0.718)
    assert paper.most_on(2, 0.75) == pytest.approx(0.718 + 0.3 * 0.40 + 0.3 * 0.19 + 0.15 * 0.05)
    assert paper.most_on(1, 0.28) == pytest.approx(0.718 + 0.28 * 0.25)
    assert paper.most_on(2, 1.0) == pytest.approx(0.915)
    assert paper.climbed(2).cost == pytest.approx(1.0 + 1.8 / 3)


def test_a_finding_needs_its_arithmetic(monkeypatch):
    possible = paper.TABLE_42 | {
        "Adaptive": paper.Method(879, 1.18, 0.80),
        "34B Only": paper.Method(1, 1.3, 0.844, (0.5, 0, 0)),
    }
    monkeypatch.setattr(paper, "TABLE_42", possible)
    monkeypatch.setattr(paper, "GREATEST_SAVING", 0.4)
    cells = paper.marks()
    assert "4.2:Adaptive:quality" not in cells
    assert "5.1.1:saving" not in cells
    told = " ".join(each.told for each in paper.findings())
    assert "against 34B Only the table's own numbers give speed" in told


def test_the_share_that_a_stated_cost_implies():
    assert paper.pipeline_share(2) == pytest.approx(0.75)
    assert paper.pipeline_share(1) is None
