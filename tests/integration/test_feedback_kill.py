"""A gateway that is killed under load has kept every feedback that it had acknowledged.

SIGKILL takes the process and leaves the machine: what this proves is that nothing is acknowledged before it was
committed. That a commit is flushed to the disk too is looked at in ``tests/unit/test_feedback.py``.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CLIENTS = 8
LADDER = """\
[[stages]]
name = "low"
engine = "scripted"
model = "a"
cost = 1.0
options = { reply = "from low" }

[gateway]
port = 0

[traces]
path = "traces.sqlite3"
keep_rows = 500
"""

Told = tuple[str, str, float]
"""Decision, key, score."""


@dataclass
class Tally:
    """What the clients were told over all rounds."""

    acknowledged: list[Told] = field(default_factory=list)
    rounds: int = 0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(process, port) of a gateway; killed by its own id when the block ends, if it still runs."""
    command = [sys.executable, "-m", "stepladder", "serve", str(folder / "ladder.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            assert found, line + process.stderr.read()
            yield process, int(found[1])
        finally:
            process.kill()


def client(port: int, name: str, first: threading.Event) -> list[Told]:
    """Ask and tell until the gateway is gone; what it acknowledged."""
    acknowledged: list[Told] = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        try:
            for number in range(1_000_000):
                decision = ask(connection) if number % 4 == 0 else f"dec-{name}-{number}"
                told = (decision, f"{name}-{number}", (number % 11) / 10)
                body = {"decision_id": told[0], "key": told[1], "score": told[2], "source": "load"}
                if post(connection, "/v1/feedback", body)[0] == 200:
                    acknowledged.append(told)
                    first.set()
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            pass  # it was killed, in the middle of whatever it was doing
    return acknowledged


def ask(connection: http.client.HTTPConnection) -> str:
    body = {"model": "stepladder", "messages": [{"role": "user", "content": "What is 2+2?"}]}
    return str(post(connection, "/v1/chat/completions", body)[1]["stepladder"]["decision_id"])


def post(connection: http.client.HTTPConnection, path: str, body: object) -> tuple[int, dict]:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def kill_once(folder: Path, tally: Tally, after_s: float) -> None:
    """Start a gateway, load it, kill it ``after_s`` seconds behind the first acknowledgement."""
    first = threading.Event()
    with serving(folder) as (process, port), ThreadPoolExecutor(CLIENTS) as pool:
        names = [f"{tally.rounds}-{number}" for number in range(CLIENTS)]
        told = [pool.submit(client, port, name, first) for name in names]
        assert first.wait(60)
        time.sleep(after_s)
        process.kill()
        for each in told:
            tally.acknowledged += each.result(60)
    tally.rounds += 1


def stored(folder: Path) -> set[Told]:
    """What the file holds, read without a line of Stepladder's."""
    with closing(sqlite3.connect(folder / "traces.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT decision_id, slot, score FROM outcomes").fetchall()
    return {(decision, slot.removeprefix("key:"), score) for decision, slot, score in rows}


def kill_often(folder: Path, times: int, seed: int) -> Tally:
    (folder / "ladder.toml").write_text(LADDER, "utf-8")
    chance, tally = random.Random(seed), Tally()
    for _ in range(times):
        kill_once(folder, tally, chance.uniform(0.0, 0.6))
        lost = set(tally.acknowledged) - stored(folder)
        assert not lost, f"acknowledged and then lost: {sorted(lost)[:5]}"
    return tally


def show(tally: Tally, folder: Path) -> None:
    found = len(set(tally.acknowledged) & stored(folder))
    lost = len(tally.acknowledged) - found
    sys.stdout.write(f"\n{tally.rounds} kills: acknowledged {len(tally.acknowledged)}, found {found}, lost {lost}\n")


def test_what_was_acknowledged_survives_three_kills(tmp_path: Path) -> None:
    tally = kill_often(tmp_path, 3, seed=6)
    assert len(tally.acknowledged) > 3 * CLIENTS  # it was under load
    with serving(tmp_path) as (_, port):  # and it is shown by a gateway that starts on it
        decision, key, score = tally.acknowledged[-1]
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            again = {"decision_id": decision, "key": key, "score": score, "source": "load"}
            assert post(connection, "/v1/feedback", again)[1]["change"] == "same"
            status, told = post(connection, "/v1/feedback", {**again, "score": 0.05})
            assert (status, told["error"]["code"]) == (409, "feedback_conflict")
    show(tally, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_fifty_kills(tmp_path: Path) -> None:
    tally = kill_often(tmp_path, 50, seed=50)
    assert len(tally.acknowledged) > 50 * CLIENTS
    show(tally, tmp_path)
