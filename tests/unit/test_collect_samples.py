"""Several answers of every stage to every prompt: how far quality can be known beforehand, and how sure a stage is."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from math import log1p
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.cli import main
from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import align
from stepladder.evaluate.collect import Collected, Means, Plan, Progress, collect
from stepladder.evaluate.journal import Journal
from stepladder.evaluate.outcomes import read, write
from stepladder.evaluate.prompts import Prompt
from stepladder.predictors import history
from stepladder.testing import FakeCosts, make_ladder
from stepladder.types import Attempt, Fault, Usage

LADDER = make_ladder("a", "b")
PROMPTS = [
    Prompt(query_id=f"q{n}", messages=({"role": "user", "content": f"{n}+1"},), reference=str(n + 1), grader="numeric")
    for n in range(5)
]
QUESTIONS = {prompt.text for prompt in PROMPTS}
PLAN = Plan(prompts=PROMPTS, stages=LADDER.stages, params={"temperature": 1.0}, samples=3, at_once=1)


class CutError(Exception):
    """Stands for a crash."""


class Asked:
    """A journal on disk, and a stage ``a`` that is right two times of three; as a judge, ``b`` gives grades of 7."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"
        self.calls: Counter[tuple[str, str]] = Counter()

    def say(self, stage: str, request) -> str:
        if request.text not in QUESTIONS:
            return "7"
        self.calls[stage, request.id] += 1
        right = int(request.text.partition("+")[0]) + 1
        return str(right if stage == "b" or self.calls[stage, request.id] % 3 else -1)

    def run(self, plan: Plan = PLAN, cut_after: int | None = None) -> Collected:
        def tell(progress: Progress) -> None:
            if progress.done == cut_after:
                raise CutError

        with Journal(self.path) as journal:
            engines = {stage.name: ScriptedEngine((stage,), self.say) for stage in LADDER.stages}
            means = Means(engines=engines, costs=FakeCosts({"a": 1.0, "b": 2.0}), journal=journal, tell=tell)
            return asyncio.run(collect(plan, means))


def test_every_sample_is_a_row_of_its_own(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    found = asked.run()
    assert set(asked.calls.values()) == {3}
    assert (found.calls, found.spent, len(found.rows)) == (30, 45.0, 30)
    assert [(row.query_id, row.model) for row in found.rows[:6]] == [("q0", stage) for stage in "aaabbb"]
    assert [row.quality for row in found.rows[:6]] == [1, 1, 0, 1, 1, 1]


def test_they_tell_how_far_quality_can_be_known(tmp_path: Path) -> None:
    data = align(Asked(tmp_path).run().rows, LADDER.names)
    assert data.samples is not None
    assert data.samples.count.tolist() == [[3, 3]] * 5
    assert data.samples.mean[:, 0] == pytest.approx([2 / 3] * 5)
    assert data.samples.mean[:, 1].tolist() == [1.0] * 5


@given(cuts=st.lists(st.integers(1, 29), max_size=3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_anywhere_it_goes_on_and_repeats_nothing(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    whole = Asked(tmp_path_factory.mktemp("whole")).run()
    asked = Asked(tmp_path_factory.mktemp("cut"))
    for cut in cuts:
        with contextlib.suppress(CutError):
            asked.run(cut_after=cut)
    assert asked.run().rows == whole.rows
    assert set(asked.calls.values()) == {3}


def test_further_samples_go_on_from_those_that_there_are(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    first = asked.run(replace(PLAN, samples=1))
    found = asked.run(replace(PLAN, samples=2))
    assert found.calls == first.calls == 10
    assert [row for row in found.rows if row in first.rows] != []
    assert set(asked.calls.values()) == {2}
    assert asked.run(replace(PLAN, samples=1)).rows == first.rows


def test_the_cap_counts_every_sample(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="30 calls .*45"):
        Asked(tmp_path).run(replace(PLAN, max_cost=44.0))


def test_each_sample_is_judged_by_itself(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    agreed = asked.run(replace(PLAN, method="agreement")).rows
    assert [row.quality for row in agreed[:6]] == [1, 1, 0, 1, 1, 0]
    judged = asked.run(replace(PLAN, method="judge", judge=LADDER["b"]))
    assert judged.calls == 30
    assert [row.quality for row in judged.rows] == [0.7] * 30
    assert set(asked.calls.values()) == {3}


# ── what predictors read of answers ──────────────────────────────────────────


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (None, None),
        ((), None),
        ((-0.123456, 0.0), (-0.1235, 0.0)),
        ((-1.0, float("-inf")), None),
        ((-1.0, 0.5), None),
    ],
)
def test_log_probabilities_of_tokens_come_into_the_table(tmp_path: Path, told: Any, kept: Any) -> None:
    asked = Asked(tmp_path)
    asked.say = lambda stage, request: Attempt(stage, "1", Usage(3, 2), finish_reason="stop", logprobs=told)
    plan = replace(PLAN, samples=1)
    for row in (*asked.run(plan).rows, *asked.run(plan).rows):  # as they come, and from the journal
        assert row.token_logprobs == kept
        assert row.attempt("a").logprobs == kept or row.confidence is not None


# ── the verb ─────────────────────────────────────────────────────────────────


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command over two stages that always say the same."""
    stage = '[[stages]]\nname = "{0}"\nengine = "scripted"\nmodel = "{0}"\ncost = 1\noptions = {{ reply = "{1}" }}\n'
    ladder = '[ladder]\nname = "two"\n' + stage.format("low", "1") + stage.format("high", "2")
    (tmp_path / "ladder.toml").write_text(ladder, "utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1", "reference": "2", "grader": "numeric"}\n', "utf-8")
    places = {"-l": "ladder.toml", "--prompts": "p.jsonl", "--out": "t.jsonl"}
    return ["collect", *(word for flag, name in places.items() for word in (flag, str(tmp_path / name)))]


def test_samples_are_asked_for_by_a_flag(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--samples", "3", "--temperature", "0.7"]) == 0
    assert "6 rows of 1 prompts" in capsys.readouterr().out
    assert [(row.model, row.quality) for row in read(tmp_path / "t.jsonl")] == [("low", 0.0)] * 3 + [("high", 1.0)] * 3


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--samples", "0", "--temperature", "1"], "--samples: 0 is less than 1"),
        (["--samples", "2"], "--samples: at temperature 0 they are all the same"),
        (["--choices", "0", "--temperature", "1"], "--choices: 0 is less than 1"),
        (["--choices", "2"], "--choices: at temperature 0 they are all the same"),
        (
            ["--choices", "2", "--samples", "2", "--temperature", "1"],
            "--choices: --samples makes a row",
        ),
    ],
)
def test_samples_asked_for_wrongly(
    words: list[str], capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert main([*words, *more]) == 2
    assert told in capsys.readouterr().err


def test_traces_are_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.jsonl")
    asked = ["collect", "-l", "nano", "--from", "traces.sqlite3", "--out", out, "--samples", "2", "--temperature", "1"]
    assert main(asked) == 2
    assert "--samples: traces hold the answers that there are" in capsys.readouterr().err


# ── choices: one call, several answers ───────────────────────────────────────


def test_choices_are_one_row_that_pays_for_them_all(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    found = asked.run(replace(PLAN, as_choices=True))
    assert (found.calls, found.spent, len(found.rows)) == (30, 45.0, 10)
    first = found.rows[0]
    assert (first.model, first.response, first.quality, first.other_preds) == ("a", "1", 1, ("1", "-1"))
    assert (first.cost, found.rows[1].cost) == (3.0, 6.0)
    alone = asked.run().rows[:3]
    assert first.output_tokens == sum(row.output_tokens or 0 for row in alone)
    assert first.latency_s == max(row.latency_s or 0.0 for row in alone)


def test_how_sure_a_stage_is_can_be_read_of_the_row(tmp_path: Path) -> None:
    rows = Asked(tmp_path).run(replace(PLAN, as_choices=True)).rows
    told = [history.read(row.attempt(row.model), ("consistency", "tokens")) for row in rows[:2]]
    assert [each.consistency for each in told] == [0.5, 1.0]
    plain = Asked(tmp_path).run().rows[0]
    assert plain.other_preds is None
    assert history.read(plain.attempt("a"), ("consistency",)).consistency == history.UNKNOWN
    assert told[0].tokens == pytest.approx(log1p((rows[0].output_tokens or 0) / 3))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_choices_outlive_the_file(tmp_path: Path, suffix: str) -> None:
    rows = Asked(tmp_path).run(replace(PLAN, as_choices=True)).rows
    write(rows, tmp_path / f"table{suffix}")
    assert read(tmp_path / f"table{suffix}") == rows


def test_only_the_first_choice_is_judged(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    plan = replace(PLAN, method="judge", judge=LADDER["b"], as_choices=True)
    found = asked.run(plan)
    assert (found.calls, {row.quality for row in found.rows}) == (30 + 10, {0.7})


def test_a_choice_that_failed_is_missing_among_the_others(tmp_path: Path) -> None:
    asked, say = Asked(tmp_path), Asked.say
    asked.say = lambda stage, request: (  # type: ignore[method-assign]
        Attempt(stage, fault=Fault("context", "too long")) if (told := say(asked, stage, request)) == "-1" else told
    )
    found = asked.run(replace(PLAN, as_choices=True))
    assert found.rows[0].other_preds == ("1",)
    assert found.rows[0].cost == 2.0


@pytest.mark.parametrize("bad", ["42", ["42", 7]])
def test_choices_that_are_none_are_named(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(orjson.dumps({"query_id": "q", "model": "a", "quality": 1, "other_preds": bad}))
    with pytest.raises(UsageError, match="row 1: other_preds should be a list of texts"):
        read(path)


def test_choices_are_asked_for_by_a_flag(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--choices", "3", "--temperature", "0.7"]) == 0
    rows = read(tmp_path / "t.jsonl")
    assert {len(row.other_preds or ()) for row in rows} == {2}
