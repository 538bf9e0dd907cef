"""POST /v1/feedback: what is answered with 200 is kept, what is not kept is answered with something else."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from gateway_fakes import Got, get, post, world
from stepladder.contracts import TraceStore
from stepladder.errors import RequestError, TraceError
from stepladder.gateway.access import Access, FreeGate
from stepladder.gateway.app import create_app
from stepladder.gateway.feedback import KEYS, LIMITS, VERDICTS, keep, read_feedback
from stepladder.router import Router
from stepladder.testing import make_trace
from stepladder.traces import memory, schema, writer
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Outcome, Receipt

QUESTION = {"model": "stepladder", "messages": [{"role": "user", "content": "What is 2+2?"}]}


@dataclass
class Place:
    """A gateway over fakes and a store that keeps."""

    app: Starlette
    store: TraceStore

    async def tell(self, **body) -> Got:
        return await post(self.app, "/v1/feedback", body)

    async def answered(self) -> str:
        return (await post(self.app, "/v1/chat/completions", QUESTION)).json["stepladder"]["decision_id"]


def place(store: TraceStore) -> Place:
    return Place(create_app(Router(replace(world().router.parts, store=store))), store)


@pytest.fixture(params=["memory", "sqlite"])
def here(request, tmp_path):
    store = MemoryTraceStore() if request.param == "memory" else SqliteTraceStore(tmp_path / "t.sqlite3")
    yield place(store)
    store.close()


# ── what is told is there ────────────────────────────────────────────────────


async def test_feedback_stands_beside_its_decision_at_once(here) -> None:
    decision = await here.answered()
    got = await here.tell(decision_id=decision, verdict="good", comment="short and right")
    assert got.status == 200
    assert got.json == {
        "object": "stepladder.feedback",
        "decision_id": decision,
        "score": 1.0,
        "source": "user",
        "stage": None,
        "key": None,
        "change": "added",
        "trace": "found",
    }
    shown = (await get(here.app, f"/v1/decisions/{decision}")).json["outcomes"]
    assert shown == [{"score": 1.0, "source": "user", "stage": None, "comment": "short and right", "key": None}]


async def test_feedback_outlives_and_precedes_its_trace(here) -> None:
    got = await here.tell(decision_id="dec-1", score=0.25, source="judge", key="run-7")
    assert (got.status, got.json["trace"]) == (200, "unknown")
    assert await here.answered() == "dec-1"  # out of order: the trace comes after its feedback
    shown = (await get(here.app, "/v1/decisions/dec-1")).json["outcomes"]
    assert [each["key"] for each in shown] == ["run-7"]


async def test_the_same_again_makes_no_row_and_another_is_a_conflict(here) -> None:
    first = {"decision_id": "dec-9", "score": 0.5, "source": "judge", "key": "k"}
    changes = [(await here.tell(**first)).json["change"] for _ in range(3)]
    assert changes == ["added", "same", "same"]
    for other in ({"score": 0.75}, {"comment": "so-so"}, {"stage": "small"}):
        got = await here.tell(**{**first, **other})
        assert (got.status, got.error["code"], got.error["param"]) == (409, "feedback_conflict", "key")
    assert here.store.outcomes("dec-9") == (Outcome("dec-9", 0.5, "judge", key="k"),)
    elsewhere = [{**first, "source": "user"}, {**first, "decision_id": "dec-8"}, {**first, "key": "l"}]
    assert [(await here.tell(**other)).json["change"] for other in elsewhere] == ["added"] * 3


async def test_without_a_key_a_source_may_change_its_mind(here) -> None:
    verdicts = ("good", "bad", "bad", "good")
    changes = [(await here.tell(decision_id="dec-9", verdict=verdict)).json["change"] for verdict in verdicts]
    assert changes == ["added", "replaced", "same", "replaced"]
    assert (await here.tell(decision_id="dec-9", verdict="bad", stage="large")).json["change"] == "added"
    assert {(each.stage, each.score) for each in here.store.outcomes("dec-9")} == {(None, 1.0), ("large", 0.0)}


outcomes = st.builds(
    Outcome,
    decision_id=st.sampled_from(["d1", "d2"]),
    score=st.sampled_from([0.0, 1.0]),
    source=st.sampled_from(["user", "judge"]),
    stage=st.sampled_from([None, "small"]),
    key=st.sampled_from([None, "k1", "stage:small"]),
)


@given(st.lists(outcomes, max_size=10))
@settings(max_examples=25)
def test_a_file_and_memory_make_the_same_of_it(tmp_path_factory, told) -> None:
    kept = MemoryTraceStore()
    with closing(SqliteTraceStore(tmp_path_factory.mktemp("s") / "t.sqlite3")) as file:
        reports = [file.report(each) for each in told]  # all at once, so that they share commits
        assert [report.result(10) for report in reports] == [kept.outcome(each) for each in told]
        for decision in ("d1", "d2"):
            assert file.outcomes(decision) == kept.outcomes(decision)


class OneKey(FreeGate):
    """Everybody is 'team-a', who reads its own decisions alone."""

    def enter(self, scope) -> Access:
        return SimpleNamespace(caller="team-a", headers=(), reads=lambda: "team-a", leave=lambda: None)


async def test_nobody_judges_the_answers_to_others(tmp_path) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        for caller in ("team-a", "team-b"):
            trace = make_trace(f"dec-{caller}")
            store.append(replace(trace, request=replace(trace.request, caller=caller)))
        there = Place(create_app(Router(replace(world().router.parts, store=store)), gate=OneKey()), store)
        got = await there.tell(decision_id="dec-team-b", score=0)
        assert (got.status, got.error["code"]) == (404, "decision_not_found")
        assert store.outcomes("dec-team-b") == ()
        assert [(await there.tell(decision_id=each, score=0)).status for each in ("dec-team-a", "dec-9")] == [200, 200]


# ── what is wrong is told ────────────────────────────────────────────────────


@pytest.mark.parametrize(("verdict", "score"), VERDICTS.items())
def test_verdicts_are_scores(verdict, score) -> None:
    assert read_feedback({"decision_id": "d", "verdict": verdict}).score == score


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"score": 1}, "decision_id", "decision_id is missing"),
        ({"decision_id": "", "score": 1}, "decision_id", "must be a string that says something"),
        ({"decision_id": 7, "score": 1}, "decision_id", "7 must be a string"),
        ({"decision_id": "d"}, "score", "either score"),
        ({"decision_id": "d", "score": 1, "verdict": "good"}, "score", "either score"),
        ({"decision_id": "d", "score": 1.5}, "score", "1.5 is no number from 0 to 1"),
        ({"decision_id": "d", "score": -0.1}, "score", "-0.1 is no number from 0 to 1"),
        ({"decision_id": "d", "score": True}, "score", "True is no number"),
        ({"decision_id": "d", "score": "1"}, "score", "'1' is no number"),
        ({"decision_id": "d", "score": float("nan")}, "score", "nan is no number"),
        ({"decision_id": "d", "verdict": "great"}, "verdict", "'great' is none; valid: good"),
        ({"decision_id": "d", "verdict": ["good"]}, "verdict", "is none; valid: good"),
        ({"decision_id": "d", "score": 1, "source": " "}, "source", "must be a string that says something"),
        ({"decision_id": "d", "score": 1, "comment": {"text": "x"}}, "comment", "must be a string"),
        (
            {"decision_id": "d", "score": 1, "comment": "x" * 10_001},
            "comment",
            "has 10001 characters; it may have 10000",
        ),
        ({"decision_id": "d", "score": 1, "key": "x" * 201}, "key", "has 201 characters"),
        ({"decision_id": "d", "score": 1, "scores": 1}, "scores", "did you mean 'score'?"),
    ],
)
def test_wrong_feedback_is_refused_by_name(body, param, told) -> None:
    with pytest.raises(RequestError) as caught:
        read_feedback(body)
    assert told in str(caught.value)
    assert caught.value.param == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), json_values, max_size=5))
def test_any_body_is_read_or_refused(body) -> None:
    try:
        outcome = read_feedback(body)
    except RequestError:
        return
    assert 0.0 <= outcome.score <= 1.0
    assert len(outcome.comment or "") <= LIMITS["comment"]


async def test_a_body_that_is_no_object(here) -> None:
    got = await post(here.app, "/v1/feedback", b"[1]")
    assert (got.status, got.error["code"]) == (400, "invalid_json")
    got = await get(here.app, "/v1/feedback")
    assert got.status == 405


# ── the disk ─────────────────────────────────────────────────────────────────


@contextmanager
def held(store: SqliteTraceStore):
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


@pytest.fixture
def file(tmp_path: Path):
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        yield store


async def test_many_at_once_share_a_commit(file, monkeypatch) -> None:
    done: list[str] = []
    there = place(file)
    await there.tell(decision_id="first", score=1)
    file._writer._db.set_trace_callback(done.append)
    with held(file):
        asked = [asyncio.create_task(there.tell(decision_id=f"dec-{n}", score=0.5)) for n in range(100)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in asked)  # nothing is said before it is kept
    assert [(await task).status for task in asked] == [200] * 100
    commits = [statement for statement in done if statement == "COMMIT"]
    assert len(commits) <= 3
    assert done.index("PRAGMA synchronous=FULL") < done.index("COMMIT")
    assert file.counts().feedback_accepted == 101


async def test_a_full_disk_is_no_200(file, caplog) -> None:
    there = place(file)
    (pages,) = file._writer._db.execute("PRAGMA page_count").fetchone()
    file._writer._db.execute(f"PRAGMA max_page_count={pages + 20}")
    kept, refused = [], []
    for number in range(20):
        got = await there.tell(decision_id=f"dec-{number}", score=1, comment="x" * 9_000)
        if got.status == 200:
            kept.append(number)
        else:
            assert (got.status, got.headers["retry-after"], got.error["code"]) == (503, "1", "trace_error")
            assert "full" in got.error["message"]
            refused.append(number)
    assert kept
    assert refused
    assert [n for n in range(20) if file.outcomes(f"dec-{n}")] == kept
    file._writer._db.execute("PRAGMA max_page_count=1000000")
    assert (await there.tell(decision_id="dec-19", score=1)).status == 200  # it goes on once there is room
    counts = file.counts()
    assert (counts.feedback_accepted, counts.feedback_failed) == (len(kept) + 1, len(refused))


async def test_a_file_that_is_locked_for_long_is_no_200(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(schema, "BUSY_S", 0.05)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store, held(store):
        got = await place(store).tell(decision_id="dec-1", score=1)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert "locked" in got.error["message"]
        assert store.outcomes("dec-1") == ()


async def test_a_disk_that_hangs_keeps_nobody_waiting_for_ever(file) -> None:
    with held(file):
        reply = await keep(file, Outcome("dec-1", 1.0, "user"), wait_s=0.1)
        assert reply.status == 503
        assert b"did not write within 0.1 s" in reply.body
    assert file.outcome(Outcome("dec-2", 1.0, "user")).change == "added"


def test_a_caller_that_leaves_before_its_turn_is_not_written(file) -> None:
    with held(file):
        first = file.report(Outcome("dec-1", 1.0, "user"))
        while not first.running():
            time.sleep(0.01)
        second = file.report(Outcome("dec-2", 1.0, "user"))
        assert second.cancel()
    assert first.result(10).change == "added"
    assert file.outcome(Outcome("dec-3", 1.0, "user")).change == "added"
    assert file.outcomes("dec-2") == ()
    assert file.counts().feedback_waiting == 0


async def test_more_than_can_wait_is_refused(file, monkeypatch) -> None:
    monkeypatch.setattr(writer, "MAX_REPORTS", 2)
    with held(file):
        waiting = [file.report(Outcome(f"dec-{n}", 1.0, "user")) for n in range(2)]
        got = await place(file).tell(decision_id="dec-2", score=1)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert file.counts().feedback_failed == 1
    assert [each.result(10).change for each in waiting] == ["added", "added"]


async def test_a_store_that_was_closed(tmp_path) -> None:
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store.close()
    got = await place(store).tell(decision_id="dec-1", score=1)
    assert (got.status, got.headers["retry-after"]) == (503, "1")


def test_what_waits_at_the_end_is_written(tmp_path) -> None:
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    told: list[Future[Receipt]] = [store.report(Outcome(f"dec-{n}", 1.0, "user")) for n in range(300)]
    store.close()
    assert {each.result(0).change for each in told} == {"added"}
    with closing(SqliteTraceStore(store.path)) as again:
        assert all(again.outcomes(f"dec-{n}") for n in range(300))


def test_traces_that_fail_take_no_feedback_along(tmp_path, caplog) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("CREATE TRIGGER no BEFORE INSERT ON traces BEGIN SELECT RAISE(ABORT, 'no'); END")
        store.append(make_trace("dec-1"))
        assert store.outcome(Outcome("dec-1", 1.0, "user")).change == "added"
        store.flush()
        assert store.counts().shed == 1
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("DROP TABLE outcomes")
        with pytest.raises(TraceError, match="could not be written"):
            store.outcome(Outcome("dec-1", 1.0, "user"))


def test_one_that_cannot_be_kept_at_all_takes_no_other_along(file, caplog) -> None:
    names = ("dec-1", "half \udc80 of a pair", "dec-2")
    with held(file):
        told = [file.report(Outcome(name, 1.0, "user")) for name in names]
    assert [each.result(10).change for each in (told[0], told[2])] == ["added", "added"]
    with pytest.raises(TraceError, match="could not be written"):
        told[1].result(10)
    counts = file.counts()
    assert (counts.feedback_accepted, counts.feedback_failed, counts.feedback_waiting) == (2, 1, 0)


def test_memory_keeps_no_more_than_so_many(monkeypatch) -> None:
    monkeypatch.setattr(memory, "KEEP_FEEDBACK", 3)
    store = MemoryTraceStore()
    for number in range(5):
        store.outcome(Outcome("dec-1", 1.0, "user", key=str(number)))
    assert [each.key for each in store.outcomes("dec-1")] == ["2", "3", "4"]


async def test_a_private_store_keeps_scores_and_no_comments(tmp_path) -> None:
    for prompts in ("hash", "omit"):
        with closing(SqliteTraceStore(tmp_path / f"{prompts}.sqlite3", Keeping(prompts=prompts))) as store:
            there = place(store)
            told = {"decision_id": "dec-1", "score": 0.5, "comment": "MARKER", "key": "k"}
            assert [(await there.tell(**told)).json["change"] for _ in range(2)] == ["added", "same"]
            (kept,) = store.outcomes("dec-1")
            assert kept.score == 0.5
            assert (kept.comment is None) if prompts == "omit" else kept.comment.startswith("hash:")
