"""Benchmarks by name from a hub: against a small server of our own that speaks as the hub does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from outcome_tables import REPLAY_LADDER
from stepladder.evaluate.loaders import BENCHMARKS, load
from stepladder.evaluate.outcomes import read

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

QUESTION = {"question": "How much is 2 and 3?", "answer": "2+3=5\n#### 5"}
PLACE = "/datasets/openai/gsm8k/resolve/main/main/train-00000-of-00001.parquet"


class FakeHub(BaseHTTPRequestHandler):
    """A data set with one file."""

    content: bytes

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        known = self.path == PLACE
        data = self.content if known else b""
        self.send_response(200 if known else 404)
        if known:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The hub's address."""
    parquet.write_table(pa.Table.from_pylist([QUESTION]), tmp_path / "rows.parquet")
    FakeHub.content = (tmp_path / "rows.parquet").read_bytes()
    made = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def collect(folder: Path, endpoint: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """``stepladder collect`` as a process of its own: huggingface_hub reads its settings when it is imported."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "PATH": "", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "stepladder", "collect", "-l", "ladder.toml", "--out", "out.jsonl", *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_benchmark_comes_from_the_hub_by_name(hub: str, tmp_path: Path) -> None:
    (prompt,) = load("gsm8k", tmp_path / "rows.parquet")
    answer = {"query_id": prompt.query_id, "model": "a", "quality": 0, "prompt": prompt.text, "response": "#### 5"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer))
    (tmp_path / "ladder.toml").write_text(REPLAY_LADDER.replace("TABLE", str(tmp_path / "answers.jsonl")))
    done = collect(tmp_path, hub, "--task", "gsm8k", "--split", "train")
    assert done.returncode == 0, done.stderr
    (row,) = read(tmp_path / "out.jsonl")
    assert (row.query_id, row.quality, row.split) == (prompt.query_id, 1.0, "train")
    absent = collect(tmp_path, hub, "--task", "gsm8k", "--out", "other.jsonl")
    assert absent.returncode == 1
    assert f"hub:datasets/openai/gsm8k/{BENCHMARKS['gsm8k'].hub_file(None)} could not be fetched" in absent.stderr
