"""The loop over rounds: from a prompt to the end of an answer, whatever chain each round runs with."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from stepladder.decoding.chain import Emitted, Run
from stepladder.decoding.sequence import Ask, RoundAsk


class Chain(Protocol):
    """What writes a round: a ``chain.Verifier``, pass by pass, or a ``rounds.DeviceRound``."""

    def round(self, run: Run, most: int) -> Generator[Ask | RoundAsk, Any, list[Emitted]]:
        """At least one token, at most ``most``, appended to the answer."""
        ...


def decode(
    run: Run, chain: Callable[[], Chain], most: int, keep: Callable[[list[Emitted]], bool]
) -> Generator[Ask | RoundAsk, Any, str]:
    """Rounds until an end: returns "stop" behind a token that ends the answer or where ``keep`` says so, or "length".

    ``chain`` gives the chain for the next round; ``keep`` is told what a round wrote and returns True to stop there.
    At most ``most`` tokens are written.
    """
    left = most
    while left > 0:
        wrote = yield from chain().round(run, left)
        left -= len(wrote)
        over = keep(wrote) or wrote[-1].token in run.ends
        del wrote  # its laws and logits need not outlive the next pass
        if over:
            return "stop"
    return "length"
