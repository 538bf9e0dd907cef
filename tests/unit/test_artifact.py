"""Artifacts: what is written comes back, and what is damaged is refused with a sentence."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepladder.errors import ArtifactError
from stepladder.predictors import artifact as module
from stepladder.predictors.artifact import Artifact, array_of, load, numbers_of, save

STAGES = ("small", "large")


def make_artifact(**changes: Any) -> Artifact:
    fields: dict[str, Any] = {
        "kind": "mlp",
        "stages": STAGES,
        "params": {"sd": [0.1, 0.2]},
        "arrays": {"W0": np.arange(6.0).reshape(2, 3), "b0": np.zeros(3, dtype=np.float32)},
        "lambda_": 4.5,
        "metrics": {"rows": 7},
        "created": "2025-06-06",
        "note": "für Tests",
    }
    return Artifact(**(fields | changes))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_round_trip(tmp_path: Path) -> None:
    made = make_artifact()
    assert save(made, tmp_path / "new" / "folder").name == "artifact.json"
    back = load(tmp_path / "new" / "folder")
    assert (back.kind, back.stages, back.features, back.cost_unit) == ("mlp", STAGES, "paper", "relative")
    assert (back.params, back.metrics, back.lambda_) == (made.params, made.metrics, 4.5)
    assert (back.created, back.note) == ("2025-06-06", "für Tests")
    assert back.version == made.version
    for name, array in made.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == array.dtype


def test_without_arrays_there_is_one_file(tmp_path: Path) -> None:
    save(make_artifact(arrays={}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.json"]
    assert load(tmp_path).arrays == {}


def test_saving_again_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    save(make_artifact(), tmp_path)
    save(make_artifact(arrays={"W0": np.ones((2, 2))}), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert load(tmp_path).arrays["W0"].shape == (2, 2)


def test_version_tells_what_estimates_depend_on() -> None:
    version = make_artifact().version
    assert len(version) == 12
    assert make_artifact(note="other", created="", lambda_=None, metrics={}).version == version
    others = [
        make_artifact(kind="matrix"),
        make_artifact(stages=("large", "small")),
        make_artifact(params={"sd": [0.1, 0.3]}),
        make_artifact(arrays={"W0": np.arange(6.0).reshape(3, 2), "b0": np.zeros(3, dtype=np.float32)}),
        make_artifact(arrays={"W0": np.arange(6.0).reshape(2, 3), "b0": np.zeros(3)}),
    ]
    assert len({version, *(other.version for other in others)}) == 6


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "\x00", "[" * 100_000])
def test_not_an_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "artifact.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": 99}, "has schema 99"),
        ({"stages": "small"}, "'stages'"),
        ({"stages": [1, 2]}, "'stages'"),
        ({"params": []}, "'params'"),
        ({"kind": None}, "'kind'"),
        ({"lambda": "five"}, "'lambda'"),
        ({"lambda": -1}, "'lambda'"),
        ({"lambda": True}, "'lambda'"),
        ({"cost_unit": "euro"}, "'cost_unit'"),
        ({"metrics": [1]}, "'metrics'"),
        ({"arrays": "arrays.npz"}, "'arrays'"),
        ({"arrays": {"file": "../../etc/passwd", "sha256": ""}}, "'arrays'"),
        ({"params": {"sd": [0.9, 0.9]}}, "were changed"),
    ],
)
def test_damaged_manifest(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    save(make_artifact(), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=told):
        load(tmp_path)


def test_damaged_arrays(tmp_path: Path) -> None:
    save(make_artifact(), tmp_path)
    (arrays,) = tmp_path.glob("*.npz")
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match="SHA-256"):
        load(tmp_path)
    arrays.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load(tmp_path)


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        raise AssertionError("must not be pickled, nor unpickled")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    save(make_artifact(), tmp_path)
    buffer = io.BytesIO()
    np.savez(buffer, W0=np.array([{"an": "object"}], dtype=object))
    plant(tmp_path, buffer.getvalue())
    with pytest.raises(ArtifactError, match="other than arrays"):
        load(tmp_path)


def test_archives_that_unpack_to_more_than_memory_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact("matrix", ("a",), arrays={"zeros": np.zeros(100_000)})
    save(artifact, tmp_path)
    assert next(tmp_path.glob("*.npz")).stat().st_size < 2000
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)
    with pytest.raises(ArtifactError, match="unpacks to 800,.* bytes, more than 100,000"):
        load(tmp_path)


def test_neither_are_broken_archives(tmp_path: Path) -> None:
    for blob in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        save(make_artifact(), tmp_path)
        plant(tmp_path, blob)
        with pytest.raises(ArtifactError):
            load(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("W0.npy", b"not an array")
    plant(tmp_path, buffer.getvalue())
    with pytest.raises(ArtifactError):
        load(tmp_path).arrays["W0"].sum()


def plant(folder: Path, blob: bytes) -> None:
    """Put other bytes in place of the arrays, under a hash that fits them."""
    sha256 = hashlib.sha256(blob).hexdigest()
    name = f"arrays-{sha256[:12]}.npz"
    (folder / name).write_bytes(blob)
    rewrite(folder, arrays={"file": name, "sha256": sha256})


@pytest.mark.parametrize("params", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_params_must_be_json(tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="JSON"):
        save(make_artifact(params=params), tmp_path)


def test_objects_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="numbers"):
        save(make_artifact(arrays={"W0": np.array([Boom()], dtype=object)}), tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot be written"):
        save(make_artifact(), tmp_path / "file")


def test_stages_of_another_ladder() -> None:
    make_artifact().check_stages(["small", "large"])
    with pytest.raises(ArtifactError, match="small < large; yours is large < small"):
        make_artifact().check_stages(["large", "small"])


def test_what_predictors_take_out() -> None:
    assert numbers_of([0, 1.0], "sd", 2) == (0.0, 1.0)
    for bad in (None, [0.1], [0.1, "x"], [0.1, 2.0], [0.1, True], [float("nan"), 0.1]):
        with pytest.raises(ArtifactError, match="sd should be 2 numbers"):
            numbers_of(bad, "sd", 2)
    for array in (None, np.zeros(3), np.array([["a"]]), np.array([[np.inf]])):
        with pytest.raises(ArtifactError, match="'W0'"):
            array_of({"W0": array}, "W0", 2)
