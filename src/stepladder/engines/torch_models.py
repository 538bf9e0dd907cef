"""The models of a ``torch`` engine: stages and their own drafters in one row, loaded, compared and timed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from stepladder.decoding.loading import Found, Loaded, Wanted, look
from stepladder.decoding.memory import Need, Probe, free_bytes, require
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.rounds import AllRounds
from stepladder.decoding.tokenizer import Tokenizer
from stepladder.decoding.vocabulary import Voice, common
from stepladder.engines.model_file import verify
from stepladder.engines.torch_settings import NGRAM, Settings
from stepladder.errors import ConfigError, EngineError, ModelFileError

LOG = logging.getLogger("stepladder.engines")
T = TypeVar("T")

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
    failed: Mapping[str, Exception] = field(default_factory=dict)
    """Stages that cannot be served, and why; the models of those that cannot be loaded are not in the row."""

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

    A stage that cannot be loaded, or whose chain names a drafter that cannot draft for it, is told of in ``Row.failed``
    and keeps no other from being served. What the others take together is compared with what is free (``probe``) before
    the first of them is loaded: raises EngineError where that is not enough, and where no stage is left the error of
    the first.
    """
    failed: dict[str, Exception] = {}
    models = [_Model(each, drafter=True) for each in settings if each.drafter is not None]
    models += [_Model(each) for each in settings]
    heads = [(model, head) for model in models if (head := _tried(model, failed, partial(_look, model))) is not None]
    _require_room([(model.name, head) for model, head in heads if model.stage not in failed], probe)
    read = [
        (model, whole)
        for model, head in heads
        if model.stage not in failed
        and (whole := _tried(model, failed, partial(_load, model, head, probe))) is not None
    ]
    row = _joined([(model, whole) for model, whole in read if model.stage not in failed], failed)
    if all(each.stage.name in failed for each in settings):
        raise next(iter(failed.values()))
    for name, error in failed.items():
        LOG.error("stage '%s' cannot be served: %s: %s", name, type(error).__name__, error)
    return row


@dataclass(frozen=True, slots=True)
class _Model:
    """A model to load: a stage's own, or the one that drafts for it alone."""

    settings: Settings
    drafter: bool = False

    @property
    def stage(self) -> str:
        return self.settings.stage.name

    @property
    def name(self) -> str:
        return self.settings.own_drafter if self.drafter else self.stage

    @property
    def asked(self) -> tuple[str, ...]:
        """The drafters that were asked for by name."""
        return () if self.drafter else self.settings.chain or ()


def _tried(model: _Model, failed: dict[str, Exception], work: Callable[[], T]) -> T | None:
    """What comes of some work for a model; None where it fails, which is then its stage's failure."""
    try:
        return work()
    except ModelFileError as error:
        failed.setdefault(model.stage, ModelFileError(f"stage '{model.stage}': {error}"))
    except Exception as error:  # noqa: BLE001 - files and drivers lead to anything; it fails this stage and no other
        failed.setdefault(model.stage, error)
    return None


def _look(model: _Model) -> Found:
    settings, stage = model.settings, model.settings.stage
    return look(
        Wanted(
            source=str(settings.drafter) if model.drafter else stage.model,
            name=model.name,
            dtype=settings.dtype,
            device=settings.device,
            context=stage.context,
            slots=settings.slots,
        )
    )


def _load(model: _Model, head: Found, probe: Probe) -> Loaded:
    settings = model.settings
    if not model.drafter and settings.sha256 is not None:
        verify(settings.stage.model, settings.sha256)
    return head.load(chunk=settings.chunk, probe=probe)


def _require_room(heads: Sequence[tuple[str, Found]], probe: Probe) -> None:
    """Raise EngineError naming all models of a device that has no room for them together."""
    totals: dict[str, tuple[list[str], Need]] = {}
    for name, head in heads:
        sharing, before = totals.get(head.device, ([], Need(0, 0)))
        need = Need(before.weights + head.need.weights, before.cache + head.need.cache)
        totals[head.device] = ([*sharing, name], need)
    for device, (sharing, need) in totals.items():
        require(need, name="', '".join(sharing), device=device, probe=probe)


def _joined(read: Sequence[tuple[_Model, Loaded]], failed: dict[str, Exception]) -> Row:
    """The models side by side, with who may draft for whom; a stage whose chain cannot be is failed."""
    models, loaded = tuple(model for model, _ in read), tuple(whole for _, whole in read)
    below = tuple(
        _tried(model, failed, partial(_below, position, models, loaded)) or () for position, model in enumerate(models)
    )
    _narrow(loaded, below)
    row = Row(tuple(model.name for model in models), loaded, below, failed)
    for model in models:
        own = (model.settings.own_drafter,) if model.settings.drafter and model.settings.chain is None else ()
        _warn_of_large_drafters(row, model.name, () if model.drafter else model.asked or own)
    return row


def time_passes(
    models: Sequence[LanguageModel],
    observe: Callable[[int, int, int, float], None],
    *,
    timer: Callable[[], float],
    budget_s: float = TRIAL_S,
) -> None:
    """Run each model on noise at several widths, the median of a few passes each, and tell ``observe`` of each pass.

    The first pass of a width is not told: it pays for memory and for kernels being chosen. Passes that are captured are
    told as the device takes them: in a round nothing stands between them. A model stops being timed
    after ``budget_s`` seconds, with width 1 known in any case.
    """
    chance = random.Random(0)  # noqa: S311 - noise to be timed, no secret
    for index, model in enumerate(models):
        slot, started = model.open(), timer()
        try:
            for width in (w for w in WIDTHS if w < model.context):
                if width > 1 and timer() - started > budget_s:
                    break
                alone = model.narrow_seconds(width, slot)
                for trial in range(TRIALS + 1):
                    if alone is not None:
                        observe(index, width, 1, alone)
                        continue
                    tokens = [chance.randrange(model.vocab) for _ in range(width)]
                    began = timer()
                    model.forward([Feed(slot, 0, tokens, width)])
                    if trial:
                        observe(index, width, 1, timer() - began)
        finally:
            model.close(slot)


def rounds_of(settings: Sequence[Settings], row: Row, *, timer: Callable[[], float]) -> dict[str, AllRounds]:
    """What runs rounds whole, by stage: one for all that ask for it. Those that are not there run pass by pass.

    Plain rounds of those stages, and rounds of chains that are set, are captured here, so that no answer waits for it.
    """
    asked = {each.stage.name: each for each in settings if _runs_whole(each, row.models[row.index(each.stage.name)])}
    uncaptured = any(each.rounds == "on" for each in asked.values())
    runner = AllRounds(row.models, timer=timer, uncaptured=uncaptured) if asked else None
    found: dict[str, AllRounds] = {}
    for name, each in asked.items():
        assert runner is not None  # noqa: S101 - made where any stage asks
        top = row.index(name)
        chain, length = (top,), each.length or 0
        runner.warm(chain, (), each.chunk)
        if (reason := runner.why_not(chain)) is not None:
            LOG.warning("stage '%s' is run pass by pass: %s", name, reason)
            continue
        below = tuple(row.index(drafter) for drafter in each.chain or () if drafter != NGRAM)
        if below and length and NGRAM not in (each.chain or ()) and runner.why_not((*below, top)) is None:
            runner.warm((*below, top), (length,) * len(below), each.chunk)
        found[name] = runner
    return found


def _runs_whole(settings: Settings, model: LanguageModel) -> bool:
    if settings.rounds == "auto":
        return model.device.type == "cuda"
    return settings.rounds == "on"


def use_threads(count: int) -> None:
    """Compute with so many threads from here on, in the thread that calls; 0 leaves PyTorch's choice.

    PyTorch keeps the number per thread and has one for threads to come, so whoever computes has to say it.
    """
    if count:
        torch.set_num_threads(count)


def _below(position: int, models: Sequence[_Model], loaded: Sequence[Loaded]) -> tuple[int, ...]:
    """Models that can draft for one. Raises ConfigError or EngineError where one that was asked for cannot."""
    target, able = models[position], []
    for lower, model in enumerate(models[:position]):
        if model.drafter and model.stage != target.stage:
            continue
        try:
            common([_voice(models[at].name, loaded[at]) for at in (lower, position)], f"stage '{target.name}'")
        except ConfigError as error:
            if model.name in target.asked:
                raise
            LOG.info("stage '%s' does not draft for '%s': %s", model.name, target.name, error)
            continue
        able.append(lower)
    missing = set(target.asked) - {NGRAM} - {models[lower].name for lower in able}
    if missing:
        raise EngineError(f"stage '{target.name}': its drafter '{min(missing)}' cannot be loaded")
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


def _warn_of_large_drafters(row: Row, name: str, drafters: Sequence[str]) -> None:
    target = row.models[row.index(name)]
    for drafter in drafters:
        if drafter in row.names and row.models[row.index(drafter)].parameters >= target.parameters:
            size = row.models[row.index(drafter)].parameters
            LOG.warning(
                "stage '%s' (%.3g parameters) drafts for '%s' (%.3g): a drafter no smaller than its target can "
                "hardly pay; the counts in its traces tell",
                drafter, size, name, target.parameters,
            )  # fmt: skip
