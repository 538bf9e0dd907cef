"""Where a model's weights are: a file beside the configuration, or a file of a Hugging Face repository.

``hub:OWNER/REPOSITORY/FILE.gguf`` or ``hub:OWNER/REPOSITORY/FILE.gguf@REVISION`` names the latter. Downloads go through
huggingface_hub: its cache, its resuming, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` as everybody knows them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from stepladder.errors import MissingExtraError, ModelFileError

PREFIX = "hub:"
_REFERENCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")


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
    """An absolute path of the weights; a hub file is fetched, resumed or found in the cache.

    Checksums are the engine's business, before it loads. Raises ModelFileError or MissingExtraError.
    """
    if is_hub_reference(model):
        return fetch(parse_reference(model), cache=cache)
    path = Path(model).expanduser()
    return path if path.is_absolute() else (folder / path).resolve()


def fetch(file: HubFile, *, cache: Path | None = None, endpoint: str | None = None) -> Path:
    """Fetch one file into the hub's cache and give its place; huggingface_hub resumes what was cut off."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"a model named 'hub:{file.repo}/…'", "hub") from error
    try:
        place = hf_hub_download(
            file.repo, file.file, revision=file.revision, cache_dir=cache, endpoint=endpoint, library_name="stepladder"
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFileError(f"hub:{file.repo}/{file.file} could not be fetched: {told[0]}") from error
    return Path(place)
