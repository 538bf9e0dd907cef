"""What of the planning of speculation is set, and what is left to measurement."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stepladder.decoding.acceptance import NGRAM
from stepladder.decoding.planning import LONGEST
from stepladder.errors import ConfigError, Problem

Mode = Literal["auto", "off", "chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSettings:
    """What is left to measurement and what is set.

    ``mode``: "off" decodes plainly; "chain" runs ``chain`` (drafters bottom first, answering stage last; another
    answering stage runs with those of its drafters that are below it), with ``lengths`` where they are given and
    fitted ones where not; "auto" chooses. ``longest``: longest draft. ``ngram``: may "auto" draft by n-grams.
    ``stopping``: "marginal" ends drafts by confidence, "fixed" drafts what was planned. ``probe_share``: part of the
    time that trials may cost. ``margin``: least forecast gain for another chain.

    Raises ConfigError, listing everything that is wrong.
    """

    mode: Mode = "auto"
    chain: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    longest: int = LONGEST
    ngram: bool = True
    stopping: Literal["marginal", "fixed"] = "marginal"
    probe_share: float = 0.02
    margin: float = 0.03

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError("speculation", problems)


def _problems(settings: PlannerSettings) -> list[Problem]:
    found: list[Problem] = []
    if settings.mode not in {"auto", "off", "chain"}:
        found.append(Problem("mode", f"should be 'auto', 'off' or 'chain', not '{settings.mode}'"))
    if settings.stopping not in {"marginal", "fixed"}:
        found.append(Problem("stopping", f"should be 'marginal' or 'fixed', not '{settings.stopping}'"))
    if not 1 <= settings.longest <= 64:
        found.append(Problem("longest", f"should be from 1 to 64 tokens, not {settings.longest}"))
    if not 0.0 <= settings.probe_share <= 0.5:
        found.append(Problem("probe_share", f"should be a share from 0 to 0.5, not {settings.probe_share}"))
    if not 0.0 <= settings.margin < 1.0:
        found.append(Problem("margin", f"should be a share from 0 up to 1, not {settings.margin}"))
    return found + _chain_problems(settings)


def _chain_problems(settings: PlannerSettings) -> list[Problem]:
    found: list[Problem] = []
    chain, lengths = settings.chain, settings.lengths
    if settings.mode == "chain" and len(chain) < 2:
        found.append(Problem("chain", f"should name at least a drafter and an answering stage, not {list(chain)}"))
    if any(low >= high for low, high in pairwise(chain)) or any(link < NGRAM for link in chain):
        found.append(Problem("chain", f"should go from the cheapest up, each stage once, not {list(chain)}"))
    if lengths and len(lengths) != max(0, len(chain) - 1):
        found.append(
            Problem("lengths", f"should be one for each drafter ({max(0, len(chain) - 1)}), not {len(lengths)}")
        )
    if any(not 1 <= length <= settings.longest for length in lengths):
        found.append(Problem("lengths", f"should be from 1 to {settings.longest} tokens each, not {list(lengths)}"))
    return found
