"""One answer on its way, and what a chain asks of a stage about it."""

from __future__ import annotations

from dataclasses import dataclass, field


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

    The answer is a tensor of shape (want, vocabulary).
    """

    stage: int
    sequence: Sequence
    want: int

    @property
    def start(self) -> int:
        """Position of the first token that the stage has to read: the last ``want`` are read in any case."""
        return min(self.sequence.read.get(self.stage, 0), len(self.sequence.tokens) - self.want)
