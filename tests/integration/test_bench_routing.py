"""The routing benchmark: its figures are those of ``metrics``, resampled, and the whole of it runs on a small table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from outcome_tables import STAGES, make_row, make_table
from stepladder.evaluate import metrics
from stepladder.evaluate.outcomes import write

ROOT = Path(__file__).parents[2]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_routing", ROOT / "benchmarks" / "routing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


routing = loaded()

QUERIES = 12
TOLD = arrays(np.float64, (QUERIES, 2), elements=st.sampled_from([0.1, 0.25, 0.5, 0.9]))
RIGHT = arrays(np.float64, (QUERIES, 2), elements=st.sampled_from([0.0, 1.0]))
TIMES = arrays(np.int64, QUERIES, elements=st.integers(0, 3)).filter(lambda found: found.sum() > 0)


@given(RIGHT, TOLD, TIMES)
def test_weighted_figures_are_those_of_queries_that_come_so_many_times(
    quality: np.ndarray, told: np.ndarray, times: np.ndarray
) -> None:
    weights = (times / times.sum()).reshape(1, -1)
    many, said = np.repeat(quality, times, axis=0), np.repeat(told, times, axis=0)
    found = routing.auc_lines(quality, told, weights)[0], routing.r2_lines(quality, told, weights)[0]
    if 0 < many.mean() < 1:
        assert found == pytest.approx((metrics.auc(many, said), metrics.r2(many, said)), abs=1e-9)
    else:
        assert np.isnan(found).all()


def test_nobody_is_ahead_of_himself_and_who_knows_more_is() -> None:
    rng = np.random.default_rng(0)
    told = rng.uniform(size=(200, 2))
    quality = (rng.uniform(size=told.shape) < told).astype(np.float64)
    groups = np.arange(200) // 2
    same = routing.difference(quality, (told, told), groups, np.random.default_rng(0), 50)
    assert same == {"r2": 0.0, "r2_ci": (0.0, 0.0), "auc": 0.0, "auc_ci": (0.0, 0.0)}
    more = routing.difference(quality, (told, np.full_like(told, 0.5)), groups, np.random.default_rng(0), 50)
    assert more["r2_ci"][0] > 0
    assert more["auc_ci"][0] > 0


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ladder of its own, with a further model, and estimates of the first trial for it."""
    rows = make_table(160)
    more = [
        make_row(row.query_id, "other", row.quality, dataset="made", prompt=row.prompt, split=row.split)
        for row in rows
        if row.model == "medium"
    ]
    write([*rows, *more], tmp_path / "table.parquet")
    ladder = routing.Ladder("table", ",".join(STAGES), "1,2,4")
    monkeypatch.setattr(routing, "LADDERS", {"Z": ladder})
    ids = sorted({row.query_id for row in rows if row.split == "validation"})
    half = np.full((len(ids), len(STAGES)), 0.5)
    np.savez(tmp_path / "ft_Z.npz", ids=np.array(ids), c1=half, c2=half)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["routing.py", *map(str, words)])
    found: int = routing.main()
    return found


def test_the_benchmark_writes_every_figure_and_makes_nothing_twice(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", small, "--predictor", "matrix", "--policies", "greedy", "--resamples", 20]
    words += ["--artifacts", small / "made", "--opponent", small, "--out", small / "out"]
    assert run(monkeypatch, *words) == 0
    first = json.loads((small / "out" / "Z.json").read_text("utf-8"))
    assert set(first["figures"]) == {"ours", "c1", "c2"}
    assert first["lead"]["ours"]["before"]["c2"]["pooled"]["auc_ci"][0] > 0
    assert set(first["ceilings"]) == set(routing.CEILINGS)
    assert first["training"]["train_s"] > 0
    told = (small / "out" / "SUMMARY.md").read_text("utf-8")
    assert told == capsys.readouterr().out
    assert "gap closed, greedy" in told
    monkeypatch.setattr(routing, "timings", lambda words: pytest.fail(f"{words[0]} again"))
    assert run(monkeypatch, *words) == 0
    assert json.loads((small / "out" / "Z.json").read_text("utf-8")) == first

    assert run(monkeypatch, "--out", small / "out", "--summarise") == 0
    assert "gap closed, greedy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="measure ladder Z first"):
        run(monkeypatch, "--out", small / "none", "--summarise")


def test_other_sources_train_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = small / "Z.time.json"
    assert not routing.remade("Z", timed)
    timed.write_text(json.dumps({"sources": routing.sources()}), "utf-8")
    assert not routing.remade("Z", timed)
    timed.write_text(json.dumps({"sources": "others"}), "utf-8")
    assert routing.remade("Z", timed)


def test_without_tables_nothing_is_measured_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--data", tmp_path / "none", "--out", tmp_path / "out") == 0
    assert "nothing measured" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_first_trial_that_is_not_there_is_told(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["routing.py", "--ladders", "Z", "--opponent", str(small / "none")])
    assert routing.first_trial("Z", routing.arguments()) is None
    assert "ft_Z.npz is not there" in capsys.readouterr().err


def test_a_ladder_that_nobody_knows_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--ladders", "A,X")
    assert "'X' is none of A, B, C, D, E" in capsys.readouterr().err
