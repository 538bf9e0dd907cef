"""What a private store keeps of a trace: every number, and no word of the prompt, the answers or the errors.

Refused by default: a string value that is not known here for the ladder's own (a stage, a kind of fault, a version) is
veiled, so that a field which comes later is private until somebody says otherwise. Two limits: names that the operator
gave (stages, callers) stay, and so does what a policy of somebody else's writes into the reason of a decision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from stepladder.errors import TraceError
from stepladder.traces.codec import PRIVATE_SCHEMA
from stepladder.types import Mode, StreamMode

Prompts = Literal["full", "hash", "omit"]
OMITTED = "(omitted)"
SALT_BYTES = 32
_HASH_BYTES = 16

_NAMES = frozenset({"caller", "id", "ladder", "only", "policy", "stage", "stages"})
_KINDS = frozenset({"cost_unit", "draft", "kind", "needs", "reason", "stop"})
_VERSIONS = frozenset({"artifact", "code", "config", "prices"})
_SPECULATION = frozenset({"call", "chain", "drafter", "target"})
_OWN = _NAMES | _KINDS | _VERSIONS | _SPECULATION
"""Fields whose strings are the ladder's own, or names that its operator gave."""

_BOUND = frozenset({"finish_reason", "max_stage", "min_stage", "mode", "stream_mode"})
"""Fields whose strings are the ladder's own only where they are words that it knows: a wrong one is the caller's."""

_WORDS = frozenset(
    {*get_args(Mode), *get_args(StreamMode), "stop", "length", "tool_calls", "function_call", "content_filter"}
)
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_PARAMS = frozenset(
    {
        *("best_of", "echo", "frequency_penalty", "logprobs", "max_completion_tokens", "max_tokens", "n"),
        *("parallel_tool_calls", "presence_penalty", "seed", "stream", "temperature", "top_logprobs", "top_p"),
    }
)
"""Parameters that are kept where they are numbers or flags; also the names of others are the caller's words."""

_NOTE = re.compile(r"[A-Za-z][A-Za-z_-]{0,23}")


@dataclass(frozen=True, slots=True)
class Veil:
    """Puts something in the place of a text: its keyed hash, or a mark that there was one.

    Equal texts have equal hashes under one ``key``; without the key nobody can try texts against them.
    """

    prompts: Literal["hash", "omit"]
    key: bytes = field(default=b"", repr=False)

    def text(self, text: str) -> str:
        """What is kept of a text; of an empty one that it is empty, which policies go by."""
        if not text or self.prompts == "omit":
            return OMITTED if text else ""
        return "hash:" + blake2b(text.encode("utf-8", "replace"), key=self.key, digest_size=_HASH_BYTES).hexdigest()

    def comment(self, text: str | None) -> str | None:
        """What is kept of a comment on an answer, which may repeat it."""
        return None if text is None or self.prompts == "omit" else self.text(text)


def veiled(body: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    """An encoded trace (``codec.encode``) without any text of the caller's or the models'.

    Messages keep their roles, parameters those that are numbers. Texts that were not empty stay so.
    """
    words = _WORDS | frozenset(body["stages"])
    found = _Walk(veil, words).fields(body)
    return {**found, "schema": PRIVATE_SCHEMA, "private": veil.prompts}


@dataclass(frozen=True, slots=True)
class _Walk:
    veil: Veil
    words: frozenset[str]

    def fields(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.value(name, value) for name, value in body.items()}

    def value(self, name: str, value: Any) -> Any:
        special = _SPECIAL.get(name)
        if special is not None and value is not None:
            return special(self, value)
        if isinstance(value, str):
            return self.word(name, value)
        if isinstance(value, Mapping):
            return self.fields(value)
        if isinstance(value, list | tuple):
            return [self.value(name, each) for each in value]
        return value

    def word(self, name: str, value: str) -> str:
        kept = name in _OWN or (name in _BOUND and value in self.words)
        return value if kept else self.veil.text(value)

    def messages(self, messages: Any) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        role, content = message.get("role"), message.get("content")
        if content is not None and not isinstance(content, str):
            content = orjson.dumps(content, default=dict, option=orjson.OPT_SORT_KEYS).decode()
        said = None if content is None else self.veil.text(content)
        return {"role": role if role in _ROLES else "other", "content": said}

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value for name, value in params.items() if name in _PARAMS and isinstance(value, bool | int | float)
        }

    def notes(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._note(value) for name, value in notes.items()}

    def _note(self, note: Any) -> Any:
        kept = not isinstance(note, str) or _NOTE.fullmatch(note)  # a class's name, not a sentence of the prompt's
        return note if kept else self.veil.text(note)

    def fallback(self, fallback: Mapping[str, Any]) -> dict[str, Any]:
        return {"stage": fallback["stage"], "reason": self.veil.text(fallback["reason"])}

    def steps(self, steps: Any) -> list[dict[str, Any]]:
        return [self._step(step) for step in steps]

    def _step(self, step: Mapping[str, Any]) -> dict[str, Any]:
        found = self.fields(step)
        if "fail" in step["action"] or step.get("fallback") is not None:  # the reason repeats an error's text
            found["reason"] = self.veil.text(step["reason"])
        return found


_SPECIAL: Mapping[str, Callable[[_Walk, Any], Any]] = {
    "fallback": _Walk.fallback,
    "messages": _Walk.messages,
    "notes": _Walk.notes,
    "params": _Walk.params,
    "steps": _Walk.steps,
}


# ── the salt ─────────────────────────────────────────────────────────────────


def salt_beside(path: Path, chance: Callable[[int], bytes] = os.urandom) -> bytes:
    """The key of the store's hashes, from ``PATH.salt``; drawn once and readable by its owner alone.

    Raises TraceError where it cannot be made or read, or is no salt.
    """
    place = path.with_name(path.name + ".salt")
    try:
        with suppress(FileExistsError):
            _write_salt(place, chance(SALT_BYTES))
        salt = bytes.fromhex(place.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise TraceError(f"traces.prompts: the salt '{place}' cannot be used: {error}") from error
    if len(salt) != SALT_BYTES:
        raise TraceError(
            f"traces.prompts: '{place}' holds no salt of {SALT_BYTES} bytes; with another, equal prompts differ"
        )
    return salt


def _write_salt(place: Path, salt: bytes) -> None:
    """Raises FileExistsError where there is one already: two processes that start at once use the same."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = place.with_name(f"{place.name}-{os.getpid()}")
    made.unlink(missing_ok=True)
    handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(salt.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(made, place)  # all of it or nothing, and never over another
    finally:
        made.unlink()
