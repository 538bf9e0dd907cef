"""``stepladder serve`` as a process: it says where it is, serves, and leaves in order."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from scripted_ladder import LADDER
from stepladder.traces.sqlite import SqliteTraceStore

SERVED = (
    LADDER
    + """
[gateway]
port = 0

[traces]
path = "traces.sqlite3"
"""
)


@pytest.fixture
def served(tmp_path: Path):
    """(process, base URL) of a gateway; the process is ended by its own id."""
    (tmp_path / "ladder.toml").write_text(SERVED, "utf-8")
    command = [sys.executable, "-m", "stepladder", "serve", str(tmp_path / "ladder.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"serving low < high at (http://\S+/v1)\n", line)
        assert found, line
        yield process, found[1]
        if process.poll() is None:
            process.kill()


def test_it_serves_and_leaves_in_order(served, tmp_path):
    process, url = served
    with OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        messages = [{"role": "user", "content": "What is 2+2?"}]
        cheap = client.chat.completions.create(model="stepladder", messages=messages)
        dear = client.chat.completions.create(
            model="stepladder", messages=messages, extra_body={"stepladder": {"lambda": 100}}
        )
        pinned = client.chat.completions.create(model="high", messages=messages)
    assert [reply.choices[0].message.content for reply in (cheap, dear, pinned)] == [
        "from low",
        "from high",
        "from high",
    ]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    store = SqliteTraceStore(tmp_path / "traces.sqlite3")
    assert [trace.attempts[0].stage for trace in store.read()] == ["low", "high", "high"]
    store.close()


def test_a_port_that_is_taken(served, tmp_path):
    _, url = served
    port = url.rpartition(":")[2].removesuffix("/v1")
    command = [sys.executable, "-m", "stepladder", "serve", str(tmp_path / "ladder.toml"), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be bound" in done.stderr
    assert "Traceback" not in done.stderr
