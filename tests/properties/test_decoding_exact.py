"""What a chain writes follows the top stage's law: by enumeration of every outcome of chance, to rounding."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from decoding_enumeration import PROMPT, Tables, chain_error, furthest, outcomes, own_law, written_law
from stepladder.decoding.acceptance import Chances
from stepladder.decoding.chain import (
    Asking,
    Emitted,
    GivenDraft,
    Level,
    ModelDrafter,
    NgramDrafter,
    Run,
    Verifier,
)
from stepladder.decoding.decode import decode
from stepladder.decoding.deferral import RULE_NAMES, Deferral
from stepladder.decoding.laws import Dense, Law, Oracle, Point, Sampling, excess
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.sequence import Ask
from stepladder.decoding.stopping import Fixed, Marginal, Stopping
from stepladder.decoding.verify import RULES, Rule, Verdict, rejection

EXACT = 1e-12
WRONG = 1e-3
"""A control that must fail is off by at least this much; rounding is 1e-16."""


class Threshold:
    """Stops where the drafter is unsure: before the next token is drawn, behind it, or either."""

    def __init__(self, before: float = 0.0, after: float = 0.0) -> None:
        self._before, self._after = before, after

    def before(self, drafted: int, confidence: float) -> bool:
        return confidence < self._before

    def after(self, drafted: int, confidence: float) -> bool:
        return confidence < self._after


RISING = Chances(tuple(n / 15 for n in range(15)), tuple(n / 20 for n in range(15)), 0.5)
"""What a planner may have learned: the surer the drafter, the likelier its token is kept."""


class Renewed:
    """The planner's rule, made anew for every draft: an answer's own remembers no other outcome of chance."""

    def __init__(self, rate: float) -> None:
        self._rule = Marginal(RISING, widening=[0.1] * 3, draft=0.2, rate=rate)

    def before(self, drafted: int, confidence: float) -> bool:
        return self._rule.before(drafted, confidence)

    def after(self, drafted: int, confidence: float) -> bool:
        return self._rule.after(drafted, confidence)


STOPPING: dict[str, Stopping | None] = {
    "fixed": Fixed(2),
    "marginal": Renewed(0.1),
    "marginal, dear": Renewed(0.15),
    "count": None,
    "before": Threshold(before=0.6),
    "after": Threshold(after=0.5),
    "both": Threshold(before=0.5, after=0.4),
    "always": Threshold(after=2.0),
}


def build(
    lengths: Sequence[int],
    *,
    rule: Rule = rejection,
    stopping: Stopping | None = None,
    bottom: Level | None = None,
    deferral: tuple[int, Deferral] | None = None,
) -> Verifier:
    """Stages 1, 2, … over ``bottom`` (stage 0), with these draft lengths; ``deferral`` is (stage, rule)."""
    level: Level = bottom or ModelDrafter(0, stopping)
    for stage, length in enumerate(lengths, start=1):
        lossy = deferral[1] if deferral is not None and deferral[0] == stage else None
        level = Verifier(stage, level, length=length, rule=rule, deferral=lossy)
    assert isinstance(level, Verifier)
    return level


DEPTHS = [*product((0, 1, 2, 3)), *product((1, 2, 3), (0, 1, 2, 3)), *product((1, 2), (1, 2), (1, 2, 3))]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lengths", DEPTHS, ids=str)
def test_chains_of_two_to_four_stages(lengths: tuple[int, ...], rule: str) -> None:
    tables = Tables(4, 3, seed=sum(lengths))
    assert chain_error(tables, build(lengths, rule=RULES[rule]), 4) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop", STOPPING)
@pytest.mark.parametrize("lengths", [(3,), (2, 2), (2, 3), (2, 1, 2)], ids=str)
def test_every_stopping_rule(lengths: tuple[int, ...], stop: str, rule: str) -> None:
    tables = Tables(4, 4, seed=5, sparse=True)
    top = build(lengths, rule=RULES[rule], stopping=STOPPING[stop])
    assert chain_error(tables, top, 4) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(2,), (3,), (2, 2), (1, 3), (1, 1, 2)], ids=str)
def test_cut_by_an_end_and_by_the_most_tokens(lengths: tuple[int, ...], length: int, rule: str) -> None:
    top = build(lengths, rule=RULES[rule])
    for seed, ends in product((1, 2), (frozenset({2}), frozenset({0, 1}))):
        assert chain_error(Tables(4, 3, seed, sparse=True), top, length, ends=ends) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "sampling",
    [Sampling(0.0), Sampling(0.5), Sampling(2.0), Sampling(top_k=2), Sampling(0.8, top_p=0.7), Sampling(1.3, 3, 0.9)],
    ids=str,
)
def test_every_way_of_sampling(sampling: Sampling, rule: str) -> None:
    tables = Tables(3, 4, seed=9)
    assert chain_error(tables, build((2, 2), rule=RULES[rule]), 4, sampling=sampling, ends=frozenset({3})) < EXACT


@pytest.mark.parametrize("rule", RULES)
def test_looked_up_drafts_below_a_model(rule: str) -> None:
    drafter = NgramDrafter(longest=2, shortest=1, extra=[0, 1, 2, 0, 2, 2, 1])
    for bottom in (drafter, GivenDraft([1, 2, 0, 1])):
        for lengths in ((3,), (2, 2)):
            tables = Tables(3, 3, seed=4)
            assert chain_error(tables, build(lengths, rule=RULES[rule], bottom=bottom), 4) < EXACT


def test_looked_up_drafts_do_come() -> None:
    drafter = NgramDrafter(longest=2, shortest=1, extra=[0, 1, 2])
    wrote = [
        each
        for each, _ in outcomes(Tables(2, 3, 4), build((2,), bottom=drafter).round, PROMPT, 4, Sampling(), frozenset())
    ]
    assert max(len(each) for each in wrote) == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("lengths", [(1,), (3,), (2, 2), (1, 1, 2)], ids=str)
def test_a_lossy_middle_leaves_the_top_exact(name: str, lengths: tuple[int, ...], rule: str) -> None:
    if len(lengths) == 1:
        lengths = (*lengths, 2)
    lossy = (1, Deferral(name, 0.3))  # type: ignore[arg-type]
    assert chain_error(Tables(4, 3, seed=3), build(lengths, rule=RULES[rule], deferral=lossy), 4) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(0.7, top_k=2)], ids=str)
@pytest.mark.parametrize("name", RULE_NAMES)
def test_deferral_at_the_top_writes_its_own_law(name: str, sampling: Sampling, rule: str) -> None:
    """π is a function of the tokens before, so its law can be written down; and it is not p."""
    tables, deferral = Tables(2, 3, seed=8), Deferral(name, 0.4)  # type: ignore[arg-type]

    def pi(prefix: tuple[int, ...]) -> list[float]:
        rows = [tables.logits(stage, prefix)[None] for stage in (1, 0)]
        (p,), (q,) = (sampling.laws(row) for row in rows)
        plain_p, plain_q = (Dense(torch.softmax(row, -1)[0]) for row in rows)
        law = deferral.law(p, q, plain_p, plain_q)
        return [law.prob(token) for token in range(3)]

    top = build((2,), rule=RULES[rule], deferral=(1, deferral))
    wrote = written_law(tables, top.round, 4, sampling=sampling)
    assert furthest(wrote, own_law(pi, 4)) < EXACT
    own = own_law(lambda prefix: tables.law(1, sampling, prefix), 4)
    assert furthest(wrote, own) > WRONG


def test_the_planners_rule_does_stop_drafts() -> None:
    lengths = set()
    for rule in (None, Renewed(0.1), Renewed(0.15), Renewed(1.0)):
        top = build((3,), stopping=rule)
        wrote = outcomes(Tables(2, 4, 5, sparse=True), top.round, PROMPT, 4, Sampling(), frozenset())
        lengths.add(round(sum(len(each) * weight for each, weight in wrote), 6))
    assert len(lengths) == 4


@pytest.mark.parametrize("rule", RULES)
def test_chains_that_change_from_round_to_round_and_learn_from_what_is_kept(rule: str) -> None:
    """The loop over rounds as it runs: n-grams of the answer's own tokens, other chains as it goes on."""

    def whole(run: Run, most: int) -> Generator[Ask, Tensor, list[Emitted]]:
        lookup, wrote = NgramDrafter(longest=2, shortest=1), list[Emitted]()

        def chain() -> Verifier:
            lookup.learn(run.answer.tokens, len(run.answer.tokens))
            bottoms: list[Level] = [lookup, ModelDrafter(0), lookup]
            lengths = [(2,), (1, 1), (1, 2)][len(run.answer.tokens) % 3]
            return build(lengths, rule=RULES[rule], bottom=bottoms[len(run.answer.tokens) % 3])

        def keep(each: list[Emitted]) -> bool:
            wrote.extend(each)
            return False

        yield from decode(run, chain, most, keep)
        return wrote

    def own(prefix: tuple[int, ...]) -> list[float]:
        return tables.law(1, Sampling(), prefix)

    tables = Alike(3, 2, seed=4)
    wrote = written_law(tables, whole, 4, prompt=(0, 1, 0))
    assert furthest(wrote, own_law(own, 4, prompt=(0, 1, 0))) < EXACT


class Alike(Tables):
    """Stages 1 and 2 have one law, so that either may stand on top."""

    def logits(self, stage: int, prefix: tuple[int, ...]) -> Tensor:
        return super().logits(min(stage, 1), prefix)


@pytest.mark.parametrize("shared", [False, True])
def test_a_climbed_draft_is_judged_by_chance_of_its_own(shared: bool) -> None:
    """A lower answer drawn from the stream that judges it agrees with it by chance they share: another law."""
    p, counts = Dense(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)), [0] * 4
    q = Dense(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64))
    for seed in range(6000):
        draft = SeededOracle(f"lower:{seed}").draw(q)
        judge = SeededOracle(f"{'lower' if shared else 'upper'}:{seed}")
        verdict = rejection([p, p], [Point(draft)], [draft], judge)
        counts[draft if verdict.accepted else verdict.token or 0] += 1
    off = max(abs(count / 6000 - p.prob(token)) for token, count in enumerate(counts))
    assert (off > 0.05) == shared, counts


# ── a draft that was read before the decision to climb ───────────────────────


class DrawnBefore:
    """Drafts a given answer with the law that it was drawn from: what must not be done with a draft that was read."""

    key = 0

    def __init__(self, tokens: Sequence[int], tables: Tables) -> None:
        self._tokens, self._tables = tokens, tables

    def emit(self, run: Run, most: int) -> Asking:
        out: list[Emitted] = []
        written = tuple(run.answer.tokens[len(PROMPT) :])
        if written == tuple(self._tokens[: len(written)]):
            for token in self._tokens[len(written) : len(written) + most]:
                weights = self._tables.law(0, Sampling(), tuple(run.answer.tokens))
                run.answer.append(token)
                out.append(Emitted(token, Dense(torch.tensor(weights, dtype=torch.float64))))
        return out
        yield


def climbed_law(tables: Tables, *, as_points: bool) -> dict[tuple[int, ...], float]:
    """Law of the upper stage's answers over requests whose lower answer, of two tokens, begins with token 1."""
    lower = own_law(lambda prefix: tables.law(0, Sampling(), prefix), 2)
    read = {answer[1:]: mass for answer, mass in lower.items() if answer[1] == 1}
    law: dict[tuple[int, ...], float] = {}
    for draft, mass in read.items():
        level: Level = GivenDraft(draft) if as_points else DrawnBefore(draft, tables)
        for answer, weight in written_law(tables, Verifier(1, level, length=2).round, 3).items():
            law[answer] = law.get(answer, 0.0) + weight * mass / sum(read.values())
    return law


def test_a_climbed_draft_leaves_the_law() -> None:
    tables = Tables(2, 3, seed=6)
    own = own_law(lambda prefix: tables.law(1, Sampling(), prefix), 3)
    assert furthest(climbed_law(tables, as_points=True), own) < EXACT
    assert furthest(climbed_law(tables, as_points=False), own) > WRONG  # rejection sampling on it is biased


# ── controls that must fail ──────────────────────────────────────────────────


def full_resample(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Replaces a refused draft by one from the whole law instead of the residual."""
    for place, (p, q, token) in enumerate(zip(own, drafted, tokens, strict=False)):
        if not oracle.accept(min(1.0, p.prob(token) / q.prob(token))):
            return Verdict(place, oracle.draw(p))
    return Verdict(len(tokens), oracle.draw(own[len(tokens)]))


def lenient(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Keeps drafts twice as readily, and hands its own law up as if it had not."""
    for place, (p, q, token) in enumerate(zip(own, drafted, tokens, strict=False)):
        if not oracle.accept(min(1.0, 2 * p.prob(token) / q.prob(token))):
            return Verdict(place, oracle.draw(excess(p, q)))
    return Verdict(len(tokens), oracle.draw(own[len(tokens)]))


def bonus_from_draft(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Draws the bonus token from the drafter's law."""
    verdict = rejection(own[: len(tokens)], drafted, tokens, oracle)
    return (
        verdict if verdict.token is not None else Verdict(len(tokens), oracle.draw(drafted[-1] if drafted else own[0]))
    )


def keep_all(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Keeps every draft."""
    return Verdict(len(tokens), oracle.draw(own[len(tokens)]))


class Dropping(ModelDrafter):
    """Draws a token, looks at it, and drops it where it is unlikely: its end tells of a token that is not there."""

    def emit(self, run: Run, most: int) -> Asking:
        out = yield from super().emit(run, most)
        if len(out) > 1 and out[-1].law.prob(out[-1].token) < 0.5:
            run.answer.truncate(len(run.answer.tokens) - 1)
            out.pop()
        return out


class Colder(ModelDrafter):
    """Draws at temperature 0.5 and tells the law at temperature 1."""

    def emit(self, run: Run, most: int) -> Asking:
        out: list[Emitted] = []
        while len(out) < most:
            logits = yield Ask(self.key, run.answer, 1)
            token = run.oracle.draw(Sampling(0.5).laws(logits)[0])
            run.answer.append(token)
            out.append(Emitted(token, run.sampling.laws(logits)[0]))
        return out


class OneBlock(Verifier):
    """Hands up what one block gave, instead of the count that was asked for."""

    def emit(self, run: Run, most: int) -> Asking:
        return (yield from self.round(run, most))


def mid(rule: Rule, kind: type[Verifier] = Verifier, length: int = 2) -> Verifier:
    return Verifier(2, kind(1, ModelDrafter(0), length=length, rule=rule), length=2)


CONTROLS: dict[str, Verifier] = {
    "full-p resample in the middle": mid(full_resample),
    "lenient middle, q := p": mid(lenient),
    "keep everything": Verifier(1, ModelDrafter(0), length=2, rule=keep_all),
    "sample, look, drop": Verifier(1, Dropping(0), length=3),
    "bonus from q": Verifier(1, ModelDrafter(0), length=2, rule=bonus_from_draft),
    "q at the wrong temperature": Verifier(1, Colder(0), length=2),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_what_is_wrong_is_seen(name: str) -> None:
    assert max(chain_error(Tables(3, 3, seed), CONTROLS[name], 4) for seed in range(3)) > WRONG


@pytest.mark.parametrize("upper", RULES)
@pytest.mark.parametrize("lower", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_a_round_may_be_handed_up_as_it_ended(lower: str, upper: str, seed: int) -> None:
    """Also of block verification the end is a stopping time: that a block goes on tells nothing of how it goes on."""
    below = OneBlock(1, ModelDrafter(0), length=2, rule=RULES[lower])
    assert chain_error(Tables(3, 3, seed), Verifier(2, below, length=3, rule=RULES[upper]), 4) < EXACT


def test_block_keeps_at_least_as_many() -> None:
    """Sun et al., theorem 2: no fewer kept in expectation; here from every prefix of one token."""
    tables = Tables(2, 3, seed=12)
    gained = []
    for prefix in ((0, 0), (0, 1), (0, 2)):
        kept = {}
        for name, rule in RULES.items():
            step = build((3,), rule=rule).round
            kept[name] = sum(len(wrote) * w for wrote, w in outcomes(tables, step, prefix, 4, Sampling(), frozenset()))
        gained.append(kept["block"] - kept["rejection"])
    assert min(gained) > -EXACT
    assert max(gained) > WRONG


def test_points_ask_no_chance() -> None:
    assert Point(2).prob(2) == 1
    assert Point(2).prob(1) == 0
