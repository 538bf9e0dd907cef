"""Where each conversation was answered last, so that a follow-up need not bounce between stages."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from stepladder.types import Attempt, Request, message_text

MOST = 10_000
TTL_S = 1800.0
"""Beyond this a server has hardly kept what it read of a conversation."""


class Conversations:
    """Remembers, for ``most`` conversations and ``ttl_s`` seconds after the last answer, the stage that gave it.

    A request goes on with a conversation that its ``dials.session`` names, or else with the one whose messages stand in
    it up to the last of an assistant's, by roles and texts. What is kept of those is a hash. Callers that have names
    are kept apart. ``clock`` gives monotonic seconds.
    """

    def __init__(self, *, most: int = MOST, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.stayed = self.switched = 0
        self._most = most
        self._ttl_s = ttl_s
        self._clock = clock
        self._stages: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stages)

    def open(self, request: Request) -> Conversation:
        """The conversation of a request, with the stage that answered last in it, where one is remembered."""
        state = hashlib.blake2b(digest_size=16)
        _feed(state, "caller", request.caller or "")
        if request.dials.session is not None:
            _feed(state, "session", request.dials.session)
            return Conversation(self, self._find(state.digest()), state, is_session=True)
        home, last = None, _last_answer(request)
        for place, message in enumerate(request.messages):
            _feed(state, str(message.get("role", "")), message_text(message))
            if place == last:
                home = self._find(state.digest())
        return Conversation(self, home, None if request.prompt is not None else state)

    def remember(self, key: bytes, stage: str) -> None:
        """The newest answer of a conversation came from this stage."""
        now = self._clock()
        self._stages[key] = (stage, now + self._ttl_s)
        self._stages.move_to_end(key)
        while self._stages and (len(self._stages) > self._most or next(iter(self._stages.values()))[1] <= now):
            self._stages.popitem(last=False)

    def _find(self, key: bytes) -> str | None:
        found = self._stages.get(key)
        return None if found is None or found[1] <= self._clock() else found[0]


class Conversation:
    """One request's place in its conversation. ``home`` is the stage that answered last, None where none is known."""

    __slots__ = ("_all", "_is_session", "_state", "home")

    def __init__(
        self, all_: Conversations, home: str | None, state: hashlib.blake2b | None, *, is_session: bool = False
    ) -> None:
        self.home = home
        self._all = all_
        self._state = state
        self._is_session = is_session

    def answered(self, attempt: Attempt) -> None:
        """This attempt is what the caller got."""
        if self.home is not None:
            self._all.stayed += attempt.stage == self.home
            self._all.switched += attempt.stage != self.home
        if self._state is None:  # a raw prompt without a session's name: what follows it would not show that it does
            return
        if not self._is_session:
            _feed(self._state, "assistant", attempt.text)
        self._all.remember(self._state.digest(), attempt.stage)


def _last_answer(request: Request) -> int | None:
    for place in range(len(request.messages) - 1, -1, -1):
        if request.messages[place].get("role") == "assistant":
            return place
    return None


def _feed(state: hashlib.blake2b, role: str, text: str) -> None:
    """Edges are trimmed, as many clients do; lengths keep two messages from reading as one."""
    told = text.strip().encode("utf-8", "surrogatepass")
    state.update(f"{role}:{len(told)}:".encode("utf-8", "surrogatepass"))
    state.update(told)
