"""The models of a ``torch`` engine: stages and their own drafters in one row, loaded, compared and timed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stepladder.decoding.loading import Loaded, load, needed
from stepladder.decoding.memory import Need, Probe, free_bytes, require
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.tokenizer import Tokenizer
from stepladder.decoding.vocabulary import Voice, common
from stepladder.engines.model_file import verify
from stepladder.engines.torch_settings import Settings
from stepladder.errors import ConfigError, ModelFileError

LOG = logging.getLogger("stepladder.engines")

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
"""Widths that every model is timed at before the first answer, as far as ``TRIAL_S`` goes."""

TRIAL_S = 1.0
TRIALS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """All models in the order of their indices: the stages' own drafters first, then the stages, cheapest first."""

    names: tuple[str, ...]
    loaded: tuple[Loaded, ...]
    below: tuple[tuple[int, ...], ...]
    """For each model, those that may draft for it: of lower index and with the same tokens."""

    def index(self, name: str) -> int:
        """A model's place."""
        return self.names.index(name)

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The models without their tokenizers."""
        return tuple(each.model for each in self.loaded)

    def tokenizer(self, index: int) -> Tokenizer:
        """One model's tokenizer."""
        return self.loaded[index].tokenizer


def load_row(settings: Sequence[Settings], *, probe: Probe = free_bytes) -> Row:
    """Load every model. Blocks for as long as that takes.

    What all of them take together is compared with what is free (``probe``) before the first is loaded.

    Raises ModelFileError, EngineError or MissingExtraError with the stage's name, and ConfigError where a chain that
    was asked for joins models with different tokens.
    """
    drafters = [each for each in settings if each.drafter is not None]
    names = (*(each.own_drafter for each in drafters), *(each.stage.name for each in settings))
    _require_room(names, (*((each, each.drafter) for each in drafters), *((each, None) for each in settings)), probe)
    loaded = (*(_load(each, str(each.drafter)) for each in drafters), *(_load(each, None) for each in settings))
    asked = {each.stage.name: each.chain for each in settings}
    owners = {each.own_drafter: each.stage.name for each in drafters}
    below = tuple(_below(position, names, loaded, asked.get(name), owners) for position, name in enumerate(names))
    _narrow(loaded, below)
    row = Row(names, loaded, below)
    own = {each.stage.name: (each.own_drafter,) for each in drafters if each.chain is None}
    _warn_of_large_drafters(row, {**asked, **own})
    return row


def time_passes(
    models: Sequence[LanguageModel],
    observe: Callable[[int, int, int, float], None],
    *,
    timer: Callable[[], float],
    budget_s: float = TRIAL_S,
) -> None:
    """Run each model on noise at several widths, the median of a few passes each, and tell ``observe`` of each pass.

    The first pass of a width is not told: it pays for memory and for kernels being chosen. A model stops being timed
    after ``budget_s`` seconds, with width 1 known in any case.
    """
    chance = random.Random(0)  # noqa: S311 - noise to be timed, no secret
    for index, model in enumerate(models):
        slot, started = model.open(), timer()
        try:
            for width in (w for w in WIDTHS if w < model.context):
                if width > 1 and timer() - started > budget_s:
                    break
                for trial in range(TRIALS + 1):
                    tokens = [chance.randrange(model.vocab) for _ in range(width)]
                    began = timer()
                    model.forward([Feed(slot, 0, tokens, width)])
                    if trial:
                        observe(index, width, 1, timer() - began)
        finally:
            model.close(slot)


def use_threads(count: int) -> None:
    """Compute with so many threads from here on, in the thread that calls; 0 leaves PyTorch's choice.

    PyTorch keeps the number per thread and has one for threads to come, so whoever computes has to say it.
    """
    if count:
        torch.set_num_threads(count)


def _require_room(names: Sequence[str], wanted: Sequence[tuple[Settings, str | None]], probe: Probe) -> None:
    """Raise EngineError naming all models of a device that has no room for them together."""
    totals: dict[str, tuple[list[str], Need]] = {}
    for name, (settings, drafter) in zip(names, wanted, strict=True):
        device, need = _needed(settings, drafter)
        sharing, before = totals.get(device, ([], Need(0, 0)))
        totals[device] = ([*sharing, name], Need(before.weights + need.weights, before.cache + need.cache))
    for device, (sharing, need) in totals.items():
        require(need, name="', '".join(sharing), device=device, probe=probe)


def _needed(settings: Settings, drafter: str | None) -> tuple[str, Need]:
    with _named(settings):
        return needed(drafter or settings.stage.model, **_options(settings, drafter))


def _load(settings: Settings, drafter: str | None) -> Loaded:
    source = drafter or settings.stage.model
    with _named(settings):
        if drafter is None and settings.sha256 is not None:
            verify(source, settings.sha256)
        return load(source, chunk=settings.chunk, **_options(settings, drafter))


def _options(settings: Settings, drafter: str | None) -> dict[str, Any]:
    """What a model's place and size follow from; ``drafter`` is None for the stage's own model."""
    return {
        "name": settings.own_drafter if drafter else settings.stage.name,
        "dtype": settings.dtype,
        "device": settings.device,
        "context": settings.stage.context,
        "slots": settings.slots,
    }


@contextmanager
def _named(settings: Settings) -> Iterator[None]:
    """Put the stage's name before what is wrong with its files."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"stage '{settings.stage.name}': {error}") from error


def _below(
    position: int,
    names: Sequence[str],
    loaded: Sequence[Loaded],
    asked: tuple[str, ...] | None,
    owners: Mapping[str, str],
) -> tuple[int, ...]:
    """Models that can draft for one; a chain that was asked for has to be able to. ``owners``: whose drafters are."""
    able = []
    for lower in range(position):
        if owners.get(names[lower], names[position]) != names[position]:
            continue
        try:
            common([_voice(names[at], loaded[at]) for at in (lower, position)], f"stage '{names[position]}'")
        except ConfigError as error:
            if asked and names[lower] in asked:
                raise
            LOG.info("stage '%s' does not draft for '%s': %s", names[lower], names[position], error)
            continue
        able.append(lower)
    return tuple(able)


def _voice(name: str, loaded: Loaded) -> Voice:
    return Voice(name, loaded.tokenizer, loaded.model.vocab)


def _narrow(loaded: Sequence[Loaded], below: Sequence[Sequence[int]]) -> None:
    """Slice the logits of models that work together to what all of them have."""
    sizes = [each.model.vocab for each in loaded]
    pairs = [(low, at) for at, lows in enumerate(below) for low in lows]
    for _ in loaded:  # as often as a bound may have to travel from one pair to the next
        for low, at in pairs:
            sizes[low] = sizes[at] = min(sizes[low], sizes[at])
    for each, size in zip(loaded, sizes, strict=True):
        each.model.limit_vocab(size)


def _warn_of_large_drafters(row: Row, asked: dict[str, tuple[str, ...] | None]) -> None:
    for name, chain in asked.items():
        target = row.models[row.index(name)]
        for drafter in chain or ():
            if drafter in row.names and row.models[row.index(drafter)].parameters >= target.parameters:
                size = row.models[row.index(drafter)].parameters
                LOG.warning(
                    "stage '%s' (%.3g parameters) drafts for '%s' (%.3g): a drafter no smaller than its target can "
                    "hardly pay; the counts in its traces tell",
                    drafter, size, name, target.parameters,
                )  # fmt: skip
