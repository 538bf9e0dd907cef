"""Collecting from the embedded ladder: real models, the real command, a real Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from stepladder import config
from stepladder.evaluate import outcomes
from stepladder.evaluate.graders import GRADERS
from stepladder.evaluate.tasks.nano import generate

STAGES = [stage.name for stage in config.read("nano").stages]
PROMPTS = 60


def command(out: Path, *more: str) -> list[str]:
    asked = ["--task", "nano", "--split", "train", "--n", str(PROMPTS), "--seed", "3", "--out", str(out)]
    return [sys.executable, "-m", "stepladder", "collect", *asked, *more]


def collect(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *more), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_table_of_the_embedded_ladder(tmp_path, suffix):
    out = tmp_path / f"table{suffix}"
    done = collect(out, "--at-once", "8")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    rows = outcomes.read(out)
    tasks = {task.query_id: task for task in generate("train", PROMPTS, 3)}
    assert [(row.query_id, row.model) for row in rows] == [(q, stage) for q in tasks for stage in STAGES]
    for row in rows:
        task = tasks[row.query_id]
        assert row.quality == GRADERS[task.grader](row.response, task.answer)
        assert (row.prompt, row.group_id, row.family, row.metric) == (
            task.prompt,
            task.group_id,
            task.family,
            task.grader,
        )
        assert row.confidence is None or row.confidence <= 0
        assert row.cost > 0
        assert row.latency_s > 0
    assert all(row.confidence is not None for row in rows if row.output_tokens)
    assert 0 < fmean(row.quality for row in rows) < 1


def test_ctrl_c_keeps_what_was_answered_and_the_same_command_goes_on(tmp_path):
    out, journal = tmp_path / "table.jsonl", tmp_path / "table.jsonl.journal.jsonl"
    child = subprocess.Popen(command(out, "--at-once", "1"), stderr=subprocess.PIPE, text=True)
    while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    told = child.communicate()[1]
    assert child.returncode == 130, told
    assert "the same command goes on from there" in told
    assert "Traceback" not in told
    assert not out.exists()
    before = journal.read_bytes()
    done = collect(out, "--at-once", "1")
    assert done.returncode == 0, done.stderr
    assert journal.read_bytes().startswith(before)
    keys = [(line["query_id"], line["stage"]) for line in map(json.loads, journal.read_bytes().splitlines()[1:])]
    assert len(keys) == PROMPTS * len(STAGES)
    assert max(Counter(keys).values()) == 1
    assert len(outcomes.read(out)) == len(keys)
