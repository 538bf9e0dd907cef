"""Models from a folder, a GGUF file or Hugging Face's hub, with their tokenizers; none that does not fit.

Weights are read from safetensors or GGUF only, and no code that comes with a model is run.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from stepladder.decoding import memory
from stepladder.decoding.gguf_file import GGUFFile
from stepladder.decoding.memory import Need, Probe
from stepladder.decoding.models import CHUNK, LanguageModel, context_of, own_logits, require_same, shape_of
from stepladder.decoding.tokenizer import Tokenizer
from stepladder.errors import EngineError, MissingExtraError, ModelFileError, StepladderError, nearest
from stepladder.hub import fetched

T = TypeVar("T")

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
AUTO = "auto"
TRIED = ("llama", "qwen2", "qwen3")
"""Families that are tested; any other is compared with itself when it is loaded."""

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Files of a repository that are fetched: weights in safetensors, configuration, tokenizer; no pickles, no code."""

UNWANTED = ["*/*", "consolidated*"]
"""Other forms of the same weights."""

HEADER_MAX = 100_000_000
_HUB = re.compile(r"(?:hub:)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, and its tokenizer."""

    model: LanguageModel
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which model, and all that its place and size follow from.

    ``source`` is a GGUF file, a folder, else a repository of the hub, ``OWNER/NAME[@REVISION]``. ``name`` stands in
    messages. ``dtype`` is one of ``DTYPES``, or auto: float32 on a CPU, bfloat16 on a GPU. ``device`` is cpu, cuda,
    cuda:N, or auto: the first GPU where there is one. ``context`` is the positions of each of ``slots`` rows, by
    default all that the model was made for.
    """

    source: str
    name: str = ""
    dtype: str = AUTO
    device: str = AUTO
    context: int | None = None
    slots: int = 8

    @property
    def called(self) -> str:
        """What messages call it."""
        return self.name or self.source


@dataclass(frozen=True, slots=True)
class Found:
    """A model whose head was read: where it will be (``device``) and what it will take there; ``load`` loads it."""

    wanted: Wanted
    device: str
    need: Need
    _dtype: torch.dtype
    _positions: int
    _weights: _Weights

    def load(self, *, chunk: int = CHUNK, probe: Probe = memory.free_bytes) -> Loaded:
        """Read the weights. ``chunk``: tokens of a prompt in one pass; ``probe`` tells what is free.

        Raises ModelFileError for files that are damaged, EngineError for a model that cannot be run, or not in the
        memory that is free.
        """
        name, weights = self.wanted.called, self._weights
        with _quiet():
            memory.require(self.need, name=name, device=self.device, probe=probe)
            tokenizer = Tokenizer(weights.tokenizer(), name=name, eos=weights.ends)
            try:
                network = weights.network(self._dtype).to(self.device)
                own = None if network.config.model_type in TRIED else own_logits(network)
                slots = self.wanted.slots
                model = LanguageModel(network, name=name, context=self._positions, slots=slots, chunk=chunk)
                if own is not None:
                    require_same(model, own)
            except torch.OutOfMemoryError as error:  # somebody else took what was free
                told = f"model '{name}' needs {self.need} on {self.device}, which ran out while it was loaded"
                raise EngineError(told) from error
        return Loaded(model, tokenizer)


def look(wanted: Wanted) -> Found:
    """Find a model and read its head; nothing large is read, but what the hub has and this machine has not is fetched.

    Raises ModelFileError for files that are missing or of a kind that is not known here, EngineError for settings that
    cannot be, MissingExtraError without transformers.
    """
    _require_extra(wanted.source)
    place = _device(wanted.device, wanted.called)
    dtype = _dtype(wanted.dtype, place, wanted.called)
    with _quiet():
        weights = _Weights.of(wanted.source)
        config = weights.config.get_text_config()
        shape = shape_of(config, wanted.called)
        positions = context_of(config, wanted.context, wanted.called)
    cache = memory.cache_bytes(
        layers=shape.layers,
        heads=shape.heads,
        width=shape.width,
        slots=wanted.slots,
        context=positions,
        itemsize=dtype.itemsize,
    )
    need = Need(weights.elements * dtype.itemsize, cache)
    return Found(wanted, place, need, dtype, positions, weights)


def load(wanted: Wanted | str, *, chunk: int = CHUNK, probe: Probe = memory.free_bytes) -> Loaded:
    """Find and load one model, all by default where only its source is told. Raises as ``look`` and ``Found.load``."""
    return look(Wanted(source=wanted) if isinstance(wanted, str) else wanted).load(chunk=chunk, probe=probe)


@dataclass(frozen=True, slots=True)
class _Weights:
    """What is known before anything large is read, and how to read it."""

    config: Any
    elements: int
    ends: tuple[int, ...]
    tokenizer: Callable[[], Any]
    network: Callable[[torch.dtype], Any]

    @classmethod
    def of(cls, source: str) -> _Weights:
        path = Path(source).expanduser()
        if path.suffix == ".gguf":
            file = GGUFFile(path)
            return cls(file.config(), file.elements(), file.ends().end, file.tokenizer, file.network)
        return cls._of_folder(path if path.is_dir() else _fetched(source))

    @classmethod
    def _of_folder(cls, folder: Path) -> _Weights:
        import transformers

        elements = _elements(folder)
        config = _told(folder, lambda: transformers.AutoConfig.from_pretrained(folder, **_LOCAL))

        def network(dtype: torch.dtype) -> Any:
            made, report = _told(
                folder,
                lambda: transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
                ),
            )
            if missing := sorted(report["missing_keys"]):
                raise ModelFileError(
                    f"the model in {folder} lacks {len(missing)} of its weights, such as '{missing[0]}'"
                )
            return made

        def tokenizer() -> Any:
            return _told(folder, lambda: transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, **_LOCAL))

        return cls(config, elements, _ends(folder), tokenizer, network)


_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _require_extra(source: str) -> None:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"running '{source}'", "torch") from error
    del transformers


def _device(device: str, name: str) -> str:
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise EngineError(f"model '{name}': device '{device}' is not auto, cpu, cuda or cuda:N")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise EngineError(f"model '{name}': device '{device}' is not there; {torch.cuda.device_count()} GPUs are")
    return device


def _dtype(dtype: str, device: str, name: str) -> torch.dtype:
    if dtype == AUTO:
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise EngineError(f"model '{name}': unknown dtype '{dtype}'; {nearest(dtype, (AUTO, *DTYPES))}")
    return DTYPES[dtype]


def _told(folder: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (StepladderError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers lets through whatever a damaged or foreign file leads to
        said = str(error).strip().splitlines() or [""]
        raise ModelFileError(f"the model in {folder} cannot be loaded: {type(error).__name__}: {said[0]}") from error


def _fetched(source: str) -> Path:
    """The folder in the hub's cache that holds a repository; what is missing there is fetched."""
    found = _HUB.fullmatch(source)
    if found is None:
        raise ModelFileError(f"the model '{source}' is no folder, no GGUF file and no OWNER/NAME[@REVISION] of the hub")
    from huggingface_hub import snapshot_download

    def download(*, local_files_only: bool) -> str:
        folder = snapshot_download(
            found["repo"],
            revision=found["revision"],
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            library_name="stepladder",
            local_files_only=local_files_only,
        )
        return str(folder)

    return fetched(f"the model '{source}'", download)


def _elements(folder: Path) -> int:
    """Numbers in a folder's weights, from the headers of its safetensors."""
    index = folder / "model.safetensors.index.json"
    names = set(_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    return sum(_elements_of(folder / name) for name in names)


def _elements_of(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(size, HEADER_MAX)))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except OSError as error:
        raise ModelFileError(f"the weights {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"the weights {file} are no safetensors, or damaged") from error


def _ends(folder: Path) -> tuple[int, ...]:
    """Ids that end an answer, as the folder's configurations say."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        told = _json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        found += told if isinstance(told, list) else [] if told is None else [told]
    return tuple(dict.fromkeys(found))


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ModelFileError(f"{file} holds no object")
    return read


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and advice from transformers while this lasts; what is wrong is raised."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
