"""Rounds of a chain, all of a round on its device: one launch, one wait.

The second way to run a chain. ``chain.py`` says what is right: it can be enumerated, and this is tested against it,
number of chance by number of chance. Here all answers of a round draft alike far, nothing is read back between tokens,
and verification is by rejection. Two models, three, or drafts that the host looked up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from stepladder.decoding.chain import NGRAM, Emitted, Run
from stepladder.decoding.graphs import ROWS, WIDTHS, Captured, Graphs, above, reach_for
from stepladder.decoding.laws import Point, Sampling
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.round_graph import (
    LAST,
    Drafts,
    Kind,
    Laws,
    Link,
    Text,
    drafted,
    judged,
    pieces,
    written,
)
from stepladder.decoding.sequence import Ask, RoundAsk
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.errors import EngineError

LOG = logging.getLogger("stepladder.decoding")

GREEDY = Sampling(0.0)

DRAFTER, TARGET = 0, 1
"""Places in a chain of two, which are the keys of its answers' cache rows unless others are told."""

DEEPEST = 3
"""Models of a chain at most."""

LOOKED_UP = (1, 2, 4, 8, 16)
"""Looked-up drafts that a graph is made for; fewer are padded."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer's part in a round. ``chance`` gives numbers that are even over [0, 1); None at temperature 0, where
    nothing is left to it. ``given``: drafts that were looked up, in a round whose chain is the target alone."""

    answer: Answer
    sampling: Sampling = GREEDY
    chance: Callable[[], float] | None = None
    given: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """One verification: drafts of the chain's model at ``place`` by the one above, how many were kept, and for each the
    greatest probability of the law that it was drawn from (at temperature 1)."""

    place: int
    accepted: int
    confidences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Wrote:
    """What a round did for one answer: the tokens that it wrote, and its verifications, those of the target last.

    ``begins``: for each verification how many tokens of the round stood before its drafts.
    """

    tokens: tuple[int, ...]
    verified: tuple[Verified, ...] = ()
    begins: tuple[int, ...] = ()

    @property
    def accepted(self) -> int:
        """Tokens that were drafted, first of all those written."""
        return self.verified[-1].accepted if self.verified else 0

    @property
    def confidences(self) -> tuple[float, ...]:
        """Of the drafts that the target judged."""
        return self.verified[-1].confidences if self.verified else ()


@dataclass(frozen=True)
class Shape:
    """What a round of some models looks like: lengths of drafts, bottom first; () is plain decoding.

    ``given``: looked-up drafts that there is room for.
    """

    models: int
    lengths: tuple[int, ...] = ()
    given: int = 0

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Drafts of each round of the middle model; none in shorter chains."""
        return pieces(self.lengths) if len(self.lengths) == DEEPEST - 1 else ()

    @cached_property
    def most(self) -> int:
        """Drafts that the target verifies, at most."""
        return sum(each + 1 for each in self.pieces) or (self.lengths[0] if self.lengths else self.given)

    @cached_property
    def below(self) -> int:
        """Numbers of chance that drafting takes."""
        return sum(2 * each + 1 for each in self.pieces) or sum(self.lengths[:1])

    @cached_property
    def numbers(self) -> int:
        """Numbers of chance of an answer: those of drafting, one for each verdict, one for the token behind."""
        return self.below + self.most + 1

    @cached_property
    def told(self) -> int:
        """Whole numbers that a round is told of an answer: its last tokens, where they end, 1; for each model its cache
        row and how many of them it has not read; looked-up drafts and their count."""
        return LAST + 2 + 2 * self.models + (self.given + 1 if self.given else 0)

    def passes(self, stages: Sequence[int]) -> list[tuple[int, int, int]]:
        """(stage, width, how many) of the passes in a round of the chain ``stages``, the target's last."""
        below = [(stages[1], each + 1, 1) for each in self.pieces]
        if self.lengths:
            below.insert(0, (stages[0], 1, sum(self.pieces) or self.lengths[0]))
        return [*below, (stages[-1], self.most + 1, 1)]


class Rounds:
    """Rounds of ``models``, drafters first, the target last; ``stages`` are the keys of its answers' cache rows.

    All models are on one device and give logits of the same vocabulary. ``reason`` says why rounds are not captured.
    Not safe for more than one thread. Raises EngineError for models that do not fit together.
    """

    def __init__(self, models: Sequence[LanguageModel], *, stages: Sequence[int] | None = None) -> None:
        if not 1 <= len(models) <= DEEPEST:
            raise EngineError(f"a round has 1 to {DEEPEST} models, not {len(models)}")
        self.target = models[-1]
        for model in models[:-1]:
            if (model.vocab, model.device) != (self.target.vocab, self.target.device):
                raise EngineError(
                    f"model '{model.name}' ({model.vocab} tokens, {model.device}) cannot draft for '{self.target.name}'"
                    f" ({self.target.vocab} tokens, {self.target.device}) within a round: both must be the same"
                )
        self.models = tuple(models)
        self.stages = tuple(range(len(models)) if stages is None else stages)
        self._graphs = Graphs(self.target.device, self.target.name)
        self.waits = 0
        """Times that the host waited for the device."""
        self.caught_up_s = 0.0
        """Seconds of the last round in which drafters read what had been written without them."""

    @property
    def reason(self) -> str | None:
        """Why rounds are not captured, where they are not."""
        return self._graphs.reason

    def open(self, prompt: Sequence[int]) -> Answer:
        """An answer behind a prompt, of which all models have read all tokens but the last."""
        if not prompt:
            raise EngineError(f"model '{self.target.name}': an answer needs a prompt of at least one token")
        answer = Answer(list(prompt))
        for stage, model in zip(self.stages, self.models, strict=True):
            answer.slots[stage], answer.read[stage] = model.open(), 0
            self._read(answer, stage, model, len(prompt) - 1)
        return answer

    def close(self, answer: Answer) -> None:
        """Give its cache rows back."""
        for stage, model in zip(self.stages, self.models, strict=True):
            model.close(answer.slots.pop(stage))
        answer.read.clear()

    def round(self, turns: Sequence[Turn], lengths: Sequence[int] = ()) -> list[Wrote]:
        """One round of all answers, with drafts of ``lengths``, bottom first; appends what it writes to each.

        () is plain decoding, or verification of what the turns give. A turn's chance is asked for a number for each
        draft, each verdict and the token behind, level by level; where drafts are given, for those that it has.
        All turns are sampled alike: greedy, by temperature, or with cuts as well. Raises EngineError where an answer
        has no room for that many tokens, or where a model gives no numbers.
        """
        shape = self._shape(turns, lengths)
        self._check(turns, shape)
        self._catch_up([turn.answer for turn in turns], shape)
        captured = self._captured(shape, turns[0].sampling.kind, *self._size(turns, shape))
        rows = len(captured.inputs[0]) // shape.told
        with torch.inference_mode():
            captured.fill(0, _by_column([self._told(turn, shape) for turn in turns], rows, shape.told))
            if not turns[0].sampling.greedy:
                captured.fill(1, _by_column([_drawn(turn, shape) for turn in turns], rows, shape.numbers + 3))
            result = captured.run().to("cpu", non_blocking=True)
        self.target.wait()
        self.waits += 1
        return [self._wrote(turn, row, shape) for turn, row in zip(turns, result.tolist(), strict=False)]

    def ready(self, turns: Sequence[Turn], lengths: Sequence[int] = ()) -> bool:
        """Capture the round that these turns need; False where it was there, which is nearly always."""
        shape, before = self._shape(turns, lengths), len(self._graphs)
        self._captured(shape, turns[0].sampling.kind, *self._size(turns, shape))
        return len(self._graphs) > before

    def seconds(self, turns: Sequence[Turn], lengths: Sequence[int] = ()) -> float | None:
        """Median seconds of such a round on the device alone, run as it was last; None where it is not captured."""
        shape = self._shape(turns, lengths)
        return self._captured(shape, turns[0].sampling.kind, *self._size(turns, shape)).seconds(20)

    def warm(
        self, lengths: Sequence[Sequence[int]], *, kinds: Sequence[Kind] = ("greedy",), rows: int = 1, reach: int = 1
    ) -> None:
        """Capture rounds of these lengths ahead, for texts that end within ``reach``, and what drafters catch up by."""
        for model in self.models[:-1]:
            model.warm(widths=WIDTHS[-1:], length=min(reach, model.context))
        for each in lengths:
            for kind in kinds:
                shape = Shape(len(self.models), tuple(each))
                self._captured(shape, kind, above(rows, ROWS), reach_for(reach + shape.most, self._context))

    @property
    def _context(self) -> int:
        """Positions that the largest of the caches has."""
        return max(model.context for model in self.models)

    def _shape(self, turns: Sequence[Turn], lengths: Sequence[int]) -> Shape:
        given = max(len(turn.given) for turn in turns)
        return Shape(len(self.models), tuple(lengths) if any(lengths) else (), given and above(given, LOOKED_UP))

    def _size(self, turns: Sequence[Turn], shape: Shape) -> tuple[int, int]:
        """Rows and reach of the graph."""
        end = max(len(turn.answer.tokens) for turn in turns) + shape.most
        return above(len(turns), ROWS), reach_for(min(end, self._context), self._context)

    def _check(self, turns: Sequence[Turn], shape: Shape) -> None:
        name, lengths, drafters = f"model '{self.target.name}'", shape.lengths, len(self.models) - 1
        least = (1, 2)[:drafters]
        if lengths and (len(lengths) != drafters or any(a < b for a, b in zip(lengths, least, strict=True))):
            raise EngineError(f"{name}: {drafters} drafters cannot be asked for {list(lengths)} tokens; least {least}")
        if shape.given and drafters:
            raise EngineError(f"{name}: looked-up drafts are verified by one model, not by {len(self.models)}")
        for turn in turns:
            if turn.chance is None and not turn.sampling.greedy:
                raise EngineError(f"{name}: temperature {turn.sampling.temperature:g} needs chance")
            self._check_room(turn, shape)

    def _check_room(self, turn: Turn, shape: Shape) -> None:
        most = len(turn.given) if shape.given else shape.most
        for stage, model in zip(self.stages, self.models, strict=True):
            is_top = stage == self.stages[-1]
            end = len(turn.answer.tokens) + most - (not is_top)
            if end > model.context and (is_top or shape.lengths):
                raise EngineError(
                    f"model '{model.name}', cache row {turn.answer.slots[stage]}: {end} positions needed, "
                    f"and its context has {model.context}"
                )

    def _read(self, answer: Answer, stage: int, model: LanguageModel, end: int) -> None:
        """Have a model read an answer's tokens up to a position."""
        begin = answer.read[stage]
        if begin < end:
            rough = model is not self.target
            model.forward([Feed(answer.slots[stage], begin, answer.tokens[begin:end], 0, rough)])
            answer.read[stage] = end
            self.waits += 1

    def _catch_up(self, answers: Sequence[Answer], shape: Shape) -> None:
        """The models that take part read what was written without them, but for what a round feeds them."""
        began = time.perf_counter()
        for answer in answers:
            for stage in missing(answer, self.stages if shape.lengths else self.stages[-1:]):
                self._read(answer, stage, self.models[self.stages.index(stage)], len(answer.tokens) - 1)
        self.caught_up_s = time.perf_counter() - began

    def _captured(self, shape: Shape, kind: Kind, rows: int, reach: int) -> Captured:
        device = self.target.device
        return self._graphs.get(
            (shape, kind, rows, reach, self.target.vocab),
            partial(self._compute, shape=shape, kind=kind, rows=rows, reach=reach),
            lambda: [
                torch.zeros(rows * shape.told, dtype=torch.int64, device=device),
                torch.zeros(rows * (shape.numbers + 3), dtype=torch.float64, device=device),
            ],
        )

    @torch.inference_mode()
    def _compute(self, told: Tensor, numbers: Tensor, *, shape: Shape, kind: Kind, rows: int, reach: int) -> Tensor:
        """(rows, …): what ``_wrote`` reads."""
        told, numbers = told.view(shape.told, rows), numbers.view(shape.numbers + 3, rows)
        text = Text(told[:LAST].T, told[LAST], told[LAST + 1])
        laws = Laws(kind, *numbers[-3:].unbind(0))
        chance = numbers[:-3].T
        links = [
            Link(
                model,
                told[LAST + 2 + 2 * place],
                told[LAST + 3 + 2 * place],
                len(self.models) - place,
                min(reach, model.context),
            )
            for place, model in enumerate(self.models)
        ]
        inner: tuple[tuple[Tensor, Tensor], ...] = ()
        broken = torch.zeros_like(text.live, dtype=torch.bool)
        if shape.pieces:
            wrote = written(links[:2], text, shape.lengths, laws, chance[:, : shape.below])
            drafts, inner, broken = wrote.drafts, wrote.rounds, wrote.broken
        elif shape.given:
            looked_up = told[-shape.given - 1 : -1].T
            drafts = Drafts(looked_up, told[-1], None, torch.ones_like(looked_up, dtype=torch.float64))
        else:
            drafts = drafted(links[0], text, shape.most, laws, chance[:, : shape.below])
        top = links[-1].read(text, drafts.tokens, drafts.counts)
        verdict = judged(top, drafts, laws, chance[:, shape.below :])
        token = verdict.token.masked_fill(broken, -1)
        parts = [verdict.kept[:, None], token[:, None], drafts.counts[:, None], drafts.tokens, drafts.sure]
        for kept, sure in inner:
            parts += [kept[:, None], sure]
        return torch.cat([part.double() for part in parts], 1)

    def _told(self, turn: Turn, shape: Shape) -> list[int]:
        """See ``Shape.told``. Models that take no part are told that they miss the last token."""
        tokens = turn.answer.tokens
        found = [*([0] * LAST + tokens[-LAST:])[-LAST:], len(tokens) - 1, 1]
        for stage in self.stages:
            takes_part = shape.lengths or stage == self.stages[-1]
            missed = len(tokens) - min(turn.answer.read[stage], len(tokens) - 1) if takes_part else 1
            found += [turn.answer.slots.get(stage, 0), missed]
        if shape.given:
            found += [*turn.given, *[0] * (shape.given - len(turn.given)), len(turn.given)]
        return found

    def _wrote(self, turn: Turn, row: list[float], shape: Shape) -> Wrote:
        """Take a round's result into an answer."""
        kept, token, count, most = int(row[0]), int(row[1]), int(row[2]), shape.most
        if token < 0:
            raise EngineError("a token was to be drawn from a law without mass: the model gave no numbers")
        drafts, sure, rest = row[3 : 3 + most], row[3 + most : 3 + 2 * most], row[3 + 2 * most :]
        tokens = (*(int(draft) for draft in drafts[:kept]), token)
        answer, before = turn.answer, len(turn.answer.tokens)
        answer.tokens += tokens
        self._has_read(answer, self.stages[-1], before + kept)
        if shape.given:
            return Wrote(tokens, (Verified(NGRAM, kept, tuple(sure[:count])),), (0,)) if turn.given else Wrote(tokens)
        if not shape.lengths:
            return Wrote(tokens)
        top = Verified(len(self.models) - 2, kept, tuple(sure[:count]))
        if not shape.pieces:
            self._has_read(answer, self.stages[0], before + min(kept, most - 1))
            return Wrote(tokens, (top,), (0,))
        inner, begins, begun = [], [], 0
        for each in shape.pieces:
            inner.append(Verified(0, int(rest[0]), tuple(rest[1 : 1 + each])))
            begins.append(begun)
            begun, rest = begun + int(rest[0]) + 1, rest[1 + each :]
        self._has_read(answer, self.stages[1], before + min(kept, count - 1))
        last = begins[-1] + min(inner[-1].accepted, shape.pieces[-1] - 1)
        self._has_read(answer, self.stages[0], before + min(kept, last))
        return Wrote(tokens, (*inner, top), (*begins, 0))

    def _has_read(self, answer: Answer, stage: int, length: int) -> None:
        answer.read[stage] = length
        self.models[self.stages.index(stage)].wrote(answer.slots[stage], length)


def missing(answer: Answer, stages: Sequence[int]) -> list[int]:
    """The stages of a chain that have missed more than a round feeds them: the last token, and what it may leave."""
    length = len(answer.tokens)
    return [
        stage
        for place, stage in enumerate(stages)
        if length - answer.read.get(stage, 0) > min(length, len(stages) - place)
    ]


def _by_column(rows: list[Any], count: int, width: int) -> list[Any]:
    """The numbers of all rows, column by column, with empty rows up to a count."""
    empty = [0] * width
    return [number for column in zip(*rows, *[empty] * (count - len(rows)), strict=True) for number in column]


def _drawn(turn: Turn, shape: Shape) -> list[float]:
    """Numbers of chance in the places where the round looks for them, then the sampling."""
    assert turn.chance is not None  # noqa: S101 - checked
    skipped = shape.given - len(turn.given)
    drawn = [turn.chance() for _ in range(shape.numbers - skipped)]
    sampling = turn.sampling
    told = [sampling.temperature, float(sampling.top_k), sampling.top_p]
    return [*drawn[:-1], *[0.0] * skipped, drawn[-1], *told]


# ── in a batch of answers ────────────────────────────────────────────────────


class DeviceRound:
    """A chain for ``decode``: rounds of ``chain``'s models with drafts of ``lengths``, each round on their device.

    ``chance`` is the answer's own. ``chain`` may begin with NGRAM, and ``look_up`` then gives drafts for an answer.
    Plain rounds are run where there is no room left in the context.
    """

    def __init__(
        self,
        chain: Sequence[int],
        lengths: Sequence[int],
        *,
        context: int,
        chance: Callable[[], float],
        look_up: Callable[[Sequence[int], int], list[int]] | None = None,
    ) -> None:
        self.chain, self.lengths = tuple(chain), tuple(lengths)
        self.looks_up = bool(chain) and chain[0] == NGRAM
        self._context, self._chance, self._look_up = context, chance, look_up
        if len(self.lengths) == DEEPEST - 1:
            self.lengths = (self.lengths[0], max(2, self.lengths[1]))

    def round(self, run: Run, most: int) -> Generator[Ask | RoundAsk, Any, list[Emitted]]:
        """At least one token, at most ``most``: what a round writes beyond that, or behind an end, is left out."""
        answer = run.answer
        chain, lengths, given = self._shaped(answer, most)
        for stage in missing(answer, chain):
            yield Ask(stage, answer, 0, behind=1, rough=stage != chain[-1])
        before = len(answer.tokens)
        wrote: Wrote = yield RoundAsk(chain, lengths, answer, run.sampling, self._chance, given)
        tokens = _up_to_an_end(wrote.tokens, run.ends)
        self._tell(run, wrote, len(tokens), ended=tokens[-1] in run.ends)
        tokens = tokens[:most]
        answer.truncate(before + len(tokens))
        return [Emitted(token, Point(token)) for token in tokens]

    def _shaped(self, answer: Answer, most: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chain, lengths and looked-up drafts of the next round."""
        top, room = self.chain[-1:], self._context - len(answer.tokens)
        if self.looks_up and self._look_up is not None:
            return top, (), tuple(self._look_up(answer.tokens, min(self.lengths[-1], most - 1, room)))
        if most < 2 or Shape(len(self.chain), self.lengths).most > room:
            return top, (), ()
        return self.chain, self.lengths, ()

    def _tell(self, run: Run, wrote: Wrote, length: int, *, ended: bool) -> None:
        """Verifications up to the end of the answer: what was drafted behind it says nothing."""
        for verified, begin in zip(wrote.verified, wrote.begins, strict=True):
            stands = length - begin if ended else len(verified.confidences)
            if stands < 1 and verified.confidences:
                continue
            drafter = self.chain[verified.place] if verified.place != NGRAM else NGRAM
            target = self.chain[verified.place + 1] if verified.place != NGRAM else self.chain[-1]
            asked = len(verified.confidences) if drafter != NGRAM else self.lengths[-1]
            told = verified.confidences[:stands]
            run.observer.verified(drafter, target, asked, min(verified.accepted, len(told)), told)
        if self.looks_up and not wrote.verified:
            run.observer.verified(NGRAM, self.chain[-1], self.lengths[-1], 0, ())


def _up_to_an_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    found = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: found + 1])


class AllRounds:
    """Rounds of any chain of some models, made when it is first asked for; what ``Batch`` runs them with.

    ``uncaptured``: also where there are no graphs. Not safe for more than one thread.
    """

    def __init__(
        self, models: Sequence[LanguageModel], *, timer: Callable[[], float], uncaptured: bool = False
    ) -> None:
        self._models = tuple(models)
        self._timer = timer
        self._uncaptured = uncaptured
        self._made: dict[tuple[int, ...], Rounds] = {}
        self._refused: dict[tuple[int, ...], str] = {}

    def why_not(self, chain: Sequence[int]) -> str | None:
        """Why rounds of a chain (of its models, where it begins with n-grams) cannot be run so; None where they can."""
        key = tuple(chain)
        if key not in self._refused and (reason := self._reason(key)) is not None:
            self._refused[key] = reason
            LOG.info("chain %s runs pass by pass: %s", " → ".join(self._name(each) for each in key), reason)
        return self._refused.get(key)

    def _reason(self, chain: tuple[int, ...]) -> str | None:
        models = chain[1:] if chain[0] == NGRAM else chain
        if len(models) > DEEPEST or (len(models) > 1 and chain[0] == NGRAM):
            return f"rounds have {DEEPEST} models at most, and one below looked-up drafts"
        try:
            reason = self._of(models).reason
        except EngineError as error:
            return str(error)
        return None if self._uncaptured else reason

    def _name(self, stage: int) -> str:
        return "ngram" if stage == NGRAM else self._models[stage].name

    def _of(self, chain: tuple[int, ...]) -> Rounds:
        found = self._made.get(chain)
        if found is None:
            found = self._made[chain] = Rounds([self._models[stage] for stage in chain], stages=chain)
        return found

    def ready(self, asks: Sequence[RoundAsk]) -> float:
        """Capture what these asks need; the seconds that it took, 0 where it was there."""
        began = self._timer()
        return self._timer() - began if self._of(asks[0].chain).ready(_turns(asks), asks[0].lengths) else 0.0

    def run(self, asks: Sequence[RoundAsk]) -> list[Wrote]:
        """One round of answers whose asks are alike (``RoundAsk.kind``)."""
        return self._of(asks[0].chain).round(_turns(asks), asks[0].lengths)

    def passes(self, ask: RoundAsk) -> Sequence[tuple[int, int, int]]:
        """(stage, width, how many) of the passes in a round."""
        return Shape(len(ask.chain), ask.lengths, len(ask.given)).passes(ask.chain)

    def warm(self, chain: Sequence[int], lengths: Sequence[int], reach: int) -> None:
        """Capture a chain's rounds of one answer ahead, greedy and drawn by temperature."""
        self._of(tuple(chain)).warm([lengths], kinds=("greedy", "whole"), reach=reach)


def _turns(asks: Sequence[RoundAsk]) -> list[Turn]:
    return [Turn(ask.sequence, ask.sampling, ask.chance, ask.given) for ask in asks]
