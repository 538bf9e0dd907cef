"""Asking for the experiment: one call at a time, stage after stage; nothing twice; the cap before the first call."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import UsageError
from stepladder.evaluate.collect import Plan
from stepladder.evaluate.prompts import Prompt
from stepladder.reproduce import asking
from stepladder.testing import FakeCosts, make_ladder
from stepladder.types import Fault

LADDER = make_ladder("a", "b")
COSTS = FakeCosts({"a": 1.0, "b": 2.0})
OWN = [
    Prompt(query_id=f"q{n}", messages=({"role": "user", "content": f"{n}+1"},), reference=str(n + 1), grader="numeric")
    for n in range(3)
]
PLAN = Plan(prompts=[*OWN, *asking.paper_prompts()], stages=LADDER.stages, at_once=1, cost_unit="relative")


class Asked:
    """Runs on one journal; ``calls`` holds every call of all runs, (stage, query)."""

    def __init__(self, folder):
        self.journal = folder / "journal"
        self.calls, self.told = [], []
        self.broken = False

    def run(self, plan=PLAN):
        def script(stage, request):
            self.calls.append((stage, request.id))
            if self.broken and stage == "b":
                return Fault("bad_request", "no")
            return request.text

        engines = {stage.name: ScriptedEngine((stage,), script) for stage in LADDER.stages}
        return asyncio.run(asking.ask_in_turn(plan, engines, COSTS, self.journal, self.told.append))


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path)


def test_stages_take_turns_and_progress_runs_through(asked):
    found = asked.run()
    wanted = [prompt.query_id for prompt in PLAN.prompts]
    assert asked.calls == [*(("a", name) for name in wanted), *(("b", name) for name in wanted)]
    assert (found.calls, found.spent, found.hit_cap) == (26, 39.0, False)
    assert [progress.done for progress in asked.told] == list(range(1, 27))
    assert {progress.total for progress in asked.told} == {26}
    assert [(row.query_id, row.model) for row in found.rows] == [(name, stage) for name in wanted for stage in "ab"]


def test_a_second_run_asks_nothing(asked):
    first = asked.run()
    second = asked.run()
    assert len(asked.calls) == 26
    assert second.rows == first.rows
    assert (second.calls, second.spent) == (0, 39.0)


def test_more_prompts_ask_only_what_is_new(asked):
    asked.run(replace(PLAN, prompts=OWN[:2]))
    asked.run(replace(PLAN, prompts=OWN))
    assert asked.calls[4:] == [("a", "q2"), ("b", "q2")]


def test_the_cap_counts_all_stages_before_the_first_call(asked):
    with pytest.raises(UsageError, match="26 calls are estimated at 39 relative: above --max-cost 38"):
        asked.run(replace(PLAN, max_cost=38.0))
    assert asked.calls == []
    asked.run(replace(PLAN, prompts=OWN, max_cost=9.0))
    with pytest.raises(UsageError, match="9 relative were paid before"):
        asked.run(replace(PLAN, max_cost=38.0))


def test_a_cap_that_the_bill_reaches_stops_all_stages(asked, monkeypatch):
    monkeypatch.setattr(COSTS, "billed", lambda stage, attempt: 5.0)
    found = asked.run(replace(PLAN, prompts=OWN, max_cost=9.0))
    assert (found.hit_cap, found.calls) == (True, 2)
    assert {stage for stage, _ in asked.calls} == {"a"}


def test_what_fails_is_left_out_and_asked_again(asked):
    asked.broken = True
    assert [row.model for row in asked.run(replace(PLAN, prompts=OWN)).rows] == ["a"] * 3
    asked.broken = False
    found = asked.run(replace(PLAN, prompts=OWN))
    assert (found.calls, len(found.rows), found.left_out) == (3, 6, {})


def test_another_setting_is_refused(asked):
    asked.run(replace(PLAN, prompts=OWN))
    with pytest.raises(UsageError, match="name another --out"):
        asked.run(replace(PLAN, prompts=OWN, params={"temperature": 1.0}))


def test_another_model_on_a_later_stage_is_refused_before_any_call(asked):
    asked.run(replace(PLAN, prompts=OWN[:2]))
    before = len(asked.calls)
    other = (LADDER.stages[0], replace(LADDER.stages[1], model="another"))
    with pytest.raises(UsageError, match="the answer of 'b' to 'q0' under another prompt, model or setting"):
        asked.run(replace(PLAN, prompts=OWN, stages=other))
    assert len(asked.calls) == before


def test_the_ten_have_no_quality(asked):
    rows = asked.run().rows
    lines = [json.loads(line) for line in asking.ten_table(rows).splitlines()]
    assert len(lines) == 20
    assert all("quality" not in line and "metric" not in line for line in lines)
    assert {line["level"] for line in lines} == {"simple", "medium", "complex"}
    assert lines[0]["prompt"] == lines[0]["response"] == "What is 2+2?"
