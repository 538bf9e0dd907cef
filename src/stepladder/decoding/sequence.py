"""One answer on its way, and what a chain asks of a stage about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stepladder.decoding.laws import Sampling


@dataclass(slots=True)
class Sequence:
    """The tokens of a prompt and of the answer behind it: those kept, then those that are only drafted so far.

    ``read`` tells for every stage how many of the leading tokens stand in its cache. Taking tokens back lowers it, so
    a stage that was not asked for a while reads what it missed with its next pass, and nothing that was taken back.
    ``slots`` are the cache rows that the answer holds, by stage.
    """

    tokens: list[int]
    prompt: int = -1
    read: dict[int, int] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt < 0:
            self.prompt = len(self.tokens)

    def append(self, token: int) -> None:
        """One more token at the end, which no stage has read."""
        self.tokens.append(token)

    def truncate(self, length: int) -> None:
        """Take back all tokens from position ``length`` on."""
        del self.tokens[length:]
        for stage, read in self.read.items():
            if read > length:
                self.read[stage] = length


@dataclass(frozen=True, slots=True)
class Ask:
    """A stage is to read the sequence to its end and tell the logits after each of its last ``want`` tokens.

    The answer is a tensor of shape (want, vocabulary). ``behind``: so many of the last tokens are left unread.
    ``rough``: as in ``models.Feed``.
    """

    stage: int
    sequence: Sequence
    want: int
    behind: int = 0
    rough: bool = False

    @property
    def start(self) -> int:
        """Position of the first token that the stage has to read: the last ``want`` are read in any case."""
        return min(self.sequence.read.get(self.stage, 0), self.end - self.want)

    @property
    def end(self) -> int:
        """Position behind the last token that it has to read."""
        return len(self.sequence.tokens) - self.behind


@dataclass(frozen=True, slots=True)
class RoundAsk:
    """A whole round of the stages ``chain``, bottom first, on their device, with drafts of ``lengths`` or those given.

    The answer is a ``rounds.Wrote``, and its tokens stand in the sequence.
    """

    chain: tuple[int, ...]
    lengths: tuple[int, ...]
    sequence: Sequence
    sampling: Sampling
    chance: Callable[[], float]
    given: tuple[int, ...] = ()

    @property
    def stage(self) -> int:
        """The answering stage."""
        return self.chain[-1]

    @property
    def kind(self) -> tuple[object, ...]:
        """Rounds alike in this may be run as one."""
        return self.chain, self.lengths, self.sampling.kind
