"""Where a model's weights are: a file beside the configuration, or a file of a Hugging Face repository.

``hub:OWNER/REPOSITORY/FILE.gguf`` or ``hub:OWNER/REPOSITORY/FILE.gguf@REVISION`` names the latter. Downloads go through
huggingface_hub: its cache, its resuming, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` as everybody knows them.
It checks a file's length; that the content is the one the hub named is checked here, and before it is asked for
anything, whether the hub can be reached: it would try again for 23 s where nobody listens, and wait without end for
some answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from stepladder.errors import MissingExtraError, ModelFileError

PREFIX = "hub:"
_REFERENCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

REACH_S = 5.0
"""Seconds that the hub has to take a connection, and again to answer anything at all. Where HF_HUB_ETAG_TIMEOUT is set
to another time than its usual one, that counts."""


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
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise MissingExtraError(f"a {kind} named '{name}'", "hub") from error
    wanted: dict[str, Any] = {"repo_type": kind, "revision": file.revision, "cache_dir": cache}

    def download(*, local_files_only: bool) -> str:
        how: dict[str, Any] = {"endpoint": endpoint, "library_name": "stepladder", "local_files_only": local_files_only}
        return str(hf_hub_download(file.repo, file.file, **wanted, **how))

    def pinned() -> str | None:
        is_commit = file.revision is not None and _COMMIT.fullmatch(file.revision)
        found = try_to_load_from_cache(file.repo, file.file, **wanted) if is_commit else None
        return found if isinstance(found, str) else None

    place = fetched(name, download, endpoint=endpoint, pinned=pinned)
    try:
        _verify(place, name)
    except OSError as error:
        raise ModelFileError(f"{name} could not be verified in the cache: {error}") from error
    return place


class Download(Protocol):
    """huggingface_hub's way to one thing: gives its place in the cache."""

    def __call__(self, *, local_files_only: bool) -> str: ...


def fetched(
    what: str, download: Download, *, endpoint: str | None = None, pinned: Callable[[], str | None] = lambda: None
) -> Path:
    """What ``download`` gives: as the hub has it now, or as the cache has it where the hub cannot be reached.

    What ``pinned`` finds cannot have changed, and nobody is asked. Raises ModelFileError with one sentence of ``what``.
    """
    unreachable = None
    try:
        here = pinned()
        if here is None:
            unreachable = _unreachable(endpoint)
            here = download(local_files_only=unreachable is not None)
    except Exception as error:  # those of the client's HTTP library too, which is another one in each of its versions
        raise ModelFileError(f"{what} could not be fetched: {_why_not(error, unreachable)}") from error
    return Path(here)


def _unreachable(endpoint: str | None) -> str | None:
    """Why the hub cannot be asked; None where it gives any answer."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    usual = constants.HF_HUB_ETAG_TIMEOUT == constants.DEFAULT_ETAG_TIMEOUT
    limit = REACH_S if usual else constants.HF_HUB_ETAG_TIMEOUT
    address = endpoint or constants.ENDPOINT
    try:
        get_session().head(address, timeout=limit, follow_redirects=False)
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library the client has; none of them is an answer
        return f"the hub cannot be reached at {address} ({_first_sentence(error)})"
    return None


def _why_not(error: Exception, unreachable: str | None) -> str:
    """The hub's errors come with addresses, request ids and advice over several lines; one sentence is left of them."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.errors import RevisionNotFoundError as NoSuchRevisionError

    known: tuple[tuple[type[Exception], str], ...] = (
        (GatedRepoError, "its owner has to grant access first; then set HF_TOKEN"),
        (RepositoryNotFoundError, "the hub has no such repository, or it is private and HF_TOKEN is not set"),
        (NoSuchRevisionError, "the repository has no such revision"),
        (LocalEntryNotFoundError, f"it is not on this machine, and {unreachable or 'the hub cannot be reached'}"),
        (EntryNotFoundError, "the repository has no such file"),
    )
    return next((told for kind, told in known if isinstance(error, kind)), None) or _first_sentence(error)


def _first_sentence(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.split(r"(?<=[.:;]) |\s*\(Request ID", said, maxsplit=1)[0].rstrip(".:; ")


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
