"""Gateway keys: how one is made, what is kept of it, and the file that keeps it.

A key is ``sl-ID-SECRET``. The id is public: it finds the entry. Of the whole key only its hash is kept. The file is
TOML for people to read and to change by hand; the verbs only add to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stepladder.config import problem
from stepladder.errors import ConfigError, Problem, UsageError, nearest
from stepladder.files import replace_file
from stepladder.gateway.limits import BUDGET_PERIODS, RATE_PERIODS, Quota, read_quota
from stepladder.types import Mode

PREFIX = "sl"
_PREFIX = PREFIX.encode()
ID_BYTES = 6
SECRET_BYTES = 32
FILE_MODE = 0o600
HEAD = "# Keys of the gateway. Limits may be changed by hand; a running gateway takes them over within a second.\n"

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a key allows; None is no bound. ``max_cost`` and ``budget`` are in the ladder's cost unit."""

    lambda_min: float | None = None
    lambda_max: float | None = None
    stages: tuple[str, ...] | None = None
    modes: tuple[Mode, ...] | None = None
    max_cost: float | None = None
    budget: Quota | None = None
    rate: Quota | None = None
    concurrent: int | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of one key; ``expires_at`` is in seconds since the epoch."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    expires_at: float | None = None
    revoked: bool = False
    rules: Rules = Rules()

    def is_good(self, now: float) -> bool:
        """True where it is neither revoked nor expired."""
        return not self.revoked and (self.expires_at is None or now < self.expires_at)


def new_secret(chance: Callable[[int], bytes] = os.urandom) -> tuple[str, str]:
    """(id, key): the key is shown to its owner once and kept nowhere."""
    made = chance(ID_BYTES).hex()
    secret = urlsafe_b64encode(chance(SECRET_BYTES)).rstrip(b"=").decode()
    return made, f"{PREFIX}-{made}-{secret}"


def id_of(key: bytes) -> str:
    """The public id within a key, empty where it has not the form of one."""
    parts = key.split(b"-", 2)
    return parts[1].decode("latin-1") if len(parts) == 3 and parts[0] == _PREFIX else ""


def digest_of(key: bytes) -> bytes:
    """What is kept of a key. A slow hash guards words that people choose; nobody can try out 256 bits of chance."""
    return hashlib.sha256(key).digest()


# ── the file ─────────────────────────────────────────────────────────────────


class Entry(BaseModel):
    """One ``[[keys]]`` as it stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * ID_BYTES}}}$")]
    name: Annotated[str, Field(pattern=NAME)]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", repr=False)]
    created: datetime | date | None = None
    expires: datetime | date | None = None
    revoked: datetime | date | None = None
    lambda_min: NonNegative | None = None
    lambda_max: NonNegative | None = None
    stages: Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)] = None
    modes: Annotated[tuple[Mode, ...] | None, Field(strict=False, min_length=1)] = None
    max_cost: Positive | None = None
    budget: str | None = None
    rate: str | None = None
    concurrent: Annotated[int, Field(gt=0)] | None = None
    admin: bool = False

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str | None) -> str | None:
        return None if text is None else str(read_quota(text, BUDGET_PERIODS))

    @field_validator("rate")
    @classmethod
    def _rate(cls, text: str | None) -> str | None:
        return None if text is None else str(read_quota(text, RATE_PERIODS))

    @model_validator(mode="after")
    def _bounds(self) -> Entry:
        if self.lambda_min is not None and self.lambda_max is not None and self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min {self.lambda_min:g} is above lambda_max {self.lambda_max:g}")
        return self

    @property
    def key(self) -> Key:
        """The entry as the gateway uses it."""
        rules = Rules(
            lambda_min=self.lambda_min,
            lambda_max=self.lambda_max,
            stages=self.stages,
            modes=self.modes,
            max_cost=self.max_cost,
            budget=None if self.budget is None else read_quota(self.budget, BUDGET_PERIODS),
            rate=None if self.rate is None else read_quota(self.rate, RATE_PERIODS),
            concurrent=self.concurrent,
            admin=self.admin,
        )
        digest = bytes.fromhex(self.hash.removeprefix("sha256:"))
        expires = None if self.expires is None else moment(self.expires)
        return Key(self.id, self.name, digest, expires, self.revoked is not None, rules)


def moment(value: datetime | date) -> float:
    """Seconds since the epoch; a date means its first moment, and what names no zone is UTC."""
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def read_keys(path: Path) -> tuple[Entry, ...]:
    """Every key in a file. Raises ConfigError with all that is wrong, by key and line."""
    try:
        return parse_keys(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        told = f"cannot be read: {error}; 'stepladder keys new' makes one"
        raise ConfigError(str(path), [Problem("file", told)]) from error


def parse_keys(text: str, source: str) -> tuple[Entry, ...]:
    """The same from a text."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(source, [Problem("file", f"is no valid TOML: {error}")]) from error
    listed = tree.get("keys", [])
    wrong = [problem((key,), "unknown key; valid: keys", text) for key in tree if key != "keys"]
    if not isinstance(listed, list):
        wrong.append(problem(("keys",), "should be a list: begin each key with [[keys]], in double brackets", text))
    if wrong:
        raise ConfigError(source, wrong)
    entries = [_entry(index, each, text, wrong) for index, each in enumerate(listed)]
    found = tuple(entry for entry in entries if entry is not None)
    wrong += _used_twice(found, text)
    if wrong:
        raise ConfigError(source, wrong)
    return found


def _entry(index: int, raw: Any, text: str, wrong: list[Problem]) -> Entry | None:
    try:
        return Entry.model_validate(raw)
    except ValidationError as error:
        wrong += [_told(("keys", index, *each["loc"]), dict(each), text) for each in error.errors()]
        return None


def _told(place: tuple[str | int, ...], detail: Mapping[str, Any], text: str) -> Problem:
    """What is wrong with one field; the values are not repeated, since somebody may have put the key itself there."""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"unknown key; {nearest(str(place[-1]), tuple(Entry.model_fields))}"
    return problem(place[:3], message, text)


def _used_twice(entries: tuple[Entry, ...], text: str) -> list[Problem]:
    """Ids must differ, and names of keys that are not revoked: callers are told apart by name in traces and budgets."""
    wrong, ids, names = [], set[str](), set[str]()
    for index, entry in enumerate(entries):
        if entry.id in ids:
            wrong.append(problem(("keys", index, "id"), f"'{entry.id}' stands here twice", text))
        if entry.revoked is None and entry.name in names:
            wrong.append(problem(("keys", index, "name"), f"'{entry.name}' names two keys in force", text))
        ids.add(entry.id)
        names |= {entry.name} if entry.revoked is None else set()
    return wrong


# ── adding to it ─────────────────────────────────────────────────────────────


def add_key(path: Path, name: str, limits: Mapping[str, Any], *, now: float, chance: Callable[[int], bytes]) -> str:
    """Put a new key into the file, which is made where it is not there, and return it: nobody can show it again.

    ``limits`` are fields of ``Entry``. Raises ConfigError for values that cannot be, UsageError for a name in use.
    """
    with _alone(path):
        text = path.read_text("utf-8") if path.exists() else HEAD
        names = [entry.name for entry in parse_keys(text, str(path)) if entry.revoked is None]
        if name in names:
            raise UsageError(f"--name: '{name}' has a key in {path} already; revoke that one, or take another name")
        made, key = new_secret(chance)
        created = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        given = {
            "id": made,
            "name": name,
            "hash": f"sha256:{digest_of(key.encode()).hex()}",
            "created": created,
            **limits,
        }
        fields = {field: value for field, value in given.items() if value is not None}
        _check(fields)
        lines = [f"{field} = {_toml(value)}" for field, value in fields.items()]
        _write(path, "\n".join([text.rstrip("\n"), "", "[[keys]]", *lines, ""]))
    return key


def _check(fields: Mapping[str, Any]) -> None:
    try:
        Entry.model_validate(fields)
    except ValidationError as error:
        told = [_told(each["loc"], dict(each), "") for each in error.errors()]
        flags = [Problem(f"--{each.key.replace('_', '-')}" if each.key else "limits", each.message) for each in told]
        raise ConfigError("stepladder keys new", flags) from None


def revoke_key(path: Path, which: str, *, now: float) -> Entry:
    """Mark the key of this name or id as revoked. Raises UsageError where there is none in force."""
    with _alone(path):
        entries = [entry for entry in read_keys(path) if entry.revoked is None]
        named = [entry for entry in entries if which in (entry.name, entry.id)]
        if not named:
            names = tuple(entry.name for entry in entries)
            hint = nearest(which, names) if names else "there is none in it"
            raise UsageError(f"no key '{which}' is in force in {path}; {hint}")
        when = _toml(datetime.fromtimestamp(now, UTC).replace(microsecond=0))
        line = re.compile(rf"^([ \t]*id[ \t]*=[ \t]*[\"']{named[0].id}[\"'][^\n]*)$", re.MULTILINE)
        text = line.sub(rf"\1\nrevoked = {when}", path.read_text("utf-8"), count=1)
        _write(path, text)
        if not any(entry.id == named[0].id and entry.revoked is not None for entry in read_keys(path)):
            raise UsageError(f"{path}: the line 'id = \"{named[0].id}\"' was not found; add 'revoked' by hand")
    return named[0]


def _write(path: Path, text: str) -> None:
    parse_keys(text, str(path))  # nothing is written that could not be read again
    replace_file(path.resolve(), text.encode(), mode=FILE_MODE)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two commands at once would otherwise lose one's key: each reads the file and replaces it."""
    import fcntl

    folder = path.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _toml(value: Any) -> str:
    """A value as TOML; strings here hold no control characters, which patterns and parsers have seen to."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
