"""What of a round runs on the device: drafting, verification, acceptance, over tensors whose shapes are fixed.

Nothing here reads a number back to the host, so that a CUDA graph can capture all of it. ``rounds.py`` says what goes
in and what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stepladder.decoding.laws import COLD
from stepladder.decoding.models import LanguageModel

LAST = 3
"""Tokens at the end of a text that models may have missed: a chain of three has at most as many behind a round."""

Kind = Literal["greedy", "whole", "cut"]


def pieces(lengths: Sequence[int]) -> tuple[int, ...]:
    """Drafts of each round that a middle model writes in: (g, G) writes up to G ≥ 2 tokens, g drafts to a round.

    The number of rounds is fixed beforehand, since a graph cannot wait for G tokens: G are written where all drafts are
    kept, and fewer where not. That is exact. Whether there is a further token hangs on the verdicts on the tokens
    before it alone, and given those it is drawn from the middle model's law, drafts of what stands behind it included.
    """
    each, most = lengths
    whole, rest = divmod(most, each + 1)
    return (*[each] * whole, *([rest - 1] if rest > 1 else []))


@dataclass(frozen=True, slots=True)
class Laws:
    """How logits become laws, row by row: ``temperature``, ``top_k`` (0 cuts nothing), ``top_p``, each (rows,)."""

    kind: Kind
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def weights(self, logits: Tensor) -> Tensor:
        """(rows, columns, vocabulary): what ``Sampling.laws`` makes of each."""
        heat = self.temperature[:, None, None].to(logits.dtype)
        shifted = torch.where(heat > COLD, logits, logits - logits.amax(-1, keepdim=True))
        scaled = shifted / heat.clamp(min=torch.finfo(logits.dtype).tiny)
        if self.kind == "whole":
            return torch.softmax(scaled, -1)
        kept = torch.where(self.top_k > 0, self.top_k, logits.shape[-1]).clamp(max=logits.shape[-1]).long()
        ordered = scaled.sort(dim=-1, descending=True).values
        lowest = ordered.gather(-1, (kept - 1)[:, None, None].expand(-1, logits.shape[1], 1))
        weights = torch.softmax(scaled.masked_fill(scaled < lowest, -torch.inf), -1)
        return torch.where(self.top_p[:, None, None] < 1, _nucleus(weights, self.top_p), weights)


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """As in ``laws``, each row with its own share."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p[:, None, None].to(weights.dtype), 0.0)
    cut = torch.zeros_like(weights).scatter(-1, order, kept)
    return cut / cut.sum(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Text:
    """Where texts end: the last tokens (rows, LAST), the position of the very last (rows,), and 0 for empty rows."""

    last: Tensor
    position: Tensor
    live: Tensor


@dataclass(frozen=True, slots=True)
class Link:
    """A model of the chain in a round: its cache rows, how many of a text's last tokens it has not read (``missed``,
    (rows,), 0 for empty rows) and how many that can be (``most``)."""

    model: LanguageModel
    slots: Tensor
    missed: Tensor
    most: int
    reach: int

    def read(self, text: Text, more: Tensor, counts: Tensor | int) -> Tensor:
        """Logits (rows, 1 + columns, vocabulary) behind the text's last token and each of the first ``counts`` more."""
        missed, most = self.missed, self.most
        columns = more.shape[1]
        tokens = torch.cat([text.last[:, LAST - most :], more], 1)
        if most > 1:  # rows that missed fewer begin further on
            at = torch.arange(most + columns, device=tokens.device) + (most - missed)[:, None]
            tokens = tokens.gather(1, at.clamp(max=most + columns - 1))
        widths = (missed + counts) * text.live
        logits = self.model.masked(tokens, self.slots, text.position - missed + 1, widths, reach=self.reach)
        if most == 1:
            return logits
        row = torch.arange(len(tokens), device=tokens.device)[:, None]
        wanted = (missed - 1).clamp(min=0)[:, None] + torch.arange(columns + 1, device=tokens.device)
        return logits[row, wanted]

    def go_on(self, text: Text, tokens: Tensor, behind: int) -> Tensor:
        """Logits (rows, 1, vocabulary) behind one more token (rows,), ``behind`` positions after the text's last."""
        return self.model.masked(tokens[:, None], self.slots, text.position + behind, text.live, reach=self.reach)


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafts of each row: ``tokens`` (rows, most), of which the first ``counts`` (rows,) stand; the law that each was
    drawn from (rows, most, vocabulary), None where they are argmaxes or were looked up; the greatest probability of
    each law at temperature 1, ``sure`` (rows, most)."""

    tokens: Tensor
    counts: Tensor
    laws: Tensor | None
    sure: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """How many drafts of each row are kept, the token behind them, and the verifier's own laws where there are any."""

    kept: Tensor
    token: Tensor
    own: Tensor | None


def drafted(link: Link, text: Text, length: int, laws: Laws, chance: Tensor) -> Drafts:
    """``length`` drafts of a model, a token a pass; ``chance`` (rows, length)."""
    rows, none = len(text.last), text.last[:, :0]
    tokens: list[Tensor] = []
    drawn_from: list[Tensor] = []
    sure: list[Tensor] = []
    for place in range(length):
        logits = link.go_on(text, tokens[-1], place) if place else link.read(text, none, 0)
        sure.append(torch.softmax(logits[:, 0], -1).amax(-1))
        if laws.kind == "greedy":
            tokens.append(logits[:, 0].argmax(-1))
        else:
            drawn_from.append(laws.weights(logits)[:, 0])
            tokens.append(drawn(drawn_from[-1], chance[:, place]).clamp(min=0))
    counts = torch.full((rows,), length, dtype=torch.int64, device=text.last.device)
    if not tokens:
        return Drafts(none, counts, None, none.double())
    joined = torch.stack(drawn_from, 1) if drawn_from else None
    return Drafts(torch.stack(tokens, 1), counts, joined, torch.stack(sure, 1))


def judged(logits: Tensor, drafts: Drafts, laws: Laws, chance: Tensor) -> Judged:
    """``verify.rejection`` for all rows at once; ``chance`` (rows, most + 1): the verdicts', then the token's behind.

    Drafts that were looked up are judged as points.
    """
    most = drafts.tokens.shape[1]
    stands = torch.arange(most, device=logits.device) < drafts.counts[:, None]
    if laws.kind == "greedy":
        best = logits.argmax(-1)
        kept = ((best[:, :-1] == drafts.tokens) & stands).long().cumprod(1).sum(1)
        return Judged(kept, best.gather(1, kept[:, None])[:, 0], None)
    own = laws.weights(logits)
    row = torch.arange(len(logits), device=logits.device)
    if not most:
        return Judged(torch.zeros_like(row), drawn(own[:, 0], chance[:, 0]), own)
    index = drafts.tokens[:, :, None]
    p = own[:, :-1].gather(2, index)[:, :, 0].double()
    q = torch.ones_like(p) if drafts.laws is None else drafts.laws.gather(2, index)[:, :, 0].double()
    passed = chance[:, :-1] < torch.where(p >= q, torch.ones_like(p), p / q)
    kept = (passed & stands).long().cumprod(1).sum(1)
    law, refused_at = own[row, kept], kept.clamp(max=most - 1)
    if drafts.laws is None:
        left = law.scatter(1, drafts.tokens[row, refused_at][:, None], 0.0)
    else:
        left = (law - drafts.laws[row, refused_at]).clamp(min=0)
    refused = (kept < drafts.counts) & ~(left.sum(-1) <= 0)  # no mass: equal laws, told apart by rounding alone
    return Judged(kept, drawn(torch.where(refused[:, None], left, law), chance[:, -1]), own)


@dataclass(frozen=True, slots=True)
class Written:
    """What a middle model wrote as drafts for its target, and of each of its rounds: drafts kept (rows,), and how sure
    each draft was (rows, drafts). ``broken`` (rows,): a token was to be drawn from no law."""

    drafts: Drafts
    rounds: tuple[tuple[Tensor, Tensor], ...]
    broken: Tensor


def written(below: Sequence[Link], text: Text, lengths: Sequence[int], laws: Laws, chance: Tensor) -> Written:
    """The rounds of a middle model over its drafter's drafts (see ``pieces``); ``below`` are both, the drafter first.

    ``chance``: for each round the drafts', the verdicts' and the token's behind.
    """
    (bottom, middle), rows, device = below, len(text.last), text.last.device
    most = sum(each + 1 for each in pieces(lengths))
    told = torch.cat([text.last, text.last.new_zeros((rows, most))], 1)
    counts = torch.zeros(rows, dtype=torch.int64, device=device)
    source = torch.zeros((rows, most), dtype=torch.int64, device=device)
    found: list[Judged] = []
    sure: list[Tensor] = []
    rounds: list[tuple[Tensor, Tensor]] = []
    used = begun = 0
    for place, each in enumerate(pieces(lengths)):
        now = Text(
            told.gather(1, counts[:, None] + torch.arange(LAST, device=device)), text.position + counts, text.live
        )
        if place:  # the drafter may have missed the last of its drafts, and the token behind it
            bottom, middle = replace(bottom, missed=2 * text.live), replace(middle, missed=text.live, most=1)
        drafts = drafted(bottom, now, each, laws, chance[:, used : used + each])
        used += each
        logits = middle.read(now, drafts.tokens, each)
        verdict = judged(logits, drafts, laws, chance[:, used : used + each + 1])
        used += each + 1
        wrote = torch.cat([drafts.tokens, drafts.tokens[:, :1]], 1)
        wrote = wrote.scatter(1, verdict.kept[:, None], verdict.token.clamp(min=0)[:, None])
        # What stands behind the round's last token is written over by the next one, or not counted.
        at = counts[:, None] + torch.arange(each + 1, device=device)
        told = told.scatter(1, LAST + at, wrote)
        source = source.scatter(1, at, begun + torch.arange(each + 1, device=device).expand(rows, -1))
        counts, begun = counts + verdict.kept + 1, begun + each + 1
        found.append(verdict)
        sure.append(torch.softmax(logits, -1).amax(-1))
        rounds.append((verdict.kept, drafts.sure))
    own = [verdict.own for verdict in found if verdict.own is not None]
    joined = torch.cat(own, 1)[torch.arange(rows, device=device)[:, None], source] if own else None
    broken = torch.stack([verdict.token < 0 for verdict in found]).any(0)
    return Written(Drafts(told[:, LAST:], counts, joined, torch.cat(sure, 1).gather(1, source)), tuple(rounds), broken)


def drawn(weights: Tensor, chance: Tensor) -> Tensor:
    """Tokens (rows,) by inversion of the cumulative weights (rows, vocabulary) in float64, never one of weight 0.

    -1 where weights are no law. The same as ``SeededOracle.draw`` makes of the same number.
    """
    cumulative = weights.double().cumsum(-1)
    mass = cumulative[:, -1]
    place = torch.searchsorted(cumulative, (chance * mass)[:, None], right=True)[:, 0]
    numbers = torch.arange(weights.shape[1], device=weights.device)
    last = (numbers * (weights > 0)).amax(-1)
    return torch.minimum(place, last).masked_fill(~((mass > 0) & mass.isfinite()), -1)
