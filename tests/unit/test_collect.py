"""Collecting outcomes: nothing is asked twice, nothing is lost, nothing that failed is graded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.cli import main
from stepladder.cli.collect import fitted, told_progress
from stepladder.engines.replay import read_answers
from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import EngineError, UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.collect import GIVE_UP_AFTER, RETRIES, Means, Plan, Progress, collect
from stepladder.evaluate.harvest import harvest
from stepladder.evaluate.journal import Entry, Journal
from stepladder.evaluate.judging import by_agreement, check_gradable, judge_messages, parse_grade
from stepladder.evaluate.prompts import Prompt, read_prompts
from stepladder.testing import FakeCosts, make_ladder
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Attempt, Fault, Outcome, Trace, Usage, Versions

LADDER = make_ladder("a", "b")
COSTS = FakeCosts({"a": 1.0, "b": 2.0})
PROMPTS = [
    Prompt(
        query_id=f"q{n}",
        messages=({"role": "user", "content": f"{n}+1"},),
        reference=str(n + 1),
        grader="numeric",
        where=f"prompt {n}",
    )
    for n in range(6)
]
PLAN = Plan(prompts=PROMPTS, stages=LADDER.stages, cost_unit="relative")
PAIRS = {(prompt.query_id, stage) for prompt in PROMPTS for stage in LADDER.names}

Script = Callable[..., object]


def say(stage: str, request) -> str:
    """``b`` adds, ``a`` only knows 3."""
    return "3" if stage == "a" else str(int(request.text.partition("+")[0]) + 1)


class Bench:
    """A journal on disk, and engines whose calls are counted over all runs."""

    def __init__(self, folder: Path, script: Script = say, plan: Plan = PLAN) -> None:
        self.path, self.script, self.plan = folder / "journal", script, plan
        self.asked: list[tuple[str, str]] = []
        self.slept: list[float] = []

    def run(self, plan: Plan | None = None, *, cut_after: int | None = None):
        return asyncio.run(self.arun(plan or self.plan, cut_after))

    async def arun(self, plan: Plan, cut_after: int | None):
        def script(stage, request):
            self.asked.append((request.id, stage))
            return self.script(stage, request)

        def tell(progress: Progress) -> None:
            if progress.done == cut_after:
                raise CutError

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        stages = {stage.name: stage for stage in (*plan.stages, *([plan.judge] if plan.judge else []))}
        engines = {name: ScriptedEngine((stage,), script) for name, stage in stages.items()}
        with Journal(self.path) as journal:
            return await collect(plan, Means(engines=engines, costs=COSTS, journal=journal, sleep=sleep, tell=tell))


class CutError(Exception):
    """Stands for a crash."""


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


any_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fresh(tmp_path_factory, *args, **fields) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), *args, **fields)


def test_every_stage_answers_every_prompt_once_and_is_graded(bench):
    found = bench.run()
    assert Counter(bench.asked) == Counter(dict.fromkeys(PAIRS, 1))
    assert [(row.query_id, row.model) for row in found.rows] == [(p.query_id, s) for p in PROMPTS for s in "ab"]
    assert [row.quality for row in found.rows if row.model == "a"] == [0, 0, 1, 0, 0, 0]
    assert {row.quality for row in found.rows if row.model == "b"} == {1.0}
    assert (found.calls, found.spent, found.left_out) == (12, 18.0, {})
    row = found.rows[1]
    assert (row.prompt, row.response, row.metric, row.cost, row.cost_unit) == ("0+1", "1", "numeric", 2.0, "relative")


@given(at_once=st.integers(1, 9))
@any_folder
def test_many_at_once_give_the_table_of_one_by_one(tmp_path_factory, at_once):
    one = fresh(tmp_path_factory).run(replace(PLAN, at_once=1))
    assert fresh(tmp_path_factory).run(replace(PLAN, at_once=at_once)).rows == one.rows


@given(cuts=st.lists(st.integers(1, 12), max_size=4), at_once=st.integers(1, 4))
@any_folder
def test_a_collection_cut_anywhere_goes_on_and_repeats_nothing(tmp_path_factory, cuts, at_once):
    plan = replace(PLAN, at_once=at_once)
    whole = fresh(tmp_path_factory).run(plan)
    bench = fresh(tmp_path_factory, plan=plan)
    for cut in cuts:
        kept = journaled(bench)
        before = len(bench.asked)
        with contextlib.suppress(CutError):
            bench.run(cut_after=cut)
        assert not kept & set(bench.asked[before:])
    found = bench.run()
    assert (found.rows, found.spent) == (whole.rows, whole.spent)
    assert set(bench.asked) == PAIRS
    if at_once == 1:
        assert len(bench.asked) == len(PAIRS)


@given(torn=st.integers(0, 4000))
@any_folder
def test_a_journal_torn_anywhere_loses_its_last_line_alone(tmp_path_factory, torn):
    bench = fresh(tmp_path_factory)
    whole = bench.run()
    data = bench.path.read_bytes()
    torn = min(torn, len(data))
    bench.path.write_bytes(data[: len(data) - torn])
    lines = max(0, bench.path.read_bytes().count(b"\n") - 1)
    bench.asked.clear()
    assert bench.run().rows == whole.rows
    assert len(bench.asked) == len(PAIRS) - lines


def journaled(bench: Bench) -> set[tuple[str, str]]:
    if not bench.path.exists():
        return set()
    lines = [json.loads(line) for line in bench.path.read_text("utf-8").splitlines()[1:]]
    return {(line["query_id"], line["stage"]) for line in lines}


async def test_a_cancelled_collection_closes_its_engines_and_keeps_its_answers(tmp_path):
    ladder = make_ladder("a")
    entered = asyncio.Event()

    async def stall(seconds: float) -> None:
        entered.set()
        await asyncio.Event().wait()

    engine = ScriptedEngine(ladder.stages, say, delay_s=1.0, sleep=stall)
    plan = replace(PLAN, stages=ladder.stages)
    with Journal(tmp_path / "j") as journal:
        task = asyncio.create_task(collect(plan, Means(engines={"a": engine}, costs=COSTS, journal=journal)))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(EngineError, match="closed"):
        await anext(engine.generate(None, ladder["a"]))


# ── what is in the journal ───────────────────────────────────────────────────


def test_more_prompts_and_stages_are_asked_alone(bench):
    bench.run(replace(PLAN, prompts=PROMPTS[:3], stages=LADDER.stages[:1]))
    bench.asked.clear()
    assert len(bench.run().rows) == 12
    assert len(bench.asked) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"temperature": 1}},
        {"prompts": [replace(PROMPTS[0], messages=({"role": "user", "content": "9+9"},))]},
        {"stages": (replace(LADDER["a"], model="another"),)},
    ],
)
def test_answers_to_something_else_are_not_mixed_in(bench, change):
    bench.run()
    bench.asked.clear()
    with pytest.raises(UsageError, match="under another prompt, model or setting"):
        bench.run(replace(PLAN, **change))
    assert not bench.asked


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "j"
    for text in ("dear diary", "dear diary\n", '{"journal": 99}\n'):
        path.write_text(text, "utf-8")
        with pytest.raises(UsageError, match="no journal of schema 1"):
            Journal(path)
        assert path.read_text("utf-8") == text


def test_a_journal_damaged_in_the_middle_is_refused(bench):
    bench.run()
    lines = bench.path.read_bytes().splitlines(keepends=True)
    bench.path.write_bytes(b"".join([*lines[:4], b"x\n", *lines[5:]]))
    with pytest.raises(UsageError, match="line 5 is damaged"):
        Journal(bench.path)


def test_two_collections_do_not_write_into_one_journal(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(UsageError, match="another process"):
        Journal(tmp_path / "j")


def test_a_journal_without_entries_leaves_no_file(tmp_path):
    with Journal(tmp_path / "j"):
        assert (tmp_path / "j").exists()
    assert not (tmp_path / "j").exists()


def test_an_entry_comes_back_as_it_was(tmp_path):
    entry = Entry(
        kind="answer",
        query_id="q",
        stage="a",
        digest="d",
        text='"\n\u2028λ',
        seconds=0.1,
        confidence=-0.5,
        logprobs=(-0.25, -0.75),
    )
    with Journal(tmp_path / "j") as journal:
        journal.append(entry)
    with Journal(tmp_path / "j") as journal:
        assert journal.entries == [entry]


def test_a_full_disk_is_told(bench, monkeypatch):
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    bench.run()
    monkeypatch.setattr("stepladder.evaluate.journal.os.write", full)
    with pytest.raises(UsageError, match="journal: cannot be written: No space left"):
        bench.run(replace(PLAN, prompts=[*PROMPTS, replace(PROMPTS[0], query_id="new")]))


# ── faults and caps ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "connect"])
def test_passing_faults_are_tried_again(tmp_path, kind):
    turns: Counter[str] = Counter()

    def script(stage, request):
        turns[stage + request.id] += 1
        return Fault(kind, "busy", retry_after=7.5) if turns[stage + request.id] < 3 else say(stage, request)

    bench = Bench(tmp_path, script)
    assert len(bench.run().rows) == 12
    assert bench.slept == [7.5] * 24


def test_retries_are_bounded_and_what_failed_is_counted_not_graded(tmp_path):
    def script(stage, request):
        return Fault("timeout", "slow") if request.id == "q2" else say(stage, request)

    bench = Bench(tmp_path, script)
    found = bench.run()
    assert len(found.rows) == 10
    assert found.left_out == {"timeout": 2}
    assert Counter(bench.asked)["q2", "a"] == RETRIES + 1
    assert sorted(set(bench.slept)) == [1.0, 2.0, 4.0, 8.0]
    bench.script = say
    bench.asked.clear()
    assert len(bench.run().rows) == 12
    assert set(bench.asked) == {("q2", "a"), ("q2", "b")}


def test_other_faults_are_not_tried_again(tmp_path):
    bench = Bench(tmp_path, lambda stage, request: Fault("context", "too long"))
    found = bench.run()
    assert (found.rows, found.left_out, bench.slept) == ([], {"context": 12}, [])


def test_a_stage_that_is_down_ends_the_run(tmp_path):
    prompts = [replace(PROMPTS[0], query_id=f"q{n}") for n in range(50)]
    bench = Bench(tmp_path, lambda stage, request: Fault("auth", "no such key"))
    with pytest.raises(EngineError, match=f"stage 'a' failed at {GIVE_UP_AFTER} prompts in a row, last by: no such"):
        bench.run(replace(PLAN, prompts=prompts, stages=LADDER.stages[:1], at_once=1))
    assert len(bench.asked) == GIVE_UP_AFTER


def test_an_estimate_above_the_cap_is_refused_before_any_call(bench):
    with pytest.raises(UsageError, match=r"12 calls are estimated at 18 relative: above --max-cost 17.5"):
        bench.run(replace(PLAN, max_cost=17.5))
    assert not bench.asked
    assert not bench.path.exists()
    assert not bench.run(replace(PLAN, max_cost=18.0)).hit_cap


def test_what_was_paid_before_counts_towards_the_cap(bench):
    bench.run(replace(PLAN, stages=LADDER.stages[:1]))
    with pytest.raises(UsageError, match=r"6 calls are estimated at 12 relative and 6 relative were paid before"):
        bench.run(replace(PLAN, max_cost=17))


def test_a_bill_above_the_estimate_stops_at_the_cap_and_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setattr(COSTS, "billed", lambda stage, attempt: 4.0, raising=False)
    bench = Bench(tmp_path, plan=replace(PLAN, at_once=1, stages=LADDER.stages[:1]))
    found = bench.run(replace(bench.plan, max_cost=8))
    assert (found.hit_cap, found.spent, len(found.rows), found.left_out) == (True, 8.0, 2, {"not asked": 4})
    assert len(bench.run(replace(bench.plan, max_cost=100)).rows) == 6
    assert len(bench.asked) == 6


def test_a_stage_gets_no_more_calls_at_once_than_it_allows(tmp_path):
    at_work, most = 0, 0

    async def sleep(seconds: float) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1

    stage = replace(LADDER["a"], max_concurrency=2)
    engine = ScriptedEngine((stage,), say, delay_s=0.01, sleep=sleep)
    with Journal(tmp_path / "j") as journal:
        means = Means(engines={"a": engine}, costs=COSTS, journal=journal)
        asyncio.run(collect(replace(PLAN, stages=(stage,)), means))
    assert most == 2


# ── judging ──────────────────────────────────────────────────────────────────


def judged(stage, request) -> str:
    if "Reply with one number" not in request.text:
        return say(stage, request)
    return "no idea" if "0+1" in request.text else "Grade: 7/10"


def test_a_judge_grades_every_answer_once(tmp_path):
    bench = Bench(tmp_path, judged, replace(PLAN, method="judge", judge=LADDER["b"]))
    found = bench.run()
    assert {(row.quality, row.metric) for row in found.rows} == {(0.7, "judge:b")}
    assert found.left_out == {"no grade in the judge's reply": 2}
    assert found.calls == len(bench.asked) == 24
    assert found.spent == 18 + 24
    bench.asked.clear()
    assert bench.run().rows == found.rows
    assert not bench.asked


@given(cuts=st.lists(st.integers(1, 24), max_size=3))
@any_folder
def test_judging_cut_anywhere_goes_on(tmp_path_factory, cuts):
    plan = replace(PLAN, method="judge", judge=LADDER["b"], at_once=1)
    whole = fresh(tmp_path_factory, judged, plan).run()
    bench = fresh(tmp_path_factory, judged, plan)
    for cut in cuts:
        with contextlib.suppress(CutError):
            bench.run(cut_after=cut)
    assert bench.run().rows == whole.rows
    assert len(bench.asked) == 24


def test_another_judge_judges_anew_and_asks_for_no_answer_again(tmp_path):
    bench = Bench(tmp_path, judged, replace(PLAN, method="judge", judge=LADDER["b"]))
    bench.run()
    bench.asked.clear()
    found = bench.run(replace(bench.plan, judge=LADDER["a"]))
    assert {row.metric for row in found.rows} == {"judge:a"}
    assert [stage for _, stage in bench.asked] == ["a"] * 12


def test_the_judges_calls_are_in_the_estimate(bench):
    with pytest.raises(UsageError, match="12 calls and their judging are estimated at 42 relative"):
        bench.run(replace(PLAN, method="judge", judge=LADDER["b"], max_cost=41))


def test_the_judge_sees_question_reference_and_answer():
    (message,) = judge_messages(PROMPTS[4], "it is 5")
    assert all(part in message["content"] for part in ("4+1", "it is 5", "\n5\n"))
    many = replace(PROMPTS[4], messages=({"role": "system", "content": "be brief"}, *PROMPTS[4].messages))
    assert "be brief" in judge_messages(many, "5")[0]["content"]


@pytest.mark.parametrize(
    ("text", "quality"),
    [
        ("7", 0.7),
        ("10", 1.0),
        ("0", 0.0),
        ("8.5", 0.85),
        ("Grade: 9/10.", 0.9),
        ("**6**", 0.6),
        ("I give it 3 points", 0.3),
        ("11", None),
        ("-3", None),
        ("none", None),
        ("", None),
        ("95%", None),
        ("1,000", None),
    ],
)
def test_grades_are_read_from_replies(text, quality):
    assert parse_grade(text) == (None if quality is None else pytest.approx(quality))


def test_agreement_is_the_share_of_others_that_say_the_same(tmp_path):
    ladder = make_ladder("a", "b", "c")
    says = {"a": "Let me think.\nParis.", "b": "paris", "c": "Rome"}
    costs = FakeCosts(dict.fromkeys("abc", 0.0))
    engines = {stage.name: ScriptedEngine((stage,), lambda name, request: says[name]) for stage in ladder.stages}
    plan = replace(PLAN, stages=ladder.stages, method="agreement")
    with Journal(tmp_path / "j") as journal:
        found = asyncio.run(collect(plan, Means(engines=engines, costs=costs, journal=journal)))
    assert [row.quality for row in found.rows[:3]] == [0.5, 0.5, 0.0]
    assert found.rows[0].metric == "agreement"
    assert found.rows[0].pred == "Paris."


def test_agreement_uses_the_prompts_grader_and_needs_another_answer():
    assert by_agreement(PROMPTS[0], "it is 1,000", ["1000.0", "7", "none"]) == pytest.approx(1 / 3)
    assert by_agreement(PROMPTS[0], "none", ["None!", "2"]) == 0.5
    assert by_agreement(PROMPTS[0], "1", []) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reference": None}, "prompt 0: the query 'q0' has no reference answer to grade by"),
        ({"grader": None}, "prompt 0: names no grader"),
        ({"grader": "numerc"}, "prompt 0: there is no grader 'numerc'; did you mean 'numeric'?"),
        ({"reference": "many"}, "prompt 0: the grader 'numeric' cannot use it"),
    ],
)
def test_prompts_that_cannot_be_graded_are_named(change, told):
    with pytest.raises(UsageError) as caught:
        check_gradable([replace(PROMPTS[0], **change)], None)
    assert told in str(caught.value)


# ── prompts and traces ───────────────────────────────────────────────────────


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "2+2?", "reference": 4, "grader": "numeric", "group_id": "g", "unknown": 1},
        {"query_id": "x", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)), "utf-8")
    first, second = read_prompts(path)
    assert (first.text, first.reference, first.group_id, first.is_plain) == ("2+2?", "4", "g", True)
    assert (second.query_id, second.text, second.is_plain, second.where) == ("x", "u", False, f"{path}: line 3")
    assert read_prompts(path)[0].query_id == first.query_id


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: is no object"),
        ("{}", "line 2: needs either 'prompt' or 'messages'"),
        ('{"prompt": "a", "splt": "train"}', "line 2: there is no key 'splt'; did you mean 'split'?"),
        ('{"prompt": "a", "groupid": "g"}', "line 2: there is no key 'groupid'; did you mean 'group_id'?"),
        ('{"prompt": "a", "messages": []}', "line 2: needs either"),
        ('{"prompt": " "}', "line 2: prompt should be a text that is not empty"),
        ('{"messages": []}', "line 2: messages should be a list"),
        ('{"prompt": "a", "reference": []}', "line 2: reference should be a text, not []"),
        ('{"prompt": "good"}', "stands on line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n", "utf-8")
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert told in str(caught.value)


def test_no_prompts_at_all(tmp_path):
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(UsageError, match="holds no prompts"):
        read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")


# ── the command line ─────────────────────────────────────────────────────────

FILE = """\
[ladder]
cost_unit = "usd"
[[stages]]
name = "low"
engine = "scripted"
model = "a"
cost = 1.0
options = { reply = "4" }
[[stages]]
name = "high"
engine = "scripted"
model = "b"
cost = 3.0
options = { reply = "The answer is 5" }
"""


@pytest.fixture
def words(tmp_path) -> list[str]:
    (tmp_path / "ladder.toml").write_text(FILE, "utf-8")
    rows = [{"prompt": "2+2?", "reference": "4", "grader": "numeric"}, {"prompt": "2+3?", "reference": "5"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"grader": "numeric", **row}) + "\n" for row in rows), "utf-8")
    places = {"-l": "ladder.toml", "--prompts": "p.jsonl", "--out": "t.jsonl"}
    return ["collect", *(word for flag, name in places.items() for word in (flag, str(tmp_path / name)))]


def test_collect_writes_the_table_and_says_what_came_of_it(words, tmp_path, capsys):
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "4 rows of 2 prompts in" in printed.out
    assert "low: mean quality 0.500 of 2" in printed.out
    assert "4/4 · " in printed.err
    found = outcomes.read(tmp_path / "t.jsonl")
    assert [(row.model, row.quality, row.cost_unit) for row in found[:2]] == [("low", 1.0, "usd"), ("high", 0.0, "usd")]
    assert main([*words, "--agreement"]) == 0
    assert "0 calls in" in capsys.readouterr().out
    assert {row.metric for row in outcomes.read(tmp_path / "t.jsonl")} == {"agreement"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--stages", "lo"], "--stages: no stage 'lo'; did you mean 'low'?"),
        (["--judge", "hgh"], "--judge: no stage 'hgh'; did you mean 'high'?"),
        (["--max-cost", "7"], "4 calls are estimated at 8 usd: above --max-cost 7"),
        (["--max-cost", "lots"], "--max-cost: 'lots' is not a finite number"),
        (["--at-once", "0"], "--at-once: 0 does not lie between 1 and 256"),
        (["--max-tokens", "0"], "--max-tokens: 0 is less than 1"),
        (["--grader", "choice"], "line 1: the grader 'choice' cannot use it"),
        (["--agreement", "--stages", "low"], "--agreement needs two stages"),
        (["--out", "t.csv"], "an outcomes table ends in .parquet or .jsonl"),
    ],
)
def test_collect_asked_wrongly(words, capsys, more, told):
    assert main([*words, *more]) == 2
    assert told in capsys.readouterr().err


def test_collect_refuses_a_table_that_it_did_not_begin(words, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text("precious", "utf-8")
    assert main(words) == 2
    assert "no journal to go on from" in capsys.readouterr().err
    assert (tmp_path / "t.jsonl").read_text("utf-8") == "precious"


def test_collect_names_the_first_prompt_without_a_reference(words, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "reference": "1"}\n{"prompt": "why?"}\n', "utf-8")
    assert main([*words, "--grader", "exact"]) == 2
    told = capsys.readouterr().err
    assert "line 2" in told
    assert "or --judge STAGE, or --agreement" in told


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_collected_table_can_be_replayed(bench, tmp_path, suffix):
    many = replace(PROMPTS[0], query_id="m", messages=({"role": "system", "content": "s"}, *PROMPTS[1].messages))
    found = bench.run(replace(PLAN, prompts=[*PROMPTS[2:], many]))
    path = tmp_path / f"t{suffix}"
    outcomes.write(found.rows, path)
    answers = read_answers(str(path))
    assert {key: attempt.text for key, attempt in answers.items()} == {
        (row.prompt, row.model): row.response for row in found.rows
    }


def test_progress_in_one_line():
    assert told_progress(Progress(30, 120, 4.5), 10.0, "usd") == "30/120 · 3.0 requests/s · 30 s left · cost 4.5 usd"
    assert told_progress(Progress(0, 120, 0), 0.0, "") == "0/120 · 0.0 requests/s · ? s left · cost 0"


# ── traces ───────────────────────────────────────────────────────────────────


@pytest.fixture
def served(words, tmp_path) -> Path:
    """A trace store with two answered requests, one of them climbed; outcomes for the second alone."""
    import stepladder

    path = tmp_path / "traces.sqlite3"
    with stepladder.load(tmp_path / "ladder.toml", environ={}, overrides=["policy.lambda=0"]) as ladder:
        first, second = (ladder.ask(question).trace for question in ("2+2?", "2+3?"))
    later = replace(first.steps[0].view, attempts=first.attempts)
    climb = replace(first.steps[0], view=later, attempt=answer("high", "4."))
    with_both = replace(first, steps=(*first.steps, climb))
    store = SqliteTraceStore(path)
    for trace in (with_both, second):
        store.append(trace)
    store.flush()
    store.outcome(Outcome(second.id, 0.1, "user"))
    store.outcome(Outcome(second.id, 0.25, "user", "low"))
    store.close()
    return path


def answer(stage: str, text: str) -> Attempt:
    return Attempt(stage, text, Usage(3, 1), cost=3.0, logprobs=(-0.5, -1.5))


def test_outcomes_of_traces_become_rows(served, words, tmp_path, capsys):
    asked = ["collect", *words[1:3], "--from", str(served), "--out", str(tmp_path / "t.jsonl")]
    assert main(asked) == 0
    assert "left out 2: no outcome recorded 2" in capsys.readouterr().out
    (row,) = outcomes.read(tmp_path / "t.jsonl")
    assert (row.prompt, row.model, row.quality, row.metric, row.response) == ("2+3?", "low", 0.25, "user", "4")
    assert (row.cost, row.cost_unit, row.dataset) == (1.0, "usd", "traces")


@pytest.mark.parametrize(
    ("flag", "metric", "rows"), [(["--agreement"], "agreement", 2), (["--judge", "low"], "judge:low", 3)]
)
def test_traces_graded_without_outcomes(served, words, tmp_path, flag, metric, rows):
    asked = ["collect", *words[1:3], "--from", str(served), "--out", str(tmp_path / "t.jsonl"), *flag]
    assert main(asked) == 0
    found = outcomes.read(tmp_path / "t.jsonl")
    assert len(found) == rows
    assert {row.metric for row in found} == {metric}
    assert found[1].confidence == -1.0
    assert {row.quality for row in found} == ({1.0} if flag[0] == "--agreement" else {0.4})


def test_traces_asked_wrongly(served, words, tmp_path, capsys):
    asked = ["collect", *words[1:3], "--out", str(tmp_path / "t.jsonl"), "--from"]
    assert main([*asked, "absent.sqlite3"]) == 2
    assert not Path("absent.sqlite3").exists()
    assert main([*asked, str(served), "--grader", "exact"]) == 2
    assert main([*asked, str(served), "--stages", "middle"]) == 2
    assert main([*asked, str(served), "--stages", "high"]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("is no file", "no reference answers", "no answer of these", "no outcomes;"))


def test_a_judge_of_another_ladder_must_count_in_the_same_unit(served, words, tmp_path, capsys):
    (tmp_path / "ladder.toml").write_text(FILE.replace('"usd"', '"relative"'), "utf-8")
    asked = ["collect", *words[1:3], "--from", str(served), "--out", str(tmp_path / "t.jsonl"), "--judge", "low"]
    assert main(asked) == 2
    assert "the traces' costs are in usd, those of the judge's ladder in relative" in capsys.readouterr().err


def test_traces_in_different_units_are_not_mixed():
    from stepladder.testing import make_request

    def trace(unit: str) -> Trace:
        return Trace(unit, 0.0, make_request(), "l", ("a",), "p", "route", unit, Versions(), steps())

    def steps():
        from stepladder.testing import make_view
        from stepladder.types import Call, Decision, Step

        return (Step(make_view({"a": 0.5}, [1.0]), Decision(Call("a")), attempt=answer("a", "4")),)

    with pytest.raises(UsageError, match="in usd, those before in relative"):
        harvest([trace("relative"), trace("usd")], lambda name: ())


def test_local_stages_write_as_many_answers_at_once_as_are_asked_for():
    stage = replace(LADDER["a"], engine="llama")
    assert [fitted(stage, n, 1).options["n_parallel"] for n in (1, 4, 16)] == [4, 4, 16]
    assert fitted(stage, 8, 10_000).options["threads"] == 1
    chosen = replace(stage, options={"threads": 3, "n_parallel": 32})
    assert fitted(chosen, 8, 2).options == chosen.options
