"""Artifacts: a fitted predictor in a folder, which loading can refuse but never run.

    folder/
      artifact.json         what it is, its parameters, the arrays file's name and SHA-256
      arrays-<hash>.npz     numpy arrays, read with ``allow_pickle=False``; absent where there are none

The arrays file is named after its contents and ``artifact.json`` is replaced last, so a reader (or a crash) always
meets either the old artifact or the new one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.files import replace_file
from stepladder.types import EMPTY, CostUnit

SCHEMA = 1
MANIFEST = "artifact.json"
FLOAT_KINDS = "fiu"
MOST_BYTES = 1 << 30
"""Arrays of an artifact unpacked, at the most: a few kilobytes of an archive can claim to hold as much as one likes."""

_ARRAYS_NAME = re.compile(r"arrays-[0-9a-f]{12}\.npz")
_REQUIRED: Mapping[str, type] = {"schema": int, "kind": str, "stages": list, "features": str, "params": dict}


@dataclass(frozen=True, eq=False)
class Artifact:
    """A fitted predictor.

    ``kind`` is the predictor's plug-in name, ``features`` the featurizer's. ``params`` holds JSON values, ``arrays``
    numpy arrays. ``lambda_`` is the calibrated operating point in ``cost_unit`` per unit of quality, None where none
    was sought. ``metrics`` says how good the fit was; ``created`` is a date in ISO form, given by whoever fitted it.
    """

    kind: str
    stages: tuple[str, ...]
    features: str = "paper"
    params: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=lambda: EMPTY, repr=False)
    lambda_: float | None = None
    cost_unit: CostUnit = "relative"
    metrics: Mapping[str, float] = field(default_factory=lambda: EMPTY)
    created: str = ""
    note: str = ""

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of what the estimates depend on; the predictor built from it has the same version."""
        return content_version(self.kind, self.stages, self.params, self.arrays)

    def check_stages(self, stages: Sequence[str]) -> None:
        """Raise ArtifactError where the artifact was fitted for another ladder."""
        if self.stages != tuple(stages):
            fitted, given = " < ".join(self.stages), " < ".join(stages)
            raise ArtifactError(f"this artifact was fitted for the ladder {fitted}; yours is {given}: train one for it")


def content_version(
    kind: str, stages: Sequence[str], params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> str:
    """A short hash of a predictor's contents. Raises ArtifactError for parameters that JSON cannot hold."""
    digest = hashlib.sha256(_json({"kind": kind, "stages": list(stages), "params": dict(params)}))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


# ── writing ──────────────────────────────────────────────────────────────────


def save(artifact: Artifact, folder: str | Path) -> Path:
    """Write the artifact, over an older one if need be; returns the path of ``artifact.json``.

    Raises ArtifactError where parameters are not JSON, arrays hold objects, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = _save_arrays(artifact.arrays, folder)
        replace_file(folder / MANIFEST, _json(_manifest(artifact, arrays), indent=2) + b"\n")
        _drop_stale(folder, keep=arrays["file"] if arrays else None)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error}") from error
    return folder / MANIFEST


def _manifest(artifact: Artifact, arrays: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": artifact.kind,
        "version": artifact.version,
        "stages": list(artifact.stages),
        "features": artifact.features,
        "lambda": artifact.lambda_,
        "cost_unit": artifact.cost_unit,
        "created": artifact.created,
        "note": artifact.note,
        "metrics": dict(artifact.metrics),
        "params": dict(artifact.params),
        "arrays": arrays,
    }


def _save_arrays(arrays: Mapping[str, NDArray[Any]], folder: Path) -> dict[str, str] | None:
    if not arrays:
        return None
    buffer = io.BytesIO()
    try:
        np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    except ValueError as error:
        raise ArtifactError(f"arrays must hold numbers: {error}") from error
    blob = buffer.getvalue()
    sha256 = hashlib.sha256(blob).hexdigest()
    name = f"arrays-{sha256[:12]}.npz"
    replace_file(folder / name, blob)
    return {"file": name, "sha256": sha256}


def _drop_stale(folder: Path, keep: str | None) -> None:
    for path in folder.glob("arrays-*.npz"):
        if path.name != keep and _ARRAYS_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _json(value: Any, indent: int | None = None) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"artifact parameters must be finite JSON values: {error}") from error


# ── reading ──────────────────────────────────────────────────────────────────


def load(folder: str | Path) -> Artifact:
    """Read an artifact. Raises ArtifactError where it is missing, of a foreign schema, or damaged."""
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST)
    artifact = Artifact(
        kind=manifest["kind"],
        stages=tuple(manifest["stages"]),
        features=manifest["features"],
        params=manifest["params"],
        arrays=_load_arrays(folder, manifest.get("arrays")),
        lambda_=_lambda(folder, manifest.get("lambda")),
        cost_unit=manifest.get("cost_unit", "relative"),
        metrics=manifest.get("metrics") or {},
        created=str(manifest.get("created", "")),
        note=str(manifest.get("note", "")),
    )
    if manifest.get("version", artifact.version) != artifact.version:
        raise ArtifactError(f"{folder}: its parameters were changed after it was written; train it again")
    return artifact


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such artifact; 'stepladder train' makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON: {error}") from error
    _check_manifest(path, manifest)
    return dict(manifest)


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise ArtifactError(f"{path}: is no Stepladder artifact: it names no schema")
    if manifest["schema"] != SCHEMA:
        raise ArtifactError(
            f"{path}: has schema {manifest['schema']!r}, not {SCHEMA}; train it again with this Stepladder"
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise ArtifactError(f"{path}: is damaged: '{key}' should be a JSON {kind.__name__}")
    if not all(isinstance(name, str) for name in manifest["stages"]):
        raise ArtifactError(f"{path}: is damaged: 'stages' should be a list of names")
    if manifest.get("cost_unit", "relative") not in ("relative", "usd", "gpu_s"):
        raise ArtifactError(f"{path}: is damaged: 'cost_unit' should be relative, usd or gpu_s")
    if not isinstance(manifest.get("metrics") or {}, dict):
        raise ArtifactError(f"{path}: is damaged: 'metrics' should be a JSON dict")


def _lambda(folder: Path, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ArtifactError(f"{folder}: is damaged: 'lambda' should be a number from 0 up")
    return float(value)


def _load_arrays(folder: Path, entry: Any) -> Mapping[str, NDArray[Any]]:
    if entry is None:
        return EMPTY
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _ARRAYS_NAME.fullmatch(name):
        raise ArtifactError(f"{folder}: is damaged: 'arrays' should name an arrays file and its sha256")
    try:
        blob = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder / name}: is missing or cannot be read: {error}") from error
    if hashlib.sha256(blob).hexdigest() != entry.get("sha256"):
        raise ArtifactError(f"{folder / name}: is damaged: its SHA-256 is not the one in {MANIFEST}")
    return _parse_arrays(folder / name, blob)


def _parse_arrays(path: Path, blob: bytes) -> Mapping[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as listed:
            size = sum(entry.file_size for entry in listed.infolist())
        if size > MOST_BYTES:
            raise ArtifactError(f"{path}: unpacks to {size:,} bytes, more than {MOST_BYTES:,}")
        with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: holds something other than arrays of numbers: {error}") from error


# ── what predictors take out of it ───────────────────────────────────────────


def array_of(arrays: Mapping[str, Any], name: str, ndim: int, *, largest: float = float("inf")) -> NDArray[np.float64]:
    """A finite numeric array of ``ndim`` dimensions as float64, none of its numbers above ``largest`` in size; raises
    ArtifactError where it is none."""
    value = arrays.get(name)
    if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype.kind not in FLOAT_KINDS:
        raise ArtifactError(f"array '{name}' is missing or has not {ndim} dimensions of numbers")
    if not np.isfinite(value).all():
        raise ArtifactError(f"array '{name}' holds numbers that are not finite")
    if value.size and max(abs(float(value.min())), abs(float(value.max()))) > largest:
        raise ArtifactError(f"array '{name}' holds numbers beyond ±{largest:g}: it is damaged, or no fit made it")
    return np.ascontiguousarray(value, dtype=np.float64)


def shaped(
    arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], *, largest: float = float("inf")
) -> NDArray[np.float64]:
    """``array_of`` this shape; raises ArtifactError that names the array where it has another."""
    array = array_of(arrays, name, len(shape), largest=largest)
    if array.shape != shape:
        raise ArtifactError(f"the array {name} should be {shape}, not {array.shape}")
    return array


def numbers_of(value: Any, what: str, length: int, low: float = 0.0, high: float = 1.0) -> tuple[float, ...]:
    """``length`` numbers in [low, high]; raises ArtifactError that names ``what``."""
    is_list = isinstance(value, list | tuple) and len(value) == length
    if not is_list or not all(_is_number(item) and low <= item <= high for item in value):
        raise ArtifactError(f"{what} should be {length} numbers from {low:g} to {high:g}, one for each stage")
    return tuple(float(item) for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
