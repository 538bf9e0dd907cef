"""Traces: what is written comes back, whatever the store; a store that cannot be used says why."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from stepladder.errors import TraceError
from stepladder.traces import schema, writer
from stepladder.traces.codec import decode, encode
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.packing import packed
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.traces.weight import weigh, without_raw
from stepladder.types import (
    Absence,
    Attempt,
    Call,
    Cost,
    Decision,
    Dials,
    Drafting,
    Estimates,
    Fail,
    Fallback,
    Fault,
    Outcome,
    Request,
    Speculation,
    Step,
    Stop,
    Trace,
    Usage,
    Versions,
    View,
)
from strategies import traces


def trace(name: str, at: float = 0.0, **params: Any) -> Trace:
    request = Request("r", messages=({"role": "user", "content": "hi"},), params=params)
    return Trace(name, at, request, "nano", ("a",), "greedy", "route", "relative", Versions())


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryTraceStore() if request.param == "memory" else SqliteTraceStore(tmp_path / "t.sqlite3")
    yield made
    made.close()


@given(traces())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_trace_survives_json(trace):
    assert decode(json.loads(json.dumps(encode(trace)))) == trace


def test_no_field_is_left_out():
    """Every one is named where it is written, so one that comes later must be named there too."""
    told = {
        Dials: Dials(1.0, "route", "a", "b", 2.0, True, "restart", 3, True, "s"),
        Versions: Versions("1", "2", "3", "4"),
        Cost: Cost(1.0, 2.0, 3.0, 4.0, 5.0),
        Absence: Absence("full", "m", 1.0),
        Fallback: Fallback("a", "r"),
        Fault: Fault("server", "m", 500, 1.0),
        Usage: Usage(1, 2, 3),
        Drafting: Drafting("a", "b", 2, 1),
    }
    made = Attempt("a", usage=told[Usage], speculation=Speculation(pairs=(told[Drafting],)))
    view = replace(_view(made), costs={"a": told[Cost]}, absent={"a": told[Absence]}, fallback=told[Fallback])
    whole = replace(
        trace("a"),
        request=Request("r", dials=told[Dials]),
        versions=told[Versions],
        steps=(Step(_view(), Decision(Call("a")), attempt=made), Step(view, Decision(Fail(told[Fault])))),
    )
    body = encode(whole)
    first, last = body["steps"]
    written = {
        Dials: body["request"]["dials"],
        Versions: body["versions"],
        Cost: last["costs"]["a"],
        Absence: last["absent"]["a"],
        Fallback: last["fallback"],
        Fault: last["action"]["fail"],
        Usage: first["attempt"]["usage"],
        Drafting: first["attempt"]["speculation"]["pairs"][0],
    }
    for kind, value in told.items():
        assert written[kind] == {each.name: getattr(value, each.name) for each in fields(kind)}, kind
    assert decode(body) == whole


def test_traces_of_before_speculation_was_told_read_on():
    made = Attempt("a", "one", speculation=Speculation(("b", "a"), (Drafting("b", "a", 8, 5),), {"a": 3}))
    whole = replace(
        trace("dec-1"),
        steps=(Step(_view(), Decision(Call("a")), attempt=made), Step(_view(made), Decision(Stop(made)))),
    )
    body = encode(whole)
    assert decode(body) == whole
    del body["steps"][0]["attempt"]["speculation"]
    assert decode(body).attempts == (replace(made, speculation=None),)
    assert "speculation" not in encode(decode(body))["steps"][0]["attempt"]
    body["steps"][0]["attempt"]["speculation"] = {"chain": ["a"]}
    with pytest.raises(TraceError, match="'dec-1' is damaged"):
        decode(body)


def test_another_schema_is_refused():
    with pytest.raises(TraceError, match="schema 99"):
        decode({"schema": 99})


def test_a_damaged_record_is_named():
    body = encode(trace("dec-1"))
    del body["steps"]
    with pytest.raises(TraceError, match="'dec-1' is damaged"):
        decode(body)


def test_what_was_appended_is_read_at_once(store):
    store.append(trace("a"))
    assert store.get("a") == trace("a")
    assert store.get("b") is None


def test_traces_come_in_order_from_a_time_on(store):
    for number in range(5):
        store.append(trace(str(number), float(number)))
    assert [t.id for t in store.read(since=2.0)] == ["2", "3", "4"]
    assert [t.id for t in store.read(limit=2)] == ["0", "1"]


def test_the_same_outcome_again_replaces_the_first(store):
    store.outcome(Outcome("a", 0.5, "user"))
    store.outcome(Outcome("a", 1.0, "user"))
    store.outcome(Outcome("a", 0.2, "judge", "small", "vague"))
    assert set(store.outcomes("a")) == {Outcome("a", 1.0, "user"), Outcome("a", 0.2, "judge", "small", "vague")}


def test_a_file_keeps_what_it_holds(tmp_path):
    first = SqliteTraceStore(tmp_path / "t.sqlite3")
    for number in range(1000):
        first.append(trace(str(number), float(number)))
    first.close()
    first.close()
    second = SqliteTraceStore(tmp_path / "t.sqlite3")
    assert len(list(second.read())) == 1000
    second.close()


def test_memory_stays_bounded():
    store = MemoryTraceStore(Keeping(keep_rows=3))
    for number in range(10):
        store.append(trace(str(number)))
    assert [t.id for t in store.read()] == ["7", "8", "9"]


def test_a_file_that_is_no_store(tmp_path):
    path = tmp_path / "t.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(TraceError, match="is no trace store"):
        SqliteTraceStore(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be opened"):
        SqliteTraceStore(tmp_path / "file" / "t.sqlite3")


def test_a_newer_store_is_left_alone(tmp_path):
    path = tmp_path / "t.sqlite3"
    SqliteTraceStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(TraceError, match="schema 99, written by a newer"):
        SqliteTraceStore(path)


def test_what_the_disk_refuses_is_counted(tmp_path, caplog):
    store = SqliteTraceStore(Path(tmp_path) / "t.sqlite3")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("DROP TABLE traces")
    store.append(trace("a"))
    store.flush()
    assert store.counts().shed == 1
    assert "could not be written" in caplog.text
    store.close()


@contextmanager
def held(store: SqliteTraceStore):
    """While the block lasts somebody else writes to the file, as far as the store can see."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_trace_that_cannot_be_encoded_takes_no_other_along(tmp_path, caplog):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store.append(trace("a"))
    store.append(trace("deep", metadata=nested(300)))
    store.append(trace("odd", value=object()))
    store.append(trace("b"))
    store.flush(2.0)
    assert [each.id for each in store.read()] == ["a", "b"]
    assert store.counts().shed == 2
    assert "'deep' could not be encoded" in caplog.text
    store.append(trace("c"))
    assert store.get("c") == trace("c")
    store.close()


def test_a_trace_that_is_no_row_takes_no_other_along(tmp_path, caplog):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    dear = Attempt("a", cost=nan)
    odd = replace(trace("odd"), steps=(Step(_view(), Decision(Call("a")), attempt=dear),))
    for each in (trace("a"), odd, trace("half \udc80 of a pair"), trace("b")):
        store.append(each)
    assert [each.id for each in store.read()] == ["a", "b"]
    counts = store.counts()
    assert (counts.written, counts.shed, counts.waiting, counts.waiting_bytes) == (2, 2, 0, 0)
    assert "'odd' could not be written" in caplog.text
    store.close()


# ── when it is written ───────────────────────────────────────────────────────


def soon(true: Callable[[], bool]) -> None:
    last = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < last, "it did not come to that"
        time.sleep(0.005)


def test_traces_gather_and_are_written_together_unasked(tmp_path):
    done: list[str] = []
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store._writer._db.set_trace_callback(done.append)
    for number in range(100):
        store.append(trace(str(number)))
    soon(lambda: store.counts().written == 100)
    assert done.count("COMMIT") < 10
    store.close()


@pytest.fixture
def patient(monkeypatch):
    """A pause that no test could sit out."""
    monkeypatch.setattr(writer, "PAUSE_S", 3600.0)


def test_whoever_waits_does_not_wait_for_more_to_come(tmp_path, patient):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store.append(trace("a"))
    assert store.get("a") == trace("a")
    store.append(trace("b"))
    receipt = store.report(Outcome("b", 1.0, "user")).result(20.0)
    assert (receipt.change, receipt.found) == ("added", True)
    soon(lambda: store.counts().written == 2)  # with the outcome
    for number in range(writer.BATCH + 10):  # more than is handled at once
        store.append(trace(f"more-{number}"))
    assert len(list(store.read())) == writer.BATCH + 12
    store.append(trace("c"))
    store.close()
    assert store.counts().written == writer.BATCH + 13


@pytest.mark.parametrize("keeping", [Keeping(queue_rows=20), Keeping(queue_bytes=40_000)])
def test_a_queue_that_fills_is_written_before_it_is_full(tmp_path, patient, keeping):
    store = SqliteTraceStore(tmp_path / "t.sqlite3", keeping)
    with held(store):  # until all of them wait
        for number in range(15):
            store.append(trace(str(number), user="x" * 1000))
    soon(lambda: store.counts().written == 15)
    assert store.counts().shed == 0
    store.close()


def test_a_script_that_ends_without_closing_loses_nothing(tmp_path):
    script = (
        "from stepladder.testing import make_trace\n"
        "from stepladder.traces.sqlite import SqliteTraceStore\n"
        f"store = SqliteTraceStore({str(tmp_path / 't.sqlite3')!r})\n"
        "for number in range(10):\n"
        "    store.append(make_trace(f'dec-{number}'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        assert [each.id for each in store.read()] == [f"dec-{number}" for number in range(10)]


def test_an_idle_store_waits_for_the_end_of_its_pause(tmp_path, patient):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store.append(trace("a"))
    time.sleep(0.1)
    assert (store.counts().written, store.counts().waiting) == (0, 1)
    store.close()


def test_a_reader_does_not_wait_for_ever(tmp_path):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    with held(store):
        store.append(trace("a"))
        with pytest.raises(TraceError, match="did not write within 0.2 s"):
            store.flush(0.2)
    store.flush(2.0)
    store.close()


def test_a_reader_is_told_that_nobody_writes(tmp_path):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store._writer._put(None, urgent=True)  # ends the writer
    store._writer._thread.join()
    with pytest.raises(TraceError, match="has stopped writing"):
        store.flush(60.0)
    store.close()


@pytest.fixture
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(schema, "BUSY_S", 0.01)
    monkeypatch.setattr(writer, "RETRY_S", (0.01, 0.01, 0.01))


def test_a_locked_file_loses_nothing_once_it_is_free(tmp_path, monkeypatch, in_a_hurry):
    monkeypatch.setattr(writer, "RETRY_S", (0.05,) * 200)
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.append(trace("a"))
        with pytest.raises(TraceError, match="did not write"):
            store.flush(0.3)
        other.execute("COMMIT")
    assert store.get("a") == trace("a")
    assert store.counts().shed == 0
    store.close()


def test_a_file_that_stays_locked_is_given_up(tmp_path, in_a_hurry, caplog):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.append(trace("a"))
        store.flush(5.0)
        SqliteTraceStore(store.path).close()  # whose tables are there: it opens all the same
    assert store.counts().shed == 1
    assert "1 traces could not be written" in caplog.text
    store.append(trace("b"))
    assert store.get("b") == trace("b")
    store.close()


def test_a_new_file_that_somebody_else_holds(tmp_path, in_a_hurry):
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TraceError, match="is in use"):
            SqliteTraceStore(path)


def test_a_closed_store_says_so(tmp_path, caplog):
    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    store.append(trace("a"))
    store.close()
    store.append(trace("b"))
    assert store.counts().shed == 1
    assert "'b' came after the store was closed" in caplog.text
    for use in (
        lambda: store.get("a"),
        store.read,
        store.flush,
        lambda: store.outcomes("a"),
        lambda: store.outcome(Outcome("a", 1.0, "user")),
    ):
        with pytest.raises(TraceError, match="was closed"):
            use()
    again = SqliteTraceStore(store.path)
    assert [each.id for each in again.read()] == ["a"]
    again.close()


# ── memory ───────────────────────────────────────────────────────────────────


def test_a_weight_is_near_what_is_held():
    assert weigh(trace("a")) < 10_000
    assert 1_000_000 < weigh(trace("a", user="x" * 1_000_000)) < 1_010_000
    assert 4_000_000 < weigh(trace("a", user="\U0001f9d7" * 1_000_000)) < 4_010_000
    assert weigh(trace("a", metadata=[[]] * 100_000)) > 6_000_000
    assert weigh(trace("a", metadata={"x" * 1000: 1})) - weigh(trace("a")) > 1000
    many = weigh(trace("a", metadata=["x" * 1000] * 100))
    assert 10_000 < weigh(trace("a", metadata=["x" * 1000] * 100), 10_000) < many  # it need not know more


def test_memory_stays_bounded_in_bytes():
    store = MemoryTraceStore(Keeping(queue_bytes=1_000_000))
    for number in range(100):
        store.append(trace(str(number), user="x" * 100_000))
    assert [each.id for each in store.read()] == [str(number) for number in range(91, 100)]
    store.append(trace("99"))  # the same again, lighter
    assert len(list(store.read())) == 9
    store.append(trace("heavy", user="x" * 2_000_000))
    assert [each.id for each in store.read()] == ["heavy"]
    store.append(trace("light"))
    assert [each.id for each in store.read()] == ["light"]


def test_bytes_take_no_more_room_than_they_say():
    whole = trace("a", user="x" * 3_000)  # what is written grows by doubling, and this would end far from full
    packed(whole)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [packed(whole) for _ in range(100)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.1 * sum(map(sys.getsizeof, kept)) + 10_000


def test_memory_keeps_also_what_no_file_could():
    store = MemoryTraceStore()
    odd = trace("odd", value=(thing := object()))
    raw = replace(odd, steps=(Step(_view(), Decision(Call("a")), attempt=Attempt("a", raw={"id": "x" * 10_000})),))
    store.append(raw)
    kept = store.get("odd")
    assert kept == raw
    assert kept.request.params["value"] is thing
    assert kept.attempts[0].raw is None
    assert [each.trace for each in store.scan()] == list(store.read()) == [raw]
    store.append(trace("heavy", value=object(), user="x" * 100_000_000))  # it is weighed as any other
    assert [each.id for each in store.read()] == ["heavy"]


def test_what_memory_keeps_is_a_copy():
    store = MemoryTraceStore()
    params = {"stop": ["a"]}
    store.append(trace("a", **params))
    params["stop"].append("b")
    assert store.get("a").request.params == {"stop": ["a"]}


def test_traces_that_wait_for_the_disk_stay_bounded_in_bytes(tmp_path):
    store = SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(queue_bytes=1_000_000))
    with held(store):
        for number in range(100):
            store.append(trace(str(number), user="x" * 100_000))
        assert store.counts().shed == 91
    assert [each.id for each in store.read()] == [str(number) for number in range(9)]
    store.append(trace("heavy", user="x" * 2_000_000))
    assert store.get("heavy") is not None
    assert (store.counts().waiting, store.counts().waiting_bytes) == (0, 0)
    store.close()


def test_raw_replies_are_not_kept():
    raw = {"choices": ["x" * 1_000_000]}
    first, second = Attempt("a", "one", raw=raw), Attempt("b", "two", raw=raw)
    whole = replace(
        trace("a"),
        steps=(
            Step(_view(), Decision(Call("a")), attempt=first),
            Step(_view(first), Decision(Call("b", draft=first)), attempt=second),
            Step(_view(first, second), Decision(Stop(second))),
        ),
        answer_index=1,
    )
    store = MemoryTraceStore()
    store.append(whole)
    kept = store.get("a")
    assert kept == whole
    held = [each for step in kept.steps for each in (step.attempt, *step.view.attempts) if each is not None]
    assert [each.raw for each in held] == [None] * 5
    assert kept.steps[2].decision.action.attempt is kept.steps[1].attempt
    assert kept.steps[1].decision.action.draft is kept.steps[0].attempt
    assert without_raw(kept) is kept


def _view(*attempts: Attempt) -> View:
    return View(("a", "b"), 1.0, Estimates({}), {}, attempts)
