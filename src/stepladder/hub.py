"""Where a model's weights are: a file beside the configuration, or a file of a Hugging Face repository.

``hub:OWNER/REPOSITORY/FILE.gguf`` or ``hub:OWNER/REPOSITORY/FILE.gguf@REVISION`` names the latter. Downloads go through
huggingface_hub: its cache, its resuming, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` as everybody knows them.
It checks a file's length; that the content is the one the hub named is checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Literal, NamedTuple

from stepladder.errors import MissingExtraError, ModelFileError

PREFIX = "hub:"
_REFERENCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubFile(NamedTuple):
    """One file of a repository; ``revision`` is a branch, tag or commit, None the default branch."""

    repo: str
    file: str
    revision: str | None


def is_hub_reference(model: str) -> bool:
    """True where the model is named by repository and not by path."""
    return model.startswith(PREFIX)


def parse_reference(model: str) -> HubFile:
    """Raises ModelFileError for a reference that is not ``hub:OWNER/REPOSITORY/FILE[@REVISION]``."""
    found = _REFERENCE.fullmatch(model)
    if found is None:
        raise ModelFileError(f"model '{model}' is not of the form hub:OWNER/REPOSITORY/FILE.gguf[@REVISION]")
    return HubFile(found["repo"], found["file"], found["revision"])


def resolve(model: str, folder: Path, *, cache: Path | None = None) -> Path:
    """An absolute path of the weights; a hub file is fetched, resumed or found in the cache, and verified.

    Checksums of one's own (``sha256``) are the engine's business, before it loads. Raises ModelFileError or
    MissingExtraError.
    """
    if is_hub_reference(model):
        return fetch(parse_reference(model), cache=cache)
    path = Path(model).expanduser()
    return path if path.is_absolute() else (folder / path).resolve()


def fetch(
    file: HubFile,
    *,
    kind: Literal["model", "dataset"] = "model",
    cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch one file into the hub's cache and give its place; huggingface_hub resumes what was cut off.

    ``kind`` is what the repository holds: the hub keeps models and data sets apart.

    Raises MissingExtraError, or ModelFileError: also where the content is not what the hub named, after which the next
    try fetches anew.
    """
    name = f"hub:{'datasets/' if kind == 'dataset' else ''}{file.repo}/{file.file}"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"a {kind} named '{name}'", "hub") from error
    try:
        place = hf_hub_download(
            file.repo,
            file.file,
            repo_type=kind,
            revision=file.revision,
            cache_dir=cache,
            endpoint=endpoint,
            library_name="stepladder",
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFileError(f"{name} could not be fetched: {told[0]}") from error
    try:
        _verify(Path(place), name)
    except OSError as error:
        raise ModelFileError(f"{name} could not be verified in the cache: {error}") from error
    return Path(place)


def _verify(place: Path, name: str) -> None:
    """Compare a large file with the SHA-256 that the hub gave as its ETag; raise ModelFileError where they differ.

    The cache names a blob after its ETag and links the file's place to it. Small files have a git hash there, and
    without links (a file system that has none) nothing tells what was named: those are taken as they are.
    """
    blob = place.parent / place.readlink() if place.is_symlink() else place
    if _SHA256.fullmatch(blob.name) is None or _is_verified(blob):
        return
    with blob.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != blob.name:
        for bad in (place, blob, blob.resolve()):  # a blob may itself be a link, into a store that caches share
            bad.unlink(missing_ok=True)
        raise ModelFileError(
            f"{name} is not what the hub named: its SHA-256 is {actual}, not {blob.name}; "
            "it was removed, so that the next try fetches it anew"
        )
    with contextlib.suppress(OSError):  # a cache that cannot be written to is read again next time
        _marker(blob).write_text(_stamp(blob), "utf-8")


def _is_verified(blob: Path) -> bool:
    """True where the content was compared before and has not been touched since: gigabytes are read once."""
    try:
        return _marker(blob).read_text("utf-8") == _stamp(blob)
    except (OSError, UnicodeDecodeError):
        return False


def _marker(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.verified")


def _stamp(blob: Path) -> str:
    found = blob.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
