"""What is stored can be taken out: over HTTP as JSON lines, as a file, as a table that training reads."""

from __future__ import annotations

import asyncio
import stat
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_fakes import ask, get, world
from stepladder.cli import main
from stepladder.errors import RequestError, TraceError
from stepladder.evaluate.outcomes import read
from stepladder.gateway import export
from stepladder.gateway.app import Sent, create_app, cut_off
from stepladder.gateway.export import LIMIT, Wanted, lines, read_query, read_time
from stepladder.gateway.watch import Visit
from stepladder.router import Router
from stepladder.testing import make_attempt, make_trace
from stepladder.traces import sqlite
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Call, Decision, Outcome, Step, Stop, Trace

DAY = 86_400.0


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryTraceStore() if request.param == "memory" else SqliteTraceStore(tmp_path / "t.sqlite3")
    for number in range(250):
        made.append(make_trace(f"dec-{number}", number * DAY, "large" if number % 10 == 0 else "small"))
    made.outcome(Outcome("dec-3", 1.0, "user"))
    yield made
    made.close()


def app(store):
    return create_app(Router(replace(world().router.parts, store=store)))


async def exported(store, query: str = "") -> list[dict]:
    got = await ask(app(store), "GET", "/v1/decisions", query=query.encode())
    assert (got.status, got.headers["content-type"]) == (200, "application/x-ndjson")
    return [orjson.loads(line) for line in got.body.splitlines()]


# ── over HTTP ────────────────────────────────────────────────────────────────


async def test_each_line_is_what_one_decision_shows(store) -> None:
    found = await exported(store)
    assert [each["id"] for each in found] == [f"dec-{number}" for number in range(250)]
    cursor = found[3].pop("cursor")
    assert found[3] == (await get(app(store), "/v1/decisions/dec-3")).json
    assert [each["score"] for each in found[3]["outcomes"]] == [1.0]
    assert [each["id"] for each in await exported(store, f"cursor={cursor}&limit=2")] == ["dec-4", "dec-5"]


async def test_what_is_asked_for_is_what_comes(store) -> None:
    assert [each["id"] for each in await exported(store, "stage=large&limit=3")] == ["dec-0", "dec-10", "dec-20"]
    within = await exported(store, f"since={5 * DAY}&until=1970-01-08")
    assert [each["id"] for each in within] == ["dec-5", "dec-6"]
    assert await exported(store, "stage=none-such") == []
    assert await exported(store, "since=2026-01-01T00:00:00Z") == []


@given(st.lists(st.integers(1, 70), min_size=1, max_size=8))
@settings(max_examples=15)
def test_any_pages_give_every_trace_once_and_in_order(sizes) -> None:
    """And what is written while somebody reads comes behind, however the pages fall."""

    async def read_all() -> list[str]:
        kept = MemoryTraceStore()
        for number in range(90):
            kept.append(make_trace(f"dec-{number}", float(-number)))
        found, after, turn = [], 0, 0
        while True:
            wanted = Wanted(since=-1e9, after=after, limit=sizes[turn % len(sizes)])
            part = [orjson.loads(line) async for text in lines(kept, wanted) for line in text.splitlines()]
            if not part:
                return found
            found += [each["id"] for each in part]
            after = int(part[-1]["cursor"])
            if turn == 0:
                kept.append(make_trace("dec-late", -1e6))  # made long ago, written now
            turn += 1

    assert asyncio.run(read_all()) == [*(f"dec-{number}" for number in range(90)), "dec-late"]


async def test_pages_end_where_they_weigh_enough(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sqlite, "PAGE_BYTES", 50_000)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as kept:
        for number in range(20):
            kept.append(make_trace(f"dec-{number}", number, text="x" * 20_000))
        assert len(kept.scan(limit=20)) == 3
        assert len(await exported(kept)) == 20
        assert len(list(kept.read())) == 20


async def test_memory_does_not_grow_with_what_is_exported(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sqlite, "PAGE_BYTES", 500_000)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as kept:
        for number in range(400):
            kept.append(make_trace(f"dec-{number}", number, text="x" * 50_000))
        kept.flush()
        tracemalloc.start()
        try:
            sizes = [len(part) async for part in lines(kept, Wanted())]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sum(sizes) > 20_000_000
    assert peak < 6_000_000


async def test_a_caller_with_a_key_sees_its_own_alone(store) -> None:
    for name in ("a", "b"):
        trace = make_trace(f"dec-{name}", 1e9)
        store.append(replace(trace, request=replace(trace.request, caller=name)))
    text = b"".join([part async for part in lines(store, Wanted(caller="b"))])
    assert [orjson.loads(line)["id"] for line in text.splitlines()] == ["dec-b"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("limit=0", "limit '0' is no whole number from 1 to 1000000"),
        ("limit=1000001", "is no whole number"),
        ("limit=ten", "is no whole number"),
        ("limit=", "is no whole number"),
        ("since=yesterday", "since 'yesterday' is no time; give seconds since the epoch or a date"),
        ("until=nan", "until 'nan' is no time"),
        ("cursor=-1", "cursor '-1' is none; take one from an exported line"),
        ("cursor=" + "9" * 30, "is none; take one"),
        ("stage=", "stage is empty"),
        ("sinse=1", "did you mean 'since'?"),
        ("since=1&since=2", "since is given twice"),
    ],
)
async def test_wrong_parameters_are_refused_by_name(store, query, told) -> None:
    got = await ask(app(store), "GET", "/v1/decisions", query=query.encode())
    assert got.status == 400
    assert told in got.error["message"]


@given(st.binary(max_size=60))
def test_any_query_is_read_or_refused(query) -> None:
    try:
        read_query(query)
    except RequestError:
        return


def test_a_query_that_says_nothing() -> None:
    assert read_query(b"") == Wanted(limit=LIMIT)


@pytest.mark.parametrize(
    "text",
    [
        "86400",
        "1970-01-02",
        "1970-01-02T00:00:00Z",
        "1970-01-02 00:00",
        "1970-01-02T02:00:00+02:00",
        "1970-01-02T02:00 02:00",
    ],
)
def test_times(text) -> None:
    assert read_time("since", text) == DAY


async def test_a_store_that_cannot_be_read_is_a_503(tmp_path) -> None:
    kept = SqliteTraceStore(tmp_path / "t.sqlite3")
    kept.close()
    got = await get(app(kept), "/v1/decisions")
    assert (got.status, got.error["code"]) == (503, "trace_error")


class Breaking(MemoryTraceStore):
    """Fails at the second page."""

    def scan(self, *, after: int = 0, **wanted):
        if after:
            raise TraceError("the disk is gone")
        return super().scan(after=after, **wanted)


async def test_an_export_that_breaks_off_stays_unfinished(monkeypatch, caplog) -> None:
    monkeypatch.setattr(export, "PAGE", 2)
    kept, sent = Breaking(), []
    for number in range(5):
        kept.append(make_trace(f"dec-{number}", number))

    async def send(message) -> None:
        sent.append(message)

    reply = await export.export(kept, Wanted())
    await reply(send)
    assert [message.get("more_body") for message in sent] == [None, True]
    assert len(sent[1]["body"].splitlines()) == 2
    assert "an export broke off: the disk is gone" in caplog.text


@pytest.mark.parametrize(("kind", "told"), [(b"application/x-ndjson", 0), (b"text/event-stream; charset=utf-8", 2)])
async def test_a_server_that_ends_leaves_an_export_unfinished(kind, told) -> None:
    """A stream of events is told of it in an event; among JSON lines that would be a line too many."""
    sent = []

    async def send(message) -> None:
        sent.append(message)

    reply = Sent(send, Visit(1, "decisions", "GET", 0.0))
    await reply({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await reply({"type": "http.response.body", "body": b"{}\n", "more_body": True})
    await cut_off(reply)
    assert len(sent) == 2 + told


async def test_a_client_that_takes_nothing_is_given_up(caplog) -> None:
    kept = MemoryTraceStore()
    kept.append(make_trace("dec-1"))

    async def send(message) -> None:
        await asyncio.Event().wait()

    reply = await export.export(kept, Wanted(), 0.05)
    await reply(send)
    assert "took nothing of its export" in caplog.text


# ── on the command line ──────────────────────────────────────────────────────


LADDER = """\
[[stages]]
name = "small"
engine = "scripted"
model = "a"
cost = 1.0

[[stages]]
name = "large"
engine = "scripted"
model = "b"
cost = 3.0

[traces]
path = "t.sqlite3"
"""


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    path = tmp_path / "ladder.toml"
    path.write_text(LADDER, "utf-8")
    return path


def both(number: int) -> Trace:
    """A cascade in which both stages answered and the large one was kept."""
    trace = make_trace(f"dec-{number}", number * DAY, text=f"What is {number}+{number}?")
    view = trace.steps[0].view
    small, large = make_attempt("small", "3", cost=1.0), make_attempt("large", str(2 * number), cost=3.0)
    steps = (
        Step(view, Decision(Call("small")), attempt=small),
        Step(replace(view, attempts=(small,)), Decision(Call("large")), attempt=large),
        Step(replace(view, attempts=(small, large)), Decision(Stop(large))),
    )
    return replace(trace, steps=steps, answer_index=1)


@pytest.fixture
def filled(ladder) -> Path:
    with closing(SqliteTraceStore(ladder.parent / "t.sqlite3")) as store:
        for number in range(40):
            store.append(both(number))
            store.outcome(Outcome(f"dec-{number}", 1.0, "user"))
            if number < 30:
                store.outcome(Outcome(f"dec-{number}", float(number % 3 == 0), "judge", "small"))
    return ladder


def test_export_writes_what_the_gateway_shows(filled, tmp_path, capsys) -> None:
    out = tmp_path / "traces.jsonl"
    assert (
        main(["traces", "export", "-l", str(filled), "--out", str(out), "--since", "1970-01-03", "--limit", "5"]) == 0
    )
    found = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [each["id"] for each in found] == [f"dec-{number}" for number in range(2, 7)]
    assert [each["source"] for each in found[0]["outcomes"]] == ["user", "judge"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "t.sqlite3").stat().st_mode) == 0o600
    assert main(["traces", "export", "--store", str(tmp_path / "t.sqlite3"), "--out", "-", "--until", "86400"]) == 0
    assert orjson.loads(capsys.readouterr().out)["id"] == "dec-0"


def test_outcomes_are_a_table_that_training_reads(filled, tmp_path, capsys) -> None:
    out = tmp_path / "outcomes.jsonl"
    assert main(["traces", "outcomes", "-l", str(filled), "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert told == "70 rows of 40 queries; 30 of them have feedback on all of large, small\n"
    rows = read(out)
    assert [(row.query_id, row.model, row.quality, row.metric) for row in rows[:3]] == [
        ("dec-0", "small", 1.0, "judge"),
        ("dec-0", "large", 1.0, "user"),
        ("dec-1", "small", 0.0, "judge"),
    ]
    assert rows[1].prompt == "What is 0+0?"
    fitted = ["--stages", "small,large", "--split", "all", "--predictor", "mean", "--out", str(tmp_path / "artifact")]
    assert main(["train", "--outcomes", str(out), *fitted]) == 0
    assert "30 queries, 10 left out for want of a stage" in capsys.readouterr().out


def test_private_traces_say_that_they_hold_no_texts(ladder, tmp_path, capsys) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(prompts="omit"))) as store:
        store.append(both(1))
        store.outcome(Outcome("dec-1", 1.0, "user"))
    assert main(["traces", "outcomes", "-l", str(ladder), "--out", str(tmp_path / "o.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "1 traces were left out: they are private and hold no texts" in told
    assert "no answer has feedback" in told
    assert main(["collect", "--from", str(tmp_path / "t.sqlite3"), "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "1 traces are private and hold no texts" in capsys.readouterr().err


def test_prune_goes_by_its_flags_or_by_the_ladder(filled, tmp_path, capsys) -> None:
    ask_prune = ["traces", "prune", "-l", str(filled)]
    assert main(ask_prune) == 2
    assert "nothing to go by" in capsys.readouterr().err
    assert main([*ask_prune, "--keep-rows", "10", "--shrink"]) == 0
    assert "deleted 30 traces and the feedback of 0 reports" in capsys.readouterr().out
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        assert [trace.id for trace in store.read()] == [f"dec-{number}" for number in range(30, 40)]
        assert store.scan()[0].seq == 31  # numbers are what they were
        assert len(store.outcomes("dec-0")) == 2
    assert main([*ask_prune, "--set", "traces.keep_days=1", "--keep-feedback-days", "0"]) == 0
    assert "deleted 10 traces and the feedback of 70 reports" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "--out", "x.jsonl"], "traces.path is not set"),
        (["export", "--out", "x.jsonl", "--store", "none.sqlite3"], "--store: none.sqlite3 is no file"),
        (["outcomes", "--out", "x.csv"], "an outcomes table ends in"),
        (["prune", "--store", "none.sqlite3"], "is no file"),
        (["prune", "--store", "t.sqlite3", "-l", "nano"], "leave out --ladder and --set, which would not be read"),
        (["prune", "--store", "t.sqlite3", "--set", "traces.keep_days=1"], "leave out --ladder and --set"),
        (["export", "--out", "x.jsonl", "--since", "soon"], "--since 'soon' is no time"),
        (["export", "--out", "x.jsonl", "--limit", "0"], "--limit '0' is no whole number"),
    ],
)
def test_wrong_commands_are_refused(words, told, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["traces", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_cannot_be_written(filled, tmp_path, capsys) -> None:
    (tmp_path / "there").write_text("")
    assert main(["traces", "export", "-l", str(filled), "--out", str(tmp_path / "there" / "x.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err
