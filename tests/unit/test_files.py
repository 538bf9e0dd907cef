"""Files that take the place of others: the old one or the whole new one, and nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.cli import reproduce
from stepladder.costs.timing import StageTiming, load_timings, save_timings
from stepladder.errors import ArtifactError, UsageError
from stepladder.evaluate.outcomes import OutcomeRow, read, write
from stepladder.files import replace_file, replacing
from stepladder.predictors.artifact import Artifact, load, save


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_what_was_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes) -> None:
    path = tmp_path_factory.mktemp("files") / "deep" / "er" / "file"
    for data in (old, new):
        replace_file(path, data)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file"]  # noqa: PTH208 - hidden ones too


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad row"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(path) as file:  # noqa: PT012
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_whichever_step_fails_nothing_is_left_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


ROW = OutcomeRow(query_id="q", model="a", quality=1.0)
TIMINGS = {"a": StageTiming(1.0, 0.0, 0.1, 10.0, 20.0)}
KEPT = Artifact("matrix", ("a", "b"), params={"matrix": {}})


@pytest.mark.parametrize(
    ("keep", "name", "refused"),
    [
        (lambda path: write([ROW], path), "table.jsonl", UsageError),
        (lambda path: write([ROW], path), "table.parquet", UsageError),
        (lambda path: save_timings(TIMINGS, path), "costs.json", UsageError),
        (lambda path: save(KEPT, path.parent), "artifact.json", ArtifactError),
        (lambda path: reproduce._put(path, b"page"), "report.md", UsageError),
    ],
)
def test_every_writer_replaces_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep, name, refused
) -> None:
    path = tmp_path / "kept" / name
    path.parent.mkdir()
    keep(path)
    before = path.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(refused, match="cannot be written.*No space"):
            keep(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_the_writers_wrote_is_read_again(tmp_path: Path) -> None:
    for name in ("table.jsonl", "table.parquet"):
        write([ROW], tmp_path / name)
        assert read(tmp_path / name) == [ROW]
    save_timings(TIMINGS, tmp_path / "costs.json")
    assert load_timings(tmp_path / "costs.json") == TIMINGS
    save(KEPT, tmp_path)
    assert load(tmp_path).version == KEPT.version
