"""Who may ask, for what, and how much: the gate that stands before every route.

header ─► Gate.enter ─► Access ─► constrain(request) ─► router ─► trace ─► Gate.settle
           401, 429                403, 429                        what was billed
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hmac import compare_digest
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from starlette.types import Scope

from stepladder.errors import AccessError, ConfigError, Problem, nearest
from stepladder.gateway.keys import Key, Rules, digest_of, id_of, read_keys
from stepladder.gateway.limits import Purse, TokenBucket
from stepladder.gateway.report import Headers
from stepladder.gateway.spending import Spending
from stepladder.router import Parts
from stepladder.types import Dials, Request, Trace

log = logging.getLogger("stepladder.gateway")

ACCESS = "stepladder.access"
"""Where a request's access stands in its scope."""

LOOK_S = 1.0
"""How often, at most, the keys' file is looked at for changes."""

BUSY_RETRY_S = 1.0
_NOBODY = bytes(32)
_SCHEME = b"bearer "


class Access(Protocol):
    """What one HTTP request may do."""

    @property
    def caller(self) -> str | None: ...
    @property
    def only(self) -> tuple[str, ...] | None: ...
    @property
    def headers(self) -> Headers: ...
    def constrain(self, request: Request, parts: Parts) -> Request: ...
    def may_use(self, stage: str) -> bool: ...
    def reads(self) -> str | None: ...
    def leave(self) -> None: ...


class Gate(Protocol):
    """Lets a request in, or raises AccessError; is told of what was billed (``Router.watch``)."""

    def enter(self, scope: Scope) -> Access: ...
    def settle(self, trace: Trace) -> None: ...
    async def close(self) -> None: ...


def access_of(scope: Scope) -> Access:
    """What this request may do; everything, where no gate was put up."""
    found: Access = scope.get(ACCESS, FREE)
    return found


# ── without keys ─────────────────────────────────────────────────────────────


class Free:
    """The access of everybody where there are no keys."""

    caller: str | None = None
    only: tuple[str, ...] | None = None
    headers: Headers = ()

    def constrain(self, request: Request, parts: Parts) -> Request:
        """The request as it is."""
        return request

    def may_use(self, stage: str) -> bool:
        """Every stage."""
        return True

    def reads(self) -> str | None:
        """Whose decisions may be read: None stands for everybody's."""
        return None

    def leave(self) -> None:
        """Nothing was taken."""


FREE = Free()


class FreeGate:
    """Lets everybody in."""

    def enter(self, scope: Scope) -> Access:
        """Never raises."""
        return FREE

    def settle(self, trace: Trace) -> None:
        """Nobody has a budget."""

    async def close(self) -> None:
        """Nothing is kept."""


class LoopbackGate(FreeGate):
    """Lets everybody in who calls the machine by an address or by a name of its own.

    A web page may have its own name answered with 127.0.0.1 and then ask its visitor's gateway as if it were its own
    server; what it cannot do is send another name. Names that no public server can answer for are let through.
    """

    def __init__(self, hosts: Collection[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def enter(self, scope: Scope) -> Access:
        """Raises AccessError (403) for a public name that is not among ``hosts``."""
        for name, value in scope["headers"]:
            if name == b"host" and not (is_local_name(value) or _host(value) in self._hosts):
                told = f"this gateway has no keys and does not answer to the name '{_host(value)[:100]}'"
                raise AccessError(
                    f"{told}; call it by address, set gateway.keys, or list the name in gateway.hosts",
                    status=403,
                    kind="invalid_request_error",
                    code="host_not_allowed",
                )
        return FREE


@lru_cache(maxsize=256)
def is_local_name(host: bytes) -> bool:
    """True for an address, a name without a dot, and names under .localhost, .local and .internal."""
    name = _host(host)
    if "." not in name or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host(value: bytes) -> str:
    """A Host header without its port."""
    name = value.decode("latin-1").strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


# ── with keys ────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Account:
    """What is counted for one key's name."""

    bucket: TokenBucket | None = None
    purse: Purse | None = None
    under_way: int = 0


class KeyGate:
    """Lets in whoever sends a good key, as far as its rules go. For one event loop and one process.

    The file is looked at again once it has changed: a key that was revoked is out within ``LOOK_S`` seconds and one
    request. A changed file that cannot be read changes nothing and is logged. ``clock`` gives seconds since the epoch,
    ``timer`` monotonic seconds. ``stages`` are the ladder's, which the rules may name. Raises ConfigError.
    """

    def __init__(
        self,
        path: Path,
        stages: Collection[str],
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._clock, self._timer = path, clock, timer
        self._stages = tuple(stages)
        self._accounts: dict[str, Account] = {}
        self._open: dict[str, KeyAccess] = {}
        self._spending = Spending(path.with_name(f"{path.name}.spent.json"), self._spent)
        self._seen = _mark(path)
        self._look_at = timer() + LOOK_S
        self._keys = self._read()

    def enter(self, scope: Scope) -> KeyAccess:
        """Raises AccessError: 401 without a good key, 429 above its rate or its requests under way."""
        now = self._timer()
        if now >= self._look_at:
            self._look(now)
        key = self._known(scope)
        account = self._accounts[key.name]
        rules = key.rules
        if rules.concurrent is not None and account.under_way >= rules.concurrent:
            told = f"this key has {rules.concurrent} requests under way, as many as it may"
            raise _too_many(told, "concurrency_limit_exceeded", BUSY_RETRY_S)
        headers: Headers = ()
        if account.bucket is not None:
            wait = account.bucket.take(now)
            if wait:
                told = f"this key's rate of {rules.rate} is used up; try again in {wait:.3g} s"
                raise _too_many(told, "rate_limit_exceeded", wait, _rate_headers(account.bucket))
            headers = _rate_headers(account.bucket)
        account.under_way += 1
        return KeyAccess(self, key, account, headers)

    def use(self, stages: Collection[str]) -> None:
        """Another ladder's stages from now on. Raises ConfigError where the rules name one that it does not have."""
        before, self._stages = self._stages, tuple(stages)
        try:
            self._keys = self._read()
        except ConfigError:
            self._stages = before
            raise

    def settle(self, trace: Trace) -> None:
        """Take note of what a request was billed; the router tells (``Router.watch``)."""
        access = self._open.get(trace.request.id)
        if access is not None:
            self.settled(access, trace.cost)

    async def close(self) -> None:
        """Write down what was spent."""
        await self._spending.close()

    # ── who it is ────────────────────────────────────────────────────────────

    def _known(self, scope: Scope) -> Key:
        sent = _sent_key(scope["headers"])
        key = self._keys.get(id_of(sent))
        # An unknown id is compared too, and every refusal reads the same: nobody learns which ids there are.
        same = compare_digest(digest_of(sent), _NOBODY if key is None else key.digest)
        if key is None or not same:
            raise _not_known()
        if not key.is_good(self._clock()):
            log.warning("the key of '%s' is %s and was refused", key.name, "revoked" if key.revoked else "expired")
            raise _not_known()
        return key

    # ── the file ─────────────────────────────────────────────────────────────

    def _look(self, now: float) -> None:
        self._look_at = now + LOOK_S
        mark = _mark(self.path)
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._keys = self._read()
        except ConfigError as error:
            self._drop_revoked()
            told = "what the keys in force allow stays as it was, but for those that were taken back: %s"
            log.error(told, error)  # noqa: TRY400 - the message says it all
        else:
            log.info("keys read anew from %s", self.path)

    def _drop_revoked(self) -> None:
        """A key that was taken back is out, also where another entry keeps the file from being used as a whole."""
        try:
            entries = {entry.id: entry for entry in read_keys(self.path)}
        except ConfigError:  # nothing in it can be told
            return
        kept = {id_: key for id_, key in self._keys.items() if id_ in entries}
        self._keys = {id_: key if entries[id_].revoked is None else entries[id_].key for id_, key in kept.items()}

    def _read(self) -> dict[str, Key]:
        entries = read_keys(self.path)
        wrong = [
            Problem(f"keys '{entry.name}'.stages", f"no stage '{stage}'; {nearest(stage, self._stages)}")
            for entry in entries
            if entry.revoked is None
            for stage in entry.stages or ()
            if stage not in self._stages
        ]
        if wrong:
            raise ConfigError(str(self.path), wrong)
        keys = {entry.id: entry.key for entry in entries}
        for key in keys.values():
            if not key.revoked:
                self._account(key)
        return keys

    def _account(self, key: Key) -> None:
        """A key's account, with its new rules and all that was counted before."""
        rules, account = key.rules, self._accounts.setdefault(key.name, Account())
        if rules.rate is None:
            account.bucket = None
        elif account.bucket is None or account.bucket.quota != rules.rate:
            account.bucket = TokenBucket(rules.rate, self._timer())
        if rules.budget is None:
            account.purse = None
        elif account.purse is None:
            account.purse = self._spending.purse(key.name, rules.budget)
        else:
            account.purse.change(rules.budget)

    def _spent(self) -> Mapping[str, Purse]:
        return {name: account.purse for name, account in self._accounts.items() if account.purse is not None}

    # ── what accesses ask of it ──────────────────────────────────────────────

    def reserve(self, access: KeyAccess, purse: Purse, request: Request, parts: Parts) -> float | None:
        """Set aside what the request is expected to cost; the most that it may cost where the budget is nearly used.

        That is one call of each stage that it may ask, since a climb may come to that. Raises AccessError (429).
        """
        now = self._clock()
        prices = expected_prices(request, parts)
        room, cheapest = purse.room(now), min(prices, default=0.0)
        if room < cheapest:
            raise _used_up(purse, room, cheapest, parts.ladder.cost_unit, now)
        wanted = sum(prices) if request.dials.max_cost is None else min(sum(prices), request.dials.max_cost)
        access.reserved = min(wanted, room)
        purse.reserve(access.reserved, now)
        access.purse, access.request_id = purse, request.id
        self._open[request.id] = access
        self._spending.changed()
        return room if room < wanted else None

    def settled(self, access: KeyAccess, cost: float) -> None:
        """A request's end: its reservation goes, and what it was billed is spent."""
        if access.purse is not None:
            access.purse.settle(access.reserved, cost, self._clock())
            access.purse = None
            del self._open[access.request_id]
            self._spending.changed()


class KeyAccess:
    """One request under one key."""

    __slots__ = ("account", "caller", "gate", "headers", "key", "only", "purse", "request_id", "reserved")

    def __init__(self, gate: KeyGate, key: Key, account: Account, headers: Headers) -> None:
        self.gate, self.key, self.account, self.headers = gate, key, account, headers
        self.caller: str | None = key.name
        self.only = key.rules.stages
        self.purse: Purse | None = None
        self.request_id, self.reserved = "", 0.0

    def constrain(self, request: Request, parts: Parts) -> Request:
        """The request within the key's rules, with the caller's name. Raises AccessError (403; 429 without budget)."""
        dials = _within(request.dials, self.key.rules, parts)
        if dials is not request.dials or request.caller != self.caller or request.only != self.only:
            request = replace(request, dials=dials, caller=self.caller, only=self.only)
        if self.account.purse is None:
            return request
        most = self.gate.reserve(self, self.account.purse, request, parts)
        return request if most is None else replace(request, dials=replace(dials, max_cost=most))

    def may_use(self, stage: str) -> bool:
        """True for a stage that the key does not leave out."""
        return self.only is None or stage in self.only

    def reads(self) -> str | None:
        """The name whose decisions alone may be read; None for an admin, who reads all."""
        return None if self.key.rules.admin else self.key.name

    def leave(self) -> None:
        """The request is over; what it had reserved and was never billed is free again."""
        self.gate.settled(self, 0.0)
        self.account.under_way -= 1


def expected_prices(request: Request, parts: Parts) -> list[float]:
    """What a call of each stage that the request may ask is expected to be billed."""
    stages, dials = parts.ladder.stages, request.dials
    if dials.min_stage is not None or dials.max_stage is not None:
        names = parts.ladder.names
        low = names.index(dials.min_stage) if dials.min_stage in names else 0
        high = names.index(dials.max_stage) if dials.max_stage in names else len(names)
        stages = stages[low : high + 1]
    expected, only = parts.costs.expected, request.only
    return [expected(stage, request).resource for stage in stages if only is None or stage.name in only]


# ── a key's rules ────────────────────────────────────────────────────────────


def _within(dials: Dials, rules: Rules, parts: Parts) -> Dials:
    """Dials that the rules allow. What the caller asks for is refused where it is outside, not bent.

    What the ladder itself would choose is bent: nobody asked for it.
    """
    pinned = dials.min_stage if dials.min_stage == dials.max_stage else None
    if pinned is not None and rules.stages is not None and pinned not in rules.stages:
        raise _forbidden(f"stage '{pinned}'", f"it may use {', '.join(rules.stages)}", "stage_not_allowed")
    changed: dict[str, Any] = {}
    if rules.modes is not None:
        if dials.mode is not None and dials.mode not in rules.modes:
            raise _forbidden(f"mode '{dials.mode}'", f"it may use {', '.join(rules.modes)}", "mode_not_allowed")
        if dials.mode is None and parts.mode not in rules.modes:
            changed["mode"] = rules.modes[0]
    if rules.lambda_min is not None or rules.lambda_max is not None:
        changed |= _lambda_within(dials.lam, rules, parts.lam)
    if rules.max_cost is not None:
        changed["max_cost"] = rules.max_cost if dials.max_cost is None else min(dials.max_cost, rules.max_cost)
    return replace(dials, **changed) if changed else dials


def _lambda_within(lam: float | None, rules: Rules, usual: float) -> dict[str, float]:
    low = 0.0 if rules.lambda_min is None else rules.lambda_min
    high = rules.lambda_max
    wanted = usual if lam is None else lam
    bent = max(low, wanted if high is None else min(wanted, high))
    if bent == wanted:
        return {}
    if lam is not None:
        bounds = f"from {low:g} up" if high is None else f"from {low:g} to {high:g}"
        raise _forbidden(f"lambda {lam:g}", f"it may be {bounds}", "lambda_not_allowed")
    return {"lam": bent}


# ── refusals ─────────────────────────────────────────────────────────────────


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What stands behind ``Bearer``, nothing where that is not said once."""
    sent = b""
    for name, value in headers:
        if name == b"authorization":
            if sent:
                return b""
            sent = value
    return sent[len(_SCHEME) :].strip() if sent[: len(_SCHEME)].lower() == _SCHEME else b""


def _not_known() -> AccessError:
    told = "no key, or none that is good here; send the header 'Authorization: Bearer KEY' with a key of this gateway"
    return AccessError(
        told,
        status=401,
        kind="invalid_request_error",
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def _forbidden(what: str, cure: str, code: str) -> AccessError:
    return AccessError(f"this key does not allow {what}; {cure}", status=403, kind="permission_error", code=code)


def _too_many(message: str, code: str, retry_after: float, headers: Headers = ()) -> AccessError:
    return AccessError(
        message, status=429, kind="rate_limit_error", code=code, retry_after=retry_after, headers=headers
    )


def _used_up(purse: Purse, room: float, cheapest: float, unit: str, now: float) -> AccessError:
    """Trying again soon cannot help, which OpenAI's clients learn from a header of theirs."""
    resets = purse.resets_in(now)
    when = "it is not filled again" if resets is None else f"it is filled again in {ceil(resets)} s"
    told = f"this key's budget of {purse.quota} ({unit}) has {max(0.0, room):.6g} left, and the cheapest stage takes"
    return AccessError(
        f"{told} {cheapest:.6g}; {when}",
        status=429,
        kind="insufficient_quota",
        code="insufficient_quota",
        retry_after=resets,
        headers=((b"x-should-retry", b"false"),),
    )


def _rate_headers(bucket: TokenBucket) -> Headers:
    """As OpenAI names them; times as it writes them."""
    return (
        (b"x-ratelimit-limit-requests", b"%d" % bucket.size),
        (b"x-ratelimit-remaining-requests", b"%d" % bucket.left),
        (b"x-ratelimit-reset-requests", b"%.3fs" % bucket.full_in),
    )


def _mark(path: Path) -> tuple[int, int, int]:
    """What changes when the file does; zeros where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_ino, found.st_size
