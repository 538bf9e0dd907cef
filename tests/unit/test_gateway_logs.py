"""The log of a served gateway: what a line tells, what it never tells, and a reader that stops reading."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway_fakes import fault, get, plays, post, world
from stepladder.gateway.app import create_app
from stepladder.gateway.logs import Log, json_line, text_line
from stepladder.gateway.metrics import Metrics
from stepladder.gateway.watch import Visit, Watch
from stepladder.guard.gates import Entry, GateRules, Gates
from stepladder.types import Attempt, Fault

CHAT = "/v1/chat/completions"
SECRET = "the launch code is 4711"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield fd, path
    os.close(fd)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def test_one_line_for_each_request(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("json", "info", fd=fd, clock=lambda: 1_700_000_000.25) as log:
        app = create_app(world().router, watch=Watch(tell=log.tell))
        answered = await post(app, CHAT, QUESTION)
        await post(app, CHAT, {**QUESTION, "stream": True})
        await post(app, CHAT, {"messages": []})
        await get(app, "/health")
    first, streamed, refused = lines(path)
    assert first["decision_id"] == answered.headers["x-stepladder-decision-id"]
    assert first["time"] == "2023-11-14T22:13:20.250Z"
    known = {"level": "info", "event": "request", "route": "chat", "status": 200, "ending": "replied", "stage": "small"}
    assert first.items() >= {**known, "mode": "route", "stream": False, "attempts": 1, "cost": 1.0}.items()
    assert (first["bytes_in"], first["bytes_out"]) == (len(orjson.dumps(QUESTION)), len(answered.body))
    assert first["seconds"] > 0
    assert first["decide_ms"] > 0
    assert (streamed["stream"], "first_token_s" in streamed) == (True, True)
    assert (refused["status"], refused["level"]) == (400, "info")
    assert first["request"] < streamed["request"] < refused["request"]
    assert SECRET not in path.read_text("utf-8")


async def test_stages_that_failed_are_named_though_another_answered(file: tuple[int, Path]) -> None:
    """And a stage that failed so often that it is left in peace is worth a warning: nobody else sees that."""
    fd, path = file
    made = world(plays(fault("small", "server", "it broke")))
    with Log("json", "info", fd=fd) as log:
        app = create_app(made.router, watch=Watch(tell=log.tell))
        await post(app, CHAT, QUESTION)
        gates = Gates(["deny"], {"deny": GateRules(failures=2)})
        for _ in range(3):
            entry = gates.enter("deny")
            if isinstance(entry, Entry):
                entry.leave(Attempt("deny", fault=Fault("auth", "no", status=401)))
    request, warned = lines(path)
    assert "small:server" in request["faults"]
    assert warned["level"] == "warning"
    assert warned["message"] == "stage 'deny' is left in peace for a while: its calls failed (auth)"


async def test_a_5xx_is_always_logged_with_its_decision(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("json", "error", fd=fd) as log:
        app = create_app(world(plays(fault("small", "server", "it broke"))).router, watch=Watch(tell=log.tell))
        got = await post(app, CHAT, QUESTION)
        await post(app, CHAT, {"messages": []})
    (only,) = lines(path)
    assert got.status == only["status"] == 502
    assert only.items() >= {"level": "error", "decision_id": got.headers["x-stepladder-decision-id"]}.items()
    assert only["fault"] == "server"


async def test_polls_for_health_are_quiet_unless_they_say_no(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("json", "info", fd=fd) as log:
        watch = Watch(tell=log.tell)
        app = create_app(world().router, watch=watch)
        for path_asked in ("/health", "/ready", "/metrics", "/nowhere"):
            await get(app, path_asked)
        watch.state = "draining"
        await get(app, "/ready")
    told = [(line["route"], line["status"], line["level"]) for line in lines(path)]
    assert told == [("none", 404, "info"), ("ready", 503, "info")]


async def test_a_bug_is_told_in_a_line_that_names_the_request(file: tuple[int, Path]) -> None:
    fd, path = file
    made = world()
    made.store.append = lambda trace: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with Log("json", "info", fd=fd) as log:
        got = await post(create_app(made.router, watch=Watch(tell=log.tell)), CHAT, QUESTION)
    bug, request = lines(path)
    assert got.status == request["status"] == 500
    assert bug.items() >= {"event": "log", "level": "error", "request": request["request"]}.items()
    assert "ZeroDivisionError" in bug["exception"]


def test_the_processs_logging_is_taken_over_and_given_back(file: tuple[int, Path]) -> None:
    fd, path = file
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.getLogger("stepladder").level
    with Log("json", "info", fd=fd):
        logging.getLogger("stepladder.router").info("own %s", "info")
        logging.getLogger("others").info("not shown")
        logging.getLogger("others").warning("shown")
    assert (list(root.handlers), root.level, logging.getLogger("stepladder").level) == before
    assert [line["message"] for line in lines(path)] == ["own info", "shown"]


def test_off_is_off(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("off", "debug", fd=fd) as log:
        logging.getLogger("stepladder").error("nothing")
        log.event("nothing")
        log.tell(Visit(1, "chat", "POST", 0.0, status=500))
    assert path.read_text("utf-8") == ""


def test_text_is_one_line_whatever_the_values_hold() -> None:
    fields = {"time": 0.0, "level": "warning", "event": "log", "message": 'two\nlines and "quotes"', "n": 1.5, "e": ""}
    told = text_line(fields).decode()
    assert told == '1970-01-01T00:00:00.000Z warning log message="two\\nlines and \\"quotes\\"" n=1.5 e=""\n'


def test_a_stack_trace_is_indented_in_text_and_one_value_in_json() -> None:
    fields = {"time": 1.5, "level": "error", "event": "log", "message": "m", "exception": "Traceback\nValueError"}
    assert text_line(dict(fields)).decode().splitlines()[1:] == ["    Traceback", "    ValueError"]
    assert json.loads(json_line(dict(fields)))["exception"] == "Traceback\nValueError"


def test_a_record_that_cannot_be_formatted_fails_nobody(
    file: tuple[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fd, path = file
    with Log("json", "info", fd=fd):
        logging.getLogger("stepladder").warning("%d", "no number")
        logging.getLogger("stepladder").warning("after")
    assert [line["message"] for line in lines(path)] == ["after"]
    assert "no number" in capsys.readouterr().err


def test_a_reader_that_does_not_read_stops_nobody() -> None:
    """A full pipe: lines are dropped and counted, and the one who logs never waits. Nor does the end."""
    reader, writer = full_pipe()
    with Log("json", "info", fd=writer, most=100) as log:
        for _ in range(1000):
            log.event("x")
        time.sleep(0.2)  # the writer has taken what there was, and is stuck with it
        for _ in range(1000):
            log.event("x")
        metrics = Metrics()
        log.refresh(metrics)
        assert 1000 < log.dropped == metrics.log_dropped.get() < 2000
        os.close(reader)  # what is left cannot be written: counted too, and no error
    assert log.dropped == 2000
    os.close(writer)


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 512)
    os.set_blocking(writer, True)
    return reader, writer


def test_a_request_that_cannot_be_told_takes_no_other_along(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("json", "info", fd=fd) as log:
        log.event("before")
        log.tell(Visit(1, "chat", "POST", 0.0, status=200, caller="half \udc80 of a pair"))
        log.tell(Visit(2, "chat", "POST", 0.0, status=200))
    assert [line.get("request") for line in lines(path)] == [None, 2]
    assert log.dropped == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_of_requests_stand_where_they_came(file: tuple[int, Path], form: Any) -> None:
    fd, path = file
    with Log(form, "info", fd=fd, clock=lambda: 0.0) as log:
        for number in range(0, 100, 2):
            log.tell(Visit(number, "chat", "POST", 0.0, status=200, caller="team a"))
            log.event("n", request=number + 1)
    told = path.read_text("utf-8").splitlines()
    assert len(told) == 100
    spelled = "request={} " if form == "text" else '"request":{},'
    for number, line in enumerate(told):
        assert spelled.format(number) in line.replace("}", ",") + " "
    assert told[0] == (
        "1970-01-01T00:00:00.000Z info request request=0 route=chat status=200 ending=replied seconds=0 bytes_in=0"
        ' bytes_out=0 caller="team a"'
        if form == "text"
        else '{"time":"1970-01-01T00:00:00.000Z","level":"info","event":"request","request":0,"route":"chat",'
        '"status":200,"ending":"replied","seconds":0.0,"bytes_in":0,"bytes_out":0,"caller":"team a"}'
    )


def test_lines_keep_their_order_and_none_is_lost(file: tuple[int, Path]) -> None:
    fd, path = file
    with Log("json", "info", fd=fd) as log:
        for number in range(5000):
            log.event("n", number=number)
    assert [line["number"] for line in lines(path)] == list(range(5000))
    assert log.dropped == 0
