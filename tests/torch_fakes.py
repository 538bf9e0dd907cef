"""Models that say what a test tells them to, behind the real ``torch`` engine."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder import config
from stepladder.decoding.loading import Loaded, Wanted
from stepladder.decoding.memory import Need
from stepladder.decoding.models import Feed
from stepladder.decoding.tokenizer import Tokenizer
from stepladder.engines import torch_models
from stepladder.engines.torch import TorchEngine
from stepladder.errors import EngineError
from stepladder.types import Attempt, Delta, Dials, EngineEvent, Request, Stage
from tiny_models import SPECIALS, letters

NANO = config.PRESETS / "nano"
END, ASSISTANT = SPECIALS.index("<|end|>"), SPECIALS.index("<|assistant|>")
VOCAB = len(SPECIALS) + 256
LETTERS = letters()

Say = Callable[[Sequence[int]], int]


def codes(text: str) -> list[int]:
    """Tokens of a text: one a byte."""
    return LETTERS.encode(text)


def answers(text: str, *, end: bool = True) -> Say:
    """Says this text behind the last place where the assistant is to speak, then the end, and then all that again."""
    told = [*codes(text), *([END] if end else [])]

    def say(tokens: Sequence[int]) -> int:
        if ASSISTANT not in tokens:
            return END
        began = len(tokens) - 1 - list(reversed(tokens)).index(ASSISTANT)
        place = len(tokens) - 1 - began
        return told[place % len(told)]

    return say


class FakeModel:
    """Keeps rows of tokens as a ``LanguageModel`` keeps keys and values, and is as strict about what it is fed.

    ``logits`` of the token that ``say`` tells are ``sure``, of all others 0. ``fail`` is raised by the pass after it
    was set. Every pass waits for ``gate`` to be set.
    """

    def __init__(
        self,
        say: Say | str,
        *,
        name: str = "fake",
        context: int = 256,
        slots: int = 8,
        parameters: int = 100,
        sure: float = 30.0,
        vocab: int = VOCAB,
    ) -> None:
        self.say = answers(say) if isinstance(say, str) else say
        self.name, self.context, self.slots, self.parameters = name, context, slots, parameters
        self.vocab, self.sure = vocab, sure
        self.device = torch.device("cpu")
        self.rows: dict[int, list[int]] = {}
        self.widths: list[list[int]] = []
        self.most_open = 0
        self.fail: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.wait_s = 0.0

    def narrow_seconds(self, width: int, slot: int) -> None:
        """Nothing is captured."""

    def limit_vocab(self, size: int) -> None:
        assert 0 < size <= self.vocab
        self.vocab = size

    def open(self) -> int:
        free = [slot for slot in range(self.slots) if slot not in self.rows]
        if not free:
            raise EngineError(f"model '{self.name}': all {self.slots} cache rows are taken")
        self.rows[free[0]] = []
        self.most_open = max(self.most_open, len(self.rows))
        return free[0]

    def close(self, slot: int) -> None:
        del self.rows[slot]

    def forward(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        assert self.gate.wait(20)
        time.sleep(self.wait_s)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        assert len({feed.slot for feed in feeds}) == len(feeds)
        self.widths.append([len(feed.tokens) for feed in feeds])
        return [self._read(feed) for feed in feeds]

    def _read(self, feed: Feed) -> torch.Tensor:
        row = self.rows[feed.slot]
        assert 0 <= feed.start <= len(row), "a hole in the cache"
        assert feed.tokens
        assert 0 <= feed.want <= len(feed.tokens)
        row[feed.start :] = feed.tokens
        assert len(row) <= self.context, "beyond the context"
        assert max(row) < self.vocab
        logits = torch.zeros(feed.want, self.vocab)
        for place in range(feed.want):
            logits[place, self.say(row[: len(row) - feed.want + place + 1])] = self.sure
        return logits


def ask(text: str = "hi", *, lam: float | None = None, **params: Any) -> Request:
    """A chat request, greedy unless told otherwise."""
    return Request("r", ({"role": "user", "content": text},), params={"temperature": 0, **params}, dials=Dials(lam=lam))


def stage(name: str, *, cost: float | None = None, context: int | None = None, **options: Any) -> Stage:
    """A stage whose model is called like it."""
    can = frozenset({"stream", "logprobs"})
    return Stage(name, "torch", name, cost=cost, context=context, capabilities=can, options=options)


def nano(name: str, *, context: int | None = 128, **options: Any) -> Stage:
    """A stage of the embedded ladder's weights."""
    can = frozenset({"stream", "logprobs"})
    model = str(Path(NANO / f"nano-{name}.gguf"))
    return Stage(name, "torch", model, context=context, capabilities=can, options=options)


def instead_of_files(
    monkeypatch: pytest.MonkeyPatch,
    models: Mapping[str, FakeModel],
    tokenizers: Mapping[str, Tokenizer] | None = None,
) -> None:
    """Have the engine be given these models, by stage.model, where it would load files."""

    monkeypatch.setattr(torch_models, "look", lambda wanted: Head(wanted, models, tokenizers or {}))


@dataclass
class Head:
    """What a look at a model's files would have found."""

    wanted: Wanted
    models: Mapping[str, FakeModel]
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    need: Need = field(default_factory=lambda: Need(0, 0))
    device: str = "cpu"

    def load(self, **_: Any) -> Loaded:
        model = self.models[self.wanted.source]
        model.name, model.slots = self.wanted.name, self.wanted.slots
        model.context = self.wanted.context or model.context
        return Loaded(model, self.tokenizers.get(self.wanted.source, LETTERS))  # type: ignore[arg-type]


@asynccontextmanager
async def running(*stages: Stage, **settings: Any) -> AsyncGenerator[TorchEngine, None]:
    """A started engine, closed in the end; its models are hardly timed."""
    engine = TorchEngine(stages, **{"trial_s": 0.0, **settings})
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def collect(engine: TorchEngine, where: Stage, asked: Request, draft: Attempt | None = None) -> list[EngineEvent]:
    """All events of one call."""
    async with aclosing(engine.generate(asked, where, draft)) as events:
        return [event async for event in events]


async def attempt(engine: TorchEngine, where: Stage, asked: Request, draft: Attempt | None = None) -> Attempt:
    """The attempt that ends a call."""
    *deltas, last = await collect(engine, where, asked, draft)
    assert isinstance(last, Attempt)
    assert all(isinstance(delta, Delta) for delta in deltas)
    return last
