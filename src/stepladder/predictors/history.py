"""What the answers so far tell of quality: one fixed block of columns for every stage of a ladder.

A signal that is not known has a value of its own, outside of the range that known ones have (UNKNOWN, and UNTOLD for
log probabilities, which are never above 0), rather than NaN. One split of a tree then sets it apart, on the side that
suits, and trees need no bit in every node that says where a missing number goes.

Signals go by their names: an artifact keeps the list that it was fitted with, and reads that one for good.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil, expm1, isfinite, log1p, log2
from typing import Any, NamedTuple

from stepladder.errors import ArtifactError, nearest
from stepladder.predictors.arithmetic import Checked, checked
from stepladder.predictors.artifact import numbers_of
from stepladder.tokens import CHARS_PER_TOKEN
from stepladder.types import Attempt, Usage, message_text

UNKNOWN = -1.0
"""A length, a count or a share that is not known."""

UNTOLD = 1.0
"""A log probability that is not known."""

LONGEST_FINAL = 200
"""Characters of a final answer that are kept, from its end."""

LONGEST = 2000
"""Characters of an answer that are read, from its end."""

LOOK = 600
"""Characters that words are taken from, of an answer or a prompt."""

LONGEST_CODE = 1000
"""Characters of Python that are parsed, which takes longer than all else that is read."""

TAIL = 8
"""Tokens at the end of an answer, where what it came to stands."""

SIGNALS = ("answered", "tokens", "logprob", "parsed", "length", "cut", "refusal", "agreement")
"""Columns of one stage: answered (0 or 1), log(1 + output tokens), mean log probability of the tokens, whether there is
a final answer, log(1 + its characters), ended by the length limit, reads like a refusal, and the share of the other
stages that answered whose final answer is the same."""

MORE_SIGNALS = (
    "min_logprob",
    "tail_logprob",
    "digits",
    "repeats",
    "same_as_prompt",
    "code",
    "consistency",
    "letter",
    *("equations", "wrong", "unused", "used", "whole", "size"),
    "agree_up",
    *("partial", "first_logprob", "low_logprob", "opens"),  # OF_BEGINNINGS
)
"""Further columns, for artifacts that name them: the lowest log probability of a token, and the mean of the last TAIL;
the share of characters that are digits; of lines, or of four words in a row, that came before; of the answer's words
that stand in the prompt; whether its Python can be parsed; the share of further choices (``n``) with the same final
answer; the place in the alphabet of a final answer that is one letter (0 where it is none); what can be
checked of a calculation (``arithmetic.Checked``), where the prompt is known and the answer has numbers; for every
higher stage a column that says whether its final answer is the same; whether the answer had not ended when it was read
(``is_partial``); the log probability of its first token, and the mean of the lowest fifth; and what it opens with, a
number of OPENINGS.

Entropies are not among them: engines tell the chosen tokens' log probabilities, whose mean is less the entropy as one
sample shows it."""

ALL_SIGNALS = (*SIGNALS, *MORE_SIGNALS)
OF_BEGINNINGS = ("partial", "first_logprob", "low_logprob", "opens")
"""Of MORE_SIGNALS those that estimates after whole answers do without: the fewer columns, the better they are."""

PAIRED = "agree_up"
"""The signal that is one of two stages."""

LOGPROB_SIGNALS = frozenset({"logprob", "min_logprob", "tail_logprob", "first_logprob", "low_logprob"})

FEWEST_CHARS, MOST_CHARS = 0.25, 64.0
"""Characters of a stage's mean token that an artifact may tell."""

BANDS = 8

LOW = 5
"""One in so many tokens, those with the lowest log probabilities, is in their mean; one at the least."""

OPENINGS = ("nothing", "digit", "capital", "letter", "fence", "list or heading", "bracket", "sign")
"""How an answer's first characters are told, by their places here."""

_OPENING = 200
_HAS_DIGIT = re.compile(r"\d")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able|not sure)|i (?:can(?:no|')t|do(?: not|n't) know|won't|will not)"
    r"|as an ai\b|unable to (?:answer|help|assist)|cannot (?:answer|help|assist|be determined))",
    re.IGNORECASE,
)
_IN_REFUSALS = ("i ", "i'm ", "as an ai", "unable to ", "cannot ")
"""Of which each match of _REFUSAL has one, where it is ASCII."""

_STATED = re.compile(r"\b(?:answer|option|choice|result)\b(?:\s+is)?\s*:?\s*(\S.*)$")
_EDGES = " \t\"'`*_.,;:!?()[]{}$\\"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BARE_CODE = re.compile(r"\s*(?:def|class|import|from|async def)\s+\w|\s*@\w")
_ESCAPE = re.compile(r"\\[^\n]")
_GLUED = re.compile(r"\b\d[\w.]*?(?=(?:and|else|for|if|in|is|or)\b)")
_PYTHON = frozenset({"", "python", "python3", "py"})


class Signals(NamedTuple):
    """What one answer says by itself, by the names of SIGNALS and MORE_SIGNALS, and ``final``, by which answers are
    compared. Signals that nobody asked for are not known."""

    tokens: float
    logprob: float
    parsed: float
    length: float
    cut: float
    refusal: float
    final: str
    min_logprob: float = UNTOLD
    tail_logprob: float = UNTOLD
    digits: float = UNKNOWN
    repeats: float = UNKNOWN
    same_as_prompt: float = UNKNOWN
    code: float = UNKNOWN
    consistency: float = UNKNOWN
    letter: float = UNKNOWN
    equations: float = UNKNOWN
    wrong: float = UNKNOWN
    unused: float = UNKNOWN
    used: float = UNKNOWN
    whole: float = UNKNOWN
    size: float = UNKNOWN
    partial: float = 0.0
    first_logprob: float = UNTOLD
    low_logprob: float = UNTOLD
    opens: float = UNKNOWN


_OWN = frozenset(Signals._fields) - {"final"}
"""Signals that an answer has by itself."""


# ── which columns ────────────────────────────────────────────────────────────


def names(stages: int, signals: Sequence[str] = SIGNALS) -> tuple[str, ...]:
    """The columns of ``numbers``: the signals of every stage, then those of two stages, then how many answered."""
    own = [f"{signal} {stage}" for stage in range(stages) for signal in signals if signal != PAIRED]
    pairs = [f"{PAIRED} {low} {high}" for low, high in _pairs(stages, signals)]
    return (*own, *pairs, "answers")


def _pairs(stages: int, signals: Sequence[str]) -> list[tuple[int, int]]:
    if PAIRED not in signals:
        return []
    return [(low, high) for low in range(stages) for high in range(low + 1, stages)]


def known_signals(signals: Any, what: str = "signals") -> tuple[str, ...]:
    """The list of signals of an artifact; raises ArtifactError that names ``what`` where it cannot be read."""
    if not isinstance(signals, list | tuple) or not signals or len(set(map(str, signals))) != len(signals):
        usual = ", ".join(SIGNALS)
        raise ArtifactError(f"{what} should be a list of different names, such as {usual}, not {signals!r}")
    for name in signals:
        if name not in ALL_SIGNALS:
            cure = nearest(str(name), ALL_SIGNALS)
            raise ArtifactError(f"{what}: this Stepladder reads no signal {name!r} of answers; {cure}; train it again")
    return tuple(signals)


def reads_logprobs(signals: Sequence[str]) -> bool:
    """True where one of the signals is taken from log probabilities."""
    return not LOGPROB_SIGNALS.isdisjoint(signals)


# ── reading ──────────────────────────────────────────────────────────────────


def answered(
    attempts: Sequence[Attempt],
    stages: Sequence[str],
    signals: Sequence[str] = SIGNALS,
    *,
    prompt: str | None = None,
) -> dict[int, Signals]:
    """Signals of the answers by number of their stage, each as ``read`` finds them.

    Attempts that failed, or have not ended (``is_partial``), and stages that are not on the ladder, count as if nobody
    had asked. Of several answers of one stage the last counts.
    """
    last = _last([each for each in attempts if not is_partial(each)], stages)
    return {stage: read(attempt, signals, prompt=prompt) for stage, attempt in last.items()}


def begun(
    attempts: Sequence[Attempt],
    stages: Sequence[str],
    signals: Sequence[str],
    chars_per_token: Sequence[float],
    *,
    prompt: str | None = None,
) -> dict[int, Signals]:
    """As ``answered``, but of a stage whose last attempt has not ended what there is of it counts.

    ``chars_per_token`` is of every stage: by it the tokens of an attempt are reckoned that nobody counted so far.
    """
    last = _last(attempts, stages)
    return {n: read(counted(each, chars_per_token[n]), signals, prompt=prompt) for n, each in last.items()}


def is_partial(attempt: Attempt) -> bool:
    """True of the beginning of an answer: nothing went wrong, and no reason is told why it ended."""
    return attempt.fault is None and attempt.finish_reason is None


def runs(attempts: Sequence[Attempt], stages: Sequence[str]) -> bool:
    """True where the last attempt of some stage has not ended: one that was followed by its whole answer is past."""
    return any(map(is_partial, attempts)) and any(map(is_partial, _last(attempts, stages).values()))


def own_tokens(attempt: Attempt) -> int:
    """The tokens of an answer. Several choices are counted together: of those the first one's, where the reply tells
    them, or as many as each has on average."""
    many = max(len(_choices(attempt.raw)), 1)
    if many == 1:
        return attempt.usage.output_tokens
    return len(_pieces(attempt.raw) or ()) or round(attempt.usage.output_tokens / many)


def _last(attempts: Sequence[Attempt], stages: Sequence[str]) -> dict[int, Attempt]:
    place = {stage: number for number, stage in enumerate(stages)}
    return {place[each.stage]: each for each in attempts if each.fault is None and each.stage in place}


def read(attempt: Attempt, signals: Sequence[str] = SIGNALS, *, prompt: str | None = None) -> Signals:
    """What an answer says by itself, and of MORE_SIGNALS those that ``signals`` names.

    No output tokens, like no log probabilities, means that nobody counted them. Of several choices, whose tokens are
    counted together, the mean counts. ``prompt`` is the question's text, None where it is not known.
    """
    text, count = attempt.text.rstrip()[-LONGEST:], own_tokens(attempt)
    final = final_answer(text)
    found = Signals(
        tokens=log1p(count) if count > 0 else UNKNOWN,
        logprob=_mean(attempt.logprobs),
        parsed=float(bool(final)),
        length=log1p(len(final)),
        cut=float(attempt.finish_reason == "length"),
        refusal=float(_refuses(attempt.text[:_OPENING])),
        final=normal(final),
        partial=float(is_partial(attempt)),
    )
    wanted = _OWN.intersection(signals).difference(SIGNALS)
    return found._replace(**_more(wanted, attempt, text, found.final, prompt)) if wanted else found


def _refuses(opening: str) -> bool:
    """Whether it reads like a refusal. Few answers say any of what every refusal says, which is quicker to look for."""
    if opening.isascii():
        plain = opening.lower()
        if not any(part in plain for part in _IN_REFUSALS):
            return False
    return _REFUSAL.search(opening) is not None


def _more(wanted: frozenset[str], attempt: Attempt, text: str, final: str, prompt: str | None) -> dict[str, Any]:
    """Those of MORE_SIGNALS that are wanted, of an attempt of which ``text`` is read."""
    told = attempt.logprobs if attempt.logprobs and _tells_tokens(attempt) else None
    found: dict[str, Any] = {} if told is None else {name: _LOGPROBS[name](told) for name in wanted & set(_LOGPROBS)}
    if "opens" in wanted:
        found["opens"] = float(_opening(attempt.text))
    if "digits" in wanted:
        found["digits"] = _digits(text)
    if "repeats" in wanted:
        found["repeats"] = _repeats(text)
    if "same_as_prompt" in wanted and prompt is not None:
        found["same_as_prompt"] = _overlap(attempt.text, prompt)
    if "code" in wanted:
        found["code"] = _code(attempt.text)
    if "consistency" in wanted:
        found["consistency"] = _consistency(final, attempt.raw)
    if not wanted.isdisjoint(Checked._fields) and prompt is not None and _HAS_DIGIT.search(text):
        found |= {name: value for name, value in checked(attempt.text, prompt)._asdict().items() if name in wanted}
    if "letter" in wanted:
        found["letter"] = float(_ALPHABET.find(final) + 1) if len(final) == 1 else 0.0
    return found


_LOGPROBS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min_logprob": lambda told: _mean((min(told),)),
    "tail_logprob": lambda told: _mean(told[-TAIL:]),
    "first_logprob": lambda told: _mean(told[:1]),
    "low_logprob": lambda told: _mean(sorted(told)[: -(-len(told) // LOW)]),
}


def without_logprobs(signals: Signals) -> Signals:
    """The signals of the same answer from a server that tells no log probabilities."""
    return signals._replace(**dict.fromkeys(LOGPROB_SIGNALS, UNTOLD))  # type: ignore[arg-type]


def _mean(told: Sequence[float] | None) -> float:
    mean = sum(told) / len(told) if told else UNTOLD
    return min(mean, 0.0) if told and isfinite(mean) else UNTOLD


def _tells_tokens(attempt: Attempt) -> bool:
    """True where log probabilities are the tokens' own: tables may hold the mean of them all in their place."""
    return attempt.logprobs is not None and (len(attempt.logprobs) > 1 or attempt.usage.output_tokens == 1)


def _digits(text: str) -> float:
    """Share of the characters that are 0 to 9."""
    data = text.encode("utf-8", "ignore")
    return (len(data) - len(data.translate(None, b"0123456789"))) / len(text) if text else 0.0


def _repeats(text: str) -> float:
    """Share of the lines, or of the four words in a row, that are there already: whichever is more."""
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    words = text[-LOOK:].split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(1 - len(set(each)) / len(each) if each else 0.0 for each in (lines, grams))


def _opening(text: str) -> int:
    """The place in OPENINGS of what an answer's first line begins with."""
    head = text[:_OPENING].lstrip()[:3]
    tests = (not head, head[:1].isdigit(), head[:1].isupper(), head[:1].isalpha(), head == "```")
    known = next((place for place, holds in enumerate(tests) if holds), None)
    if known is not None:
        return known
    return 5 if head[0] in "#-*•|>" else 6 if head[0] in "([{<\\$" else 7


def _overlap(text: str, prompt: str) -> float:
    """Share of the different words at an answer's beginning that stand at the prompt's end."""
    mine = set(text[:LOOK].casefold().split())
    return len(mine.intersection(prompt[-LOOK:].casefold().split())) / len(mine) if mine else 0.0


def _code(text: str) -> float:
    """1 where an answer's Python can be parsed, 0 where not, UNKNOWN where there is none, or too much of it."""
    source = _python(text)
    if source is None or len(source) > LONGEST_CODE:
        return UNKNOWN
    source = _GLUED.sub(r"\g<0> ", _ESCAPE.sub("_", source))  # what Python would warn of, to whoever asked us
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets within brackets
        return 0.0
    return 1.0


def _python(text: str) -> str | None:
    """The first fenced block of an answer, or all of an answer that begins like Python; None where neither is seen."""
    _, fence, rest = text[:LONGEST].partition("```")
    if not fence:
        return text if _BARE_CODE.match(text) else None
    tag, _, rest = rest.partition("\n")
    source, closed, _ = rest.partition("```")
    language = tag.split(maxsplit=1)[0].casefold() if tag.strip() else ""
    is_whole = bool(closed) or len(text) <= LONGEST
    return source if is_whole and language in _PYTHON else None


def _consistency(final: str, raw: Mapping[str, Any] | None) -> float:
    """Share of a reply's further choices whose final answer is the first one's. Nothing is consistent with nothing.

    Self-consistency: Wang et al., arXiv 2203.11171.
    """
    choices = _choices(raw)
    if len(choices) < 2:
        return UNKNOWN
    others = [normal(final_answer(_said(each))) for each in choices if not _is_first(each)]
    return sum(bool(final) and other == final for other in others) / len(others) if others else UNKNOWN


def _choices(raw: Mapping[str, Any] | None) -> list[Any]:
    """The choices of a wire reply, whose usage is that of all; none where it does not tell."""
    choices = None if raw is None else raw.get("choices")
    return choices if isinstance(choices, list) else []


def _is_first(choice: Any) -> bool:
    return isinstance(choice, Mapping) and choice.get("index", 0) == 0


def _said(choice: Any) -> str:
    if not isinstance(choice, Mapping):
        return ""
    message = choice.get("message")
    found = message_text(message) if isinstance(message, Mapping) else choice.get("text")
    return found if isinstance(found, str) else ""


# ── the beginning of an answer ───────────────────────────────────────────────


def chars_of(value: Any, what: str, stages: int) -> tuple[float, ...]:
    """The characters of a token of every stage, of an artifact; raises ArtifactError that names ``what``."""
    return numbers_of(value, what, stages, low=FEWEST_CHARS, high=MOST_CHARS)


def band(found: Mapping[int, Signals]) -> int:
    """A number below BANDS for how many tokens an answer has of which the end is not told: 1, 2 to 3, 4 to 7 …

    Of several such answers the shortest counts.
    """
    tokens = min((told.tokens for told in found.values() if told.partial), default=0.0)
    return min(max(int(log2(max(expm1(tokens), 1.0) + 0.5)), 0), BANDS - 1)


def cut_to(attempt: Attempt, tokens: int, chars_per_token: float = CHARS_PER_TOKEN) -> Attempt:
    """The attempt as it stood after so many tokens, at least 1: a partial one; itself where it has no more.

    Nothing of what is cut off can be read from it. Where the wire reply tells the tokens, the text is theirs; else
    each is taken to have ``chars_per_token`` characters, which has to be a mean over answers: this answer's own would
    tell how long it is going to be. A mean log probability of the whole answer is left out, and so are seconds and
    cost. An answer whose tokens nobody counted is not cut.
    """
    if tokens < 1:
        raise ValueError(f"an answer has no {tokens} tokens: read 1 at the least")
    if own_tokens(attempt) <= tokens:
        return attempt
    pieces = _pieces(attempt.raw)
    text = attempt.text[: ceil(tokens * chars_per_token)] if pieces is None else "".join(pieces[:tokens])
    return _unended(attempt, text, tokens)


def unended(attempt: Attempt) -> Attempt:
    """All of an answer's tokens, its end not yet told."""
    return _unended(attempt, attempt.text, own_tokens(attempt))


def _unended(attempt: Attempt, text: str, tokens: int) -> Attempt:
    told = attempt.logprobs[:tokens] if attempt.logprobs and _tells_tokens(attempt) else None
    usage = Usage(attempt.usage.prompt_tokens, tokens)
    return Attempt(attempt.stage, text, usage, first_token_s=attempt.first_token_s, logprobs=told)


def counted(attempt: Attempt, chars_per_token: float) -> Attempt:
    """A partial attempt with its tokens so far: as told, else one for each log probability, else by its length."""
    if not is_partial(attempt) or attempt.usage.output_tokens > 0:
        return attempt
    told = len(attempt.logprobs or ())
    tokens = told if told > 1 else ceil(len(attempt.text) / chars_per_token)
    return replace(attempt, usage=replace(attempt.usage, output_tokens=tokens))


def _pieces(raw: Mapping[str, Any] | None) -> list[str] | None:
    """The tokens of a wire reply's first choice, in the chat shape (content[]) or the older one; None if not told."""
    first = next(filter(_is_first, _choices(raw)), None)
    told = None if first is None else first.get("logprobs")
    if not isinstance(told, Mapping):
        return None
    found = told.get("tokens")
    if isinstance(told.get("content"), list):
        found = [each.get("token") if isinstance(each, Mapping) else None for each in told["content"]]
    if not isinstance(found, list) or not found or not all(isinstance(piece, str) for piece in found):
        return None
    return found


# ── columns ──────────────────────────────────────────────────────────────────


def numbers(found: Mapping[int, Signals], stages: int, signals: Sequence[str] = SIGNALS) -> list[float]:
    """One value for each of ``names(stages, signals)``. ``found`` maps a stage's number to its answer's signals."""
    own = [signal for signal in signals if signal != PAIRED]
    absent = [_absent(name) for name in own] if len(found) < stages else []
    line: list[float] = []
    for stage in range(stages):
        told = found.get(stage)
        line += absent if told is None else [_value(name, stage, told, found) for name in own]
    line += [_same(found.get(low), found.get(high)) for low, high in _pairs(stages, signals)]
    return [*line, float(len(found))]


def _absent(name: str) -> float:
    """The value of a signal where the stage did not answer."""
    if name == "answered":
        return 0.0
    return UNTOLD if name in LOGPROB_SIGNALS else UNKNOWN


def _value(name: str, stage: int, told: Signals, found: Mapping[int, Signals]) -> float:
    if name == "answered":
        return 1.0
    value: float = _agreement(stage, found) if name == "agreement" else getattr(told, name)
    return value


def _same(low: Signals | None, high: Signals | None) -> float:
    """Whether two stages came to the same; UNKNOWN where not both answered. Nothing is the same as nothing."""
    if low is None or high is None:
        return UNKNOWN
    return float(bool(low.final) and low.final == high.final)


def _agreement(stage: int, found: Mapping[int, Signals]) -> float:
    """Share of the other answers that are the same, UNKNOWN where there is no other. Nothing agrees with nothing."""
    if len(found) < 2:
        return UNKNOWN
    mine = found[stage].final
    same = sum(bool(mine) and other.final == mine for number, other in found.items() if number != stage)
    return same / (len(found) - 1)


def final_answer(text: str) -> str:
    """The last line that is not empty, where answers usually put what they came to."""
    lines = text.rstrip()[-LONGEST:].splitlines()
    return lines[-1].strip()[-LONGEST_FINAL:] if lines else ""


def normal(final: str) -> str:
    """A final answer as it is compared: what follows "answer is" or the last "=", in small letters, without the spaces,
    thousands commas, quotes and stops that say nothing."""
    plain = " ".join(final.casefold().split())
    stated = _STATED.search(plain)
    plain = (stated[1] if stated else plain).rpartition("=")[2]
    return _THOUSANDS.sub("", plain.strip(_EDGES))
