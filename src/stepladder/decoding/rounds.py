"""Rounds of a target and at most one drafter, all of a round on their device: one launch, one wait.

The second way to run a chain of two models. ``chain.py`` says what is right: it can be enumerated, and this is tested
against it, number of chance by number of chance. Here all answers of a round draft alike far, nothing is read back
between tokens, and verification is by rejection. What is drawn from is what ``laws.Sampling`` makes of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stepladder.decoding.graphs import ROWS, Captured, Graphs, above, reach_for
from stepladder.decoding.laws import Dense, Sampling
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.errors import EngineError

DRAFTER, TARGET = 0, 1
"""Stages of an answer's cache rows."""

TOLD = 8
"""Whole numbers that a round is told of an answer: its last two tokens, then slot, start and width of the drafter's
first pass, then slot, start and width of a target's column."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """What a round did for one answer: the tokens that it wrote, of which the first ``accepted`` were drafted, and for
    each draft the greatest probability of the law that it was drawn from (at temperature 1)."""

    tokens: tuple[int, ...]
    accepted: int
    confidences: tuple[float, ...]


class Rounds:
    """Answers of ``target``, with drafts of ``drafter`` where there is one, all sampled alike.

    Both models are on one device and give logits of the same vocabulary. ``reason`` says why rounds are not captured.
    Not safe for more than one thread. Raises EngineError for models that do not fit together.
    """

    def __init__(
        self,
        target: LanguageModel,
        drafter: LanguageModel | None = None,
        *,
        sampling: Sampling,
    ) -> None:
        if drafter is not None and (drafter.vocab, drafter.device) != (target.vocab, target.device):
            raise EngineError(
                f"model '{drafter.name}' ({drafter.vocab} tokens, {drafter.device}) cannot draft for '{target.name}' "
                f"({target.vocab} tokens, {target.device}) within a round: both must be the same"
            )
        self.target, self.drafter, self.sampling = target, drafter, sampling
        self._graphs = Graphs(target.device, target.name)
        self.waits = 0
        """Times that the host waited for the device."""

    @property
    def reason(self) -> str | None:
        """Why rounds are not captured, where they are not."""
        return self._graphs.reason

    def open(self, prompt: Sequence[int]) -> Answer:
        """An answer behind a prompt, of which all models have read all tokens but the last."""
        if not prompt:
            raise EngineError(f"model '{self.target.name}': an answer needs a prompt of at least one token")
        answer = Answer(list(prompt))
        for stage, model in self._models():
            answer.slots[stage], answer.read[stage] = model.open(), 0
            self._read(answer, stage, model, len(prompt) - 1)
        return answer

    def close(self, answer: Answer) -> None:
        """Give its cache rows back."""
        for stage, model in self._models():
            model.close(answer.slots.pop(stage))
        answer.read.clear()

    def round(self, answers: Sequence[Answer], length: int, chance: Callable[[], float] | None = None) -> list[Wrote]:
        """One round of all answers, with drafts of ``length`` tokens (0: plain decoding); appends what it writes.

        ``chance`` gives numbers that are even over [0, 1), 2 · length + 1 for each answer in turn: one for each draft,
        one for each verdict, one for the token behind; None where nothing is left to chance (temperature 0).
        Raises EngineError where an answer has no room for that many tokens, or where a model gives no numbers.
        """
        self._check(answers, length, chance)
        if length:
            for answer in answers:
                self._catch_up(answer)
        rows = above(len(answers), ROWS)
        reach = reach_for(max(len(answer.tokens) for answer in answers) + length, self._context)
        captured = self._captured(rows, length, reach)
        empty = [0] * (rows - len(answers))
        told = zip(*(_told(answer, drafts=length > 0) for answer in answers), strict=True)
        with torch.inference_mode():
            captured.fill(0, [number for numbers in told for number in (*numbers, *empty)])
            if chance is not None and not self.sampling.greedy:
                drawn = [chance() for _ in range(len(answers) * (2 * length + 1))]
                captured.fill(1, drawn + [0.0] * (2 * length + 1) * (rows - len(answers)))
            result = captured.run().to("cpu", non_blocking=True)
        self.target.wait()
        self.waits += 1
        return [self._wrote(answer, row, length) for answer, row in zip(answers, result.tolist(), strict=False)]

    def warm(self, lengths: Sequence[int], rows: Sequence[int] = (1,), reach: int = 1) -> None:
        """Capture rounds of these shapes ahead."""
        for count in rows:
            for length in lengths:
                self._captured(above(count, ROWS), length, reach_for(reach, self._context))

    @property
    def _context(self) -> int:
        """Positions that the larger of the two caches has."""
        return max(model.context for _, model in self._models())

    def _models(self) -> list[tuple[int, LanguageModel]]:
        return [(TARGET, self.target), *([(DRAFTER, self.drafter)] if self.drafter is not None else [])]

    def _check(self, answers: Sequence[Answer], length: int, chance: Callable[[], float] | None) -> None:
        if length < 0 or (length and self.drafter is None):
            raise EngineError(f"model '{self.target.name}': nobody drafts {length} tokens for it")
        if chance is None and not self.sampling.greedy:
            raise EngineError(f"model '{self.target.name}': temperature {self.sampling.temperature:g} needs chance")
        for stage, model in self._models():
            for answer in answers:
                end = len(answer.tokens) + length - (stage == DRAFTER)
                if end > model.context and (stage == TARGET or length):
                    raise EngineError(
                        f"model '{model.name}', cache row {answer.slots[stage]}: {end} positions needed, "
                        f"and its context has {model.context}"
                    )

    def _read(self, answer: Answer, stage: int, model: LanguageModel, end: int) -> None:
        """Have a model read an answer's tokens up to a position."""
        begin = answer.read[stage]
        if begin < end:
            model.forward([Feed(answer.slots[stage], begin, answer.tokens[begin:end], 0)])
            answer.read[stage] = end
            self.waits += 1

    def _catch_up(self, answer: Answer) -> None:
        """The drafter reads what was written without it, but for the two tokens that a round feeds it."""
        assert self.drafter is not None  # noqa: S101 - checked
        if answer.read[DRAFTER] < len(answer.tokens) - 2:
            self._read(answer, DRAFTER, self.drafter, len(answer.tokens) - 1)

    def _captured(self, rows: int, length: int, reach: int) -> Captured:
        device, places = self.target.device, 2 * length + 1
        return self._graphs.get(
            (rows, length, reach, self.target.vocab),
            partial(self._compute, rows=rows, length=length, reach=reach),
            lambda: [
                torch.zeros(rows * TOLD, dtype=torch.int64, device=device),
                torch.zeros(rows * places, dtype=torch.float64, device=device),
            ],
        )

    @torch.inference_mode()
    def _compute(self, told: Tensor, chance: Tensor, *, rows: int, length: int, reach: int) -> Tensor:
        """(rows, 2 + 2 · length): drafts kept, the token behind them, the drafts, and how sure each was."""
        told, chance = told.view(TOLD, rows), chance.view(rows, 2 * length + 1)
        drafts, laws, sure = self._drafted(told, chance[:, :length], reach)
        logits = self.target.masked(
            torch.cat([told[1][:, None], drafts], 1),
            told[5],
            told[6],
            told[7] * (length + 1),
            reach=min(reach, self.target.context),
        )
        judged = self._matched if self.sampling.greedy else self._judged
        kept, token = judged(logits, drafts, laws, chance[:, length:])
        return torch.cat([kept[:, None].double(), token[:, None].double(), drafts.double(), sure.double()], 1)

    def _drafted(self, told: Tensor, chance: Tensor, reach: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Drafts (rows, length), the law of each (rows, vocabulary), none where greedy, and the confidences."""
        rows, length = chance.shape
        drafts: list[Tensor] = []
        laws: list[Tensor] = []
        sure: list[Tensor] = []
        if length and self.drafter is not None:
            reach = min(reach, self.drafter.context)
            before, last, slots, starts, widths, _, position, live = told.unbind(0)
            first = torch.stack([torch.where(widths == 2, before, last), last], 1)
            logits = self.drafter.masked(first, slots, starts, widths, reach=reach)
            logits = logits[torch.arange(rows, device=told.device), (widths - 1).clamp(min=0)]
            for place in range(length):
                if place:
                    logits = self.drafter.masked(drafts[-1][:, None], slots, position + place, live, reach=reach)[:, 0]
                sure.append(torch.softmax(logits, -1).amax(-1))
                if self.sampling.greedy:
                    drafts.append(logits.argmax(-1))
                else:
                    laws.append(self._weights(logits))
                    drafts.append(_drawn(laws[-1], chance[:, place]).clamp(min=0))
        if not drafts:
            nothing = told.new_empty((rows, 0))
            return nothing, laws, nothing
        return torch.stack(drafts, 1), laws, torch.stack(sure, 1)

    def _matched(self, logits: Tensor, drafts: Tensor, laws: list[Tensor], chance: Tensor) -> tuple[Tensor, Tensor]:
        """Temperature 0: drafts are kept for as long as they are the likeliest tokens."""
        best = logits.argmax(-1)
        kept = (best[:, :-1] == drafts).long().cumprod(1).sum(1)
        return kept, best.gather(1, kept[:, None])[:, 0]

    def _judged(self, logits: Tensor, drafts: Tensor, laws: list[Tensor], chance: Tensor) -> tuple[Tensor, Tensor]:
        """``verify.rejection``, all rows at once."""
        rows, columns, vocab = logits.shape
        own = self._weights(logits.reshape(rows * columns, vocab)).view(rows, columns, vocab)
        if not laws:
            return torch.zeros_like(drafts.sum(1)), _drawn(own[:, 0], chance[:, 0])
        drafted = torch.stack(laws, 1)
        p, q = (law.gather(2, drafts[:, :, None])[:, :, 0].double() for law in (own[:, :-1], drafted))
        passed = chance[:, :-1] < torch.where(p >= q, torch.ones_like(p), p / q)
        kept = passed.long().cumprod(1).sum(1)
        row = torch.arange(rows, device=logits.device)
        law = own[row, kept]
        left = (law - drafted[row, kept.clamp(max=columns - 2)]).clamp(min=0)
        refused = (kept < columns - 1) & ~(left.sum(-1) <= 0)  # no mass: equal laws, told apart by rounding alone
        return kept, _drawn(torch.where(refused[:, None], left, law), chance[:, -1])

    def _weights(self, logits: Tensor) -> Tensor:
        """What ``Sampling`` makes of rows of logits, as one tensor."""
        laws = self.sampling.laws(logits)
        return torch.stack([law.weights for law in laws if isinstance(law, Dense)])

    def _wrote(self, answer: Answer, row: list[float], length: int) -> Wrote:
        """Take a round's result into an answer."""
        kept, token = int(row[0]), int(row[1])
        if token < 0:
            raise EngineError("a token was to be drawn from a law without mass: the model gave no numbers")
        drafts = [int(draft) for draft in row[2 : 2 + length]]
        read = len(answer.tokens) + kept
        answer.tokens += [*drafts[:kept], token]
        answer.read[TARGET] = read
        self.target.wrote(answer.slots[TARGET], read)
        if length and self.drafter is not None:
            answer.read[DRAFTER] = min(read, len(answer.tokens) - 1 - (kept == length))
            self.drafter.wrote(answer.slots[DRAFTER], answer.read[DRAFTER])
        return Wrote((*drafts[:kept], token), kept, tuple(row[2 + length :]))


def _told(answer: Answer, *, drafts: bool) -> list[int]:
    """See TOLD."""
    length = len(answer.tokens)
    first = min(answer.read.get(DRAFTER, 0), length - 1) if drafts else length - 1
    pair = answer.tokens[-2:] if length > 1 else [0, *answer.tokens]
    return [*pair, answer.slots.get(DRAFTER, 0), first, length - first, answer.slots[TARGET], length - 1, 1]


def _drawn(weights: Tensor, chance: Tensor) -> Tensor:
    """Tokens (rows,) by inversion of the cumulative weights (rows, vocabulary) in float64, never one of weight 0.

    -1 where weights are no law. The same as ``SeededOracle.draw`` makes of the same number.
    """
    cumulative = weights.double().cumsum(-1)
    mass = cumulative[:, -1]
    place = torch.searchsorted(cumulative, (chance * mass)[:, None], right=True)[:, 0]
    numbers = torch.arange(weights.shape[1], device=weights.device)
    last = (numbers * (weights > 0)).amax(-1)
    return torch.minimum(place, last).masked_fill(~((mass > 0) & mass.isfinite()), -1)
