"""Chains: a stage verifies what the level below drafted, and hands up what it wrote with the exact laws behind it.

Each answer is a generator of its own: it yields what it wants a stage to read (``Ask``) and is sent the logits. Who
runs the generators may join the asks of many answers into one pass, and may stop between any two passes. Nothing here
knows of models, caches, time or text.

    top.round ─► below.emit ─► … ─► a drafter          tokens go up, each with the law it was drawn from

Why a chain of any depth is exact: what a level emits follows, token by token, the law that it hands up (``verify``).
The level above needs no more than that from its drafts, so it may be said of every level in turn. A level writes the
count that it was asked for and never one token more; drafting ends early only by what was decided before a token was
drawn, or behind a token that is kept (``Stopping``), so that an end tells nothing of tokens that are not there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from torch import Tensor

from stepladder.decoding.deferral import Deferral
from stepladder.decoding.laws import Law, Oracle, Point, Sampling, peak, plain_laws, total_variation
from stepladder.decoding.sequence import Ask
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.stopping import Stopping
from stepladder.decoding.tally import Observer
from stepladder.decoding.verify import Rule, rejection

NGRAM = -1
"""The drafter that looks tokens up instead of asking a model."""

GIVEN = -2
"""A lower stage's answer that is read as a draft."""


@dataclass(slots=True)
class Emitted:
    """A token, and the law that it was drawn from, given all tokens before it.

    ``logits`` are the verifying stage's own, shape (vocabulary,), where the run tells them. ``plain`` is the law at
    temperature 1, where deferral asks for it. ``confidence`` is the greatest probability of a drafter's law at
    temperature 1: how sure it was before the token was drawn.
    """

    token: int
    law: Law
    logits: Tensor | None = None
    plain: Law | None = None
    confidence: float = 1.0


Asking = Generator[Ask, Tensor, list[Emitted]]


@dataclass(slots=True)
class Run:
    """What one answer is decoded with.

    ``ends`` are the tokens that end it. Where ``tells``, emitted tokens keep their logits.
    """

    answer: Answer
    sampling: Sampling
    oracle: Oracle
    ends: frozenset[int] = frozenset()
    observer: Observer = field(default_factory=Observer)
    tells: bool = False


class Level(Protocol):
    """A link of a chain. ``key`` is a stage's index, or NGRAM, or GIVEN."""

    key: int

    def emit(self, run: Run, most: int) -> Asking:
        """Append at most ``most`` ≥ 1 tokens to the answer and return them; none beyond one that ends it."""
        ...


class ModelDrafter:
    """The bottom of a chain: a stage that writes for itself, a token a pass."""

    def __init__(self, stage: int, stopping: Stopping | None = None) -> None:
        self.key = stage
        self.stopping = stopping

    def emit(self, run: Run, most: int) -> Asking:
        """Draft until told to stop; the first token is always drawn."""
        out: list[Emitted] = []
        while len(out) < most:
            logits = yield Ask(self.key, run.answer, 1)
            law = run.sampling.laws(logits)[0]
            plain = law if run.sampling.plain else plain_laws(logits)[0]
            confidence = peak(plain)
            if out and self.stopping is not None and self.stopping.before(len(out), confidence):
                break
            token = run.oracle.draw(law)
            run.answer.append(token)
            out.append(Emitted(token, law, None, plain, confidence))
            if token in run.ends:
                break
            if self.stopping is not None and self.stopping.after(len(out), confidence):
                break
        return out


class NgramDrafter:
    """Looks up where the last few tokens stood before, and drafts what followed them there.

    Longer matches go first, the latest of equals. ``extra`` are tokens that may be looked up beside the answer's own,
    such as a lower stage's answer. For one answer only: it remembers what it has seen of it.
    Source: prompt lookup decoding (Saxena 2023); the n-gram drafts of vLLM and llama.cpp are of this kind.
    """

    key = NGRAM

    def __init__(self, *, longest: int = 4, shortest: int = 2, extra: Sequence[int] = ()) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._extra = list(extra)
        self._extra_index: dict[tuple[int, ...], int] = {}
        self._index: dict[tuple[int, ...], int] = {}
        self._seen = 0
        _learn(self._extra_index, self._extra, 0, len(self._extra), self._sizes)

    def learn(self, tokens: Sequence[int], kept: int) -> None:
        """Know the first ``kept`` tokens of the answer: those that will not be taken back."""
        _learn(self._index, tokens, self._seen, kept, self._sizes)
        self._seen = max(self._seen, kept)

    def emit(self, run: Run, most: int) -> Asking:
        """Draft what followed the last tokens, as points; nothing where they never stood before."""
        out: list[Emitted] = []
        for token in self.found(run.answer.tokens, most):
            run.answer.append(token)
            out.append(Emitted(token, Point(token), plain=Point(token)))
            if token in run.ends:
                break
        return out
        yield  # a generator like the other levels', though it asks nobody

    def found(self, tokens: Sequence[int], most: int, end: int | None = None) -> list[int]:
        """At most ``most`` tokens that followed those before ``end`` (all) where they stood earlier."""
        end = len(tokens) if end is None else end
        for size in self._sizes:
            if end < size:
                continue
            last = tuple(tokens[end - size : end])
            if (place := self._index.get(last)) is not None:
                return list(tokens[place : min(place + most, self._seen)])
            if (place := self._extra_index.get(last)) is not None:
                return self._extra[place : place + most]
        return []


class WouldBe:
    """What n-grams would have drafted for an answer that is written without them, judged by what was written instead.

    A token that was looked up is kept with the probability that the stage draws it. The stage drew what it wrote, so
    where that is the same token, this one would have been kept: the verdicts follow the law of real ones, and at
    temperature 0 they are those. ``drafter`` must not know more of the answer than is told here.
    """

    def __init__(self, drafter: NgramDrafter, start: int, length: int) -> None:
        self._drafter = drafter
        self._length = length
        self._start = start
        self._draft: list[int] | None = None

    def go_on(self, start: int) -> None:
        """What was written up to here was drafted in earnest."""
        self._start, self._draft = start, None

    def judged(self, tokens: Sequence[int], *, over: bool) -> Iterator[tuple[int, int]]:
        """(drafted, accepted) of each would-be draft that ``tokens``, all that stands by now, decide.

        ``over``: no more will be written; a draft that went beyond the end is as short as the answer.
        """
        while self._start < len(tokens):
            if self._draft is None:
                self._drafter.learn(tokens, self._start)
                self._draft = self._drafter.found(tokens, self._length, self._start)
            draft, written = self._draft, tokens[self._start : self._start + len(self._draft)]
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(draft, written, strict=False)))
            if same == len(written) < len(draft):
                if not over:
                    return
                draft = draft[:same]
            yield len(draft), same
            self.go_on(self._start + same + 1)


class GivenDraft:
    """An answer that somebody has read already, drafted as far as what is kept so far agrees with it.

    It enters as points: its tokens were fixed before this decoding began, so they are kept by argmax or sample-match
    and never by min(1, p/q) (DESIGN §8: enumerated, that is biased).
    """

    key = GIVEN

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def emit(self, run: Run, most: int) -> Asking:
        """The next tokens of the given answer, or none where the answer went another way."""
        written = run.answer.tokens[run.answer.prompt :]
        out: list[Emitted] = []
        if written == self._tokens[: len(written)]:
            for token in self._tokens[len(written) : len(written) + most]:
                run.answer.append(token)
                out.append(Emitted(token, Point(token), plain=Point(token)))
                if token in run.ends:
                    break
        return out
        yield  # see NgramDrafter.emit


class Verifier:
    """A stage above a drafter, or above another verifier, or alone (``below`` None: plain decoding).

    ``length`` is the draft length asked of the level below. With ``deferral`` the stage's law is replaced by the
    rule's, and no bonus token is drawn: behind the last draft there is no drafter's law to make one of.
    """

    def __init__(
        self,
        stage: int,
        below: Level | None = None,
        *,
        length: int = 4,
        rule: Rule = rejection,
        deferral: Deferral | None = None,
    ) -> None:
        self.key = stage
        self.below = below
        self.length = length if below is not None else 0
        self.rule = rule
        self.deferral = deferral if below is not None else None

    def emit(self, run: Run, most: int) -> Asking:
        """Rounds until there are ``most`` tokens, no more; fewer only behind one that ends the answer."""
        out: list[Emitted] = []
        while len(out) < most and not (out and out[-1].token in run.ends):
            out += yield from self.round(run, most - len(out))
        return out

    def round(self, run: Run, most: int) -> Asking:
        """One pass of the stage over what the level below drafted: at least one token, at most ``most``."""
        answer, start = run.answer, len(run.answer.tokens)
        asked = self._asked(most)
        drafts = (yield from self.below.emit(run, asked)) if self.below is not None and asked else []
        logits = yield Ask(self.key, answer, len(drafts) + 1)
        ended = bool(drafts) and drafts[-1].token in run.ends
        bonus = not ended and not (self.deferral and drafts)
        own, plain, moved = self._laws(run, logits[: len(drafts) + bonus], drafts)
        verdict = self.rule(own, [each.law for each in drafts], [each.token for each in drafts], run.oracle)
        tokens = [each.token for each in drafts[: verdict.accepted]]
        answer.truncate(start + verdict.accepted)
        if verdict.token is not None:
            answer.append(verdict.token)
            tokens.append(verdict.token)
        if self.below is not None and asked:
            confidences = [each.confidence for each in drafts]
            offered = len(drafts) if self.below.key != NGRAM and not ended else asked
            run.observer.verified(self.below.key, self.key, offered, verdict.accepted, confidences)
        if self.deferral is not None:
            for place in range(len(tokens)):
                run.observer.moved(self.key, moved[place] if place < len(moved) else 0.0)
        return [
            Emitted(token, own[place], logits[place] if run.tells else None, plain[place] if plain else None)
            for place, token in enumerate(tokens)
        ]

    def _asked(self, most: int) -> int:
        """Drafts to ask for: room is left for the token that the stage writes itself, where it writes one."""
        return min(self.length, most if self.deferral else most - 1)

    def _laws(self, run: Run, logits: Tensor, drafts: list[Emitted]) -> tuple[list[Law], list[Law] | None, list[float]]:
        """The laws to verify with, those at temperature 1, and how far deferral moved each of the first."""
        own = run.sampling.laws(logits)
        if self.deferral is None:
            return own, None, []
        plain = plain_laws(logits)
        told: list[Law] = []
        for p, plain_p, draft in zip(own, plain, drafts, strict=False):
            told.append(self.deferral.law(p, draft.law, plain_p, draft.plain or draft.law))
        moved = [total_variation(law, p) for law, p in zip(told, own, strict=False)]
        return told + own[len(told) :], plain, moved


def _learn(index: dict[tuple[int, ...], int], tokens: Sequence[int], seen: int, kept: int, sizes: range) -> None:
    """Note behind which n-grams a token is known: n-grams that end before position ``kept``."""
    for end in range(max(1, seen), kept):
        for size in sizes:
            if end >= size:
                index[tuple(tokens[end - size : end])] = end
