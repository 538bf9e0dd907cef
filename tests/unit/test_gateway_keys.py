"""Keys at the gate: who is let in, what they may ask for, what is counted, and what survives a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway_fakes import STAGES, Got, World, ask, attempt, plays, world
from stepladder import cli
from stepladder.errors import ConfigError, UsageError
from stepladder.gateway import access, spending
from stepladder.gateway.access import FREE, KeyGate, LoopbackGate, is_local_name
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.keys import add_key, digest_of, id_of, new_secret, parse_keys, read_keys, revoke_key
from stepladder.types import Delta

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
ASKED: Any = {"model": "stepladder", "messages": [{"role": "user", "content": "What is 2+2?"}]}


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


async def until(true) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is waited for are calls of fakes and files, which set no event
            await asyncio.sleep(0.002)


@dataclass
class Site:
    """A gateway behind keys, over fakes."""

    world: World
    path: Path
    clock: Clock
    gate: KeyGate
    app: Any
    keys: dict[str, str]

    async def ask(self, who: str | None, body: Any = ASKED, path: str = "/v1/chat/completions", **headers: str) -> Got:
        """A POST, or with ``body=None`` a GET, with this caller's key (or with these very words)."""
        sent = {"content-type": "application/json", **headers}
        if who is not None:
            sent["authorization"] = f"Bearer {self.keys.get(who, who)}"
        data = b"" if body is None else orjson.dumps(body)
        return await ask(self.app, "GET" if body is None else "POST", path, [data], sent)

    def again(self) -> Site:
        """The gateway after a restart."""
        gate = KeyGate(self.path, STAGES, clock=self.clock, timer=self.clock)
        return Site(self.world, self.path, self.clock, gate, create_app(self.world.router, gate=gate), self.keys)


@pytest.fixture
def site(tmp_path):
    """Makes a gateway for callers with these limits."""

    def make(script=None, **callers: dict[str, Any]) -> Site:
        clock, path = Clock(), tmp_path / "keys.toml"
        keys = {name: add_key(path, name, limits, now=NOON, chance=os.urandom) for name, limits in callers.items()}
        made = world() if script is None else world(script)
        gate = KeyGate(path, STAGES, clock=clock, timer=clock)
        return Site(made, path, clock, gate, create_app(made.router, gate=gate), keys)

    return make


# ── who ──────────────────────────────────────────────────────────────────────


async def test_a_good_key_opens_and_its_name_stands_in_the_trace(site):
    here = site(a={})
    got = await here.ask("a")
    assert got.status == 200
    assert [trace.request.caller for trace in here.world.store.traces] == ["a"]
    assert here.keys["a"] not in repr(here.world.store.traces)


async def test_every_refusal_reads_the_same(site):
    here = site(a={}, late={"expires": date(2026, 11, 23)}, gone={})
    revoke_key(here.path, "gone", now=NOON)
    here = here.again()
    good = here.keys["a"]
    unknown_id = f"sl-{'0' * 12}-{good.split('-', 2)[2]}"
    wrong = [None, "", "x", "unused", good[:-1], f"{good}x", good.upper(), unknown_id, "late", "gone", f"{good} {good}"]
    replies = [await here.ask(who) for who in wrong]
    assert {got.status for got in replies} == {401}
    assert len({got.body for got in replies}) == 1
    assert replies[0].error["code"] == "invalid_api_key"
    assert replies[0].headers["www-authenticate"] == "Bearer"
    assert not here.world.store.traces


async def test_unknown_ids_are_compared_as_known_ones_are(site, monkeypatch):
    here = site(a={})
    compared = []
    monkeypatch.setattr(
        access, "compare_digest", lambda ours, theirs: compared.append((len(ours), len(theirs))) or False
    )
    for who in ("a", f"sl-{'0' * 12}-secret", "nothing"):
        assert (await here.ask(who)).status == 401
    assert compared == [(32, 32)] * 3


async def test_other_schemes_and_two_headers_are_refused(site):
    here = site(a={})
    key = here.keys["a"].encode()
    for headers in (
        [(b"authorization", b"Basic " + key)],
        [(b"authorization", key)],
        [(b"x-api-key", key)],
        [(b"authorization", b"Bearer " + key)] * 2,
    ):
        with pytest.raises(access.AccessError) as caught:
            here.gate.enter({"headers": headers})
        assert caught.value.status == 401
    here.gate.enter({"headers": [(b"authorization", b"bearer  " + key + b" ")]}).leave()


async def test_nothing_is_read_before_the_key_is_good(site):
    here = site(a={})
    got = await ask(here.app, "POST", "/v1/chat/completions", [b"{" * 10], {"content-type": "text/plain"})
    assert got.status == 401


async def test_only_what_tells_nothing_of_anybody_needs_no_key(site):
    here = site(a={})
    open_ = {
        route.path
        for route in here.app.routes
        if (await ask(here.app, min(route.methods - {"HEAD"}), route.path.replace("{id}", "x"))).status != 401
    }
    assert open_ == {"/health", "/ready", "/openapi.json"}


# ── the file while it is in use ──────────────────────────────────────────────


async def test_a_running_gateway_learns_of_changes(site, caplog):
    here = site(a={}, b={})
    assert (await here.ask("b")).status == 200
    revoke_key(here.path, "b", now=NOON)
    here.keys["c"] = add_key(here.path, "c", {}, now=NOON, chance=os.urandom)
    here.clock.now += access.LOOK_S
    assert [(await here.ask(who)).status for who in "abc"] == [200, 401, 200]
    with caplog.at_level(logging.ERROR, "stepladder.gateway"):
        here.path.write_text("[[keys]]\nname = 3\n", "utf-8")
        here.clock.now += access.LOOK_S
        assert [(await here.ask(who)).status for who in "abc"] == [200, 401, 200]
    assert "stays as it was" in caplog.text
    here.path.unlink()
    here.clock.now += access.LOOK_S
    assert (await here.ask("a")).status == 200


async def test_a_key_that_was_taken_back_is_out_whatever_else_is_wrong_in_the_file(site, caplog):
    here = site(a={}, b={}, c={})
    assert [(await here.ask(who)).status for who in "abc"] == [200, 200, 200]
    add_key(here.path, "d", {"stages": ("nope",)}, now=NOON, chance=os.urandom)  # no stage of this ladder
    revoke_key(here.path, "b", now=NOON)
    entries = here.path.read_text("utf-8").split("[[keys]]")
    here.path.write_text("[[keys]]".join(each for each in entries if 'name = "c"' not in each), "utf-8")
    here.clock.now += access.LOOK_S
    with caplog.at_level(logging.ERROR, "stepladder.gateway"):
        assert [(await here.ask(who)).status for who in "abc"] == [200, 401, 401]
    assert "no stage 'nope'" in caplog.text


async def test_a_key_ends_when_it_expires(site):
    here = site(a={"expires": date(2026, 11, 24)})
    here.clock.now = NOON + 12 * 3600 - 0.001
    assert (await here.ask("a")).status == 200
    here.clock.now = NOON + 12 * 3600
    assert (await here.ask("a")).status == 401


async def test_changed_limits_keep_what_was_counted(site):
    here = site(a={"budget": "3/day", "rate": "2/min"})
    assert (await here.ask("a", ASKED | {"model": "large"})).status == 200
    text = here.path.read_text("utf-8")
    here.path.write_text(text.replace("3/day", "2/day").replace("2/min", "9/min"), "utf-8")
    here.clock.now += access.LOOK_S
    assert (await here.ask("a", None, "/v1/models")).headers["x-ratelimit-limit-requests"] == "9"
    got = await here.ask("a")
    assert (got.status, got.error["code"]) == (429, "insufficient_quota")


# ── what a key allows ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limits", "block", "told"),
    [
        ({"lambda_min": 2.0, "lambda_max": 10.0}, {"lambda": 11}, "it may be from 2 to 10"),
        ({"lambda_min": 2.0, "lambda_max": 10.0}, {"lambda": 1}, "it may be from 2 to 10"),
        ({"lambda_min": 2.0}, {"lambda": 1}, "it may be from 2 up"),
        ({"modes": ("route", "fixed")}, {"mode": "cascade"}, "it may use route, fixed"),
    ],
)
async def test_what_is_asked_beyond_a_key_is_refused(site, limits, block, told):
    here = site(a=limits)
    got = await here.ask("a", {**ASKED, "stepladder": block})
    assert (got.status, got.error["type"]) == (403, "permission_error")
    assert told in got.error["message"]
    assert not here.world.engine.calls


async def test_what_nobody_asked_for_is_brought_within_a_key(site):
    here = site(a={"lambda_min": 7.0, "modes": ("cascade",)}, b={"lambda_max": 3.0})
    first = (await here.ask("a")).json["stepladder"]
    second = (await here.ask("b")).json["stepladder"]
    assert (first["lambda"], first["mode"]) == (7.0, "cascade")
    assert (second["lambda"], second["mode"]) == (3.0, "route")


async def test_stages_outside_are_no_candidates(site):
    here = site(a={"stages": ("medium", "large")})
    assert (await here.ask("a")).json["model"] == "medium"  # the fake policy takes the first that is allowed
    named = await here.ask("a", {**ASKED, "model": "small"})
    assert (named.status, named.error["code"]) == (403, "stage_not_allowed")
    bounded = await here.ask("a", {**ASKED, "stepladder": {"max_stage": "small", "mode": "route"}})
    assert bounded.status == 400
    assert "not for this caller" in bounded.error["message"]
    assert {stage for stage, _ in here.world.engine.calls} == {"medium"}
    models = {model["id"] for model in (await here.ask("a", None, "/v1/models")).json["data"]}
    assert "small" not in models
    assert {"medium", "large", "stepladder"} <= models


async def test_the_cost_of_a_request_is_capped(site):
    here = site(a={"max_cost": 1.5})
    got = await here.ask("a", {**ASKED, "model": "large"})
    assert got.status == 400
    assert "max_cost 1.5" in got.error["message"]
    assert (await here.ask("a", {**ASKED, "stepladder": {"max_cost": 9}})).status == 200
    assert here.world.store.traces[-1].request.dials.max_cost == 1.5
    await here.ask("a", {**ASKED, "stepladder": {"max_cost": 1.2}})
    assert here.world.store.traces[-1].request.dials.max_cost == 1.2


async def test_a_caller_reads_its_own_decisions_and_an_admin_all(site):
    here = site(a={}, b={}, boss={"admin": True})
    await here.ask("a")
    place = f"/v1/decisions/{here.world.store.traces[0].id}"
    assert [(await here.ask(who, None, place)).status for who in ("a", "b", "boss")] == [200, 404, 200]
    unknown = await here.ask("b", None, "/v1/decisions/dec-none")
    other = await here.ask("b", None, place)
    assert other.body == unknown.body.replace(b"dec-none", here.world.store.traces[0].id.encode())


# ── how much ─────────────────────────────────────────────────────────────────


async def test_a_rate_is_told_in_openais_headers(site):
    here = site(a={"rate": "2/min"}, b={})
    first, second, third = [await here.ask("a") for _ in range(3)]
    assert [got.status for got in (first, second, third)] == [200, 200, 429]
    told = [first.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")]
    assert told == ["2", "1", "30.000s"]
    assert (third.error["type"], third.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert (third.headers["retry-after"], third.headers["x-ratelimit-remaining-requests"]) == ("30", "0")
    assert (await here.ask("b")).status == 200
    here.clock.now += 30
    assert (await here.ask("a")).status == 200


async def test_requests_under_way_are_counted_until_they_end(site):
    go = asyncio.Event()

    async def waits(request, stage):
        await go.wait()
        async for event in plays(attempt(stage.name))(request, stage):
            yield event

    here = site(waits, a={"concurrent": 2})
    under_way = [asyncio.create_task(here.ask("a")) for _ in range(2)]
    await until(lambda: len(here.world.engine.calls) == 2)
    third = await here.ask("a")
    assert (third.status, third.error["code"], third.headers["retry-after"]) == (429, "concurrency_limit_exceeded", "1")
    go.set()
    assert [got.status for got in await asyncio.gather(*under_way)] == [200, 200]
    assert (await here.ask("a")).status == 200


async def test_places_are_free_again_after_errors_and_clients_that_leave(site):
    here = site(a={"concurrent": 1, "budget": "50/day"})
    for body in ({}, {**ASKED, "model": "none"}, {**ASKED, "stepladder": {"x": 1}}, {**ASKED, "messages": []}):
        assert (await here.ask("a", body)).status in (400, 404)
    task = asyncio.create_task(here.ask("a", {**ASKED, "messages": [{"role": "user", "content": "hi"}]}))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await here.ask("a")).status == 200
    account = here.gate._accounts["a"]
    assert (account.under_way, account.purse.reserved) == (0, 0)


async def test_a_budget_is_spent_by_what_was_billed_and_no_further(site):
    here = site(a={"budget": "5/day"}, b={"budget": "5/day"})
    statuses = [(await here.ask("a")).status for _ in range(6)]
    assert statuses == [200] * 5 + [429]  # each costs 1
    got = await here.ask("a")
    assert (got.error["type"], got.error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "5/day (relative) has 0 left" in got.error["message"]
    assert (got.headers["retry-after"], got.headers["x-should-retry"]) == (str(12 * 3600), "false")
    assert (await here.ask("b")).status == 200
    here.clock.now += 12 * 3600
    assert (await here.ask("a")).status == 200


async def test_many_at_once_do_not_pass_a_budget(site):
    here = site(a={"budget": "20/day"})
    got = await asyncio.gather(*(here.ask("a") for _ in range(40)))
    spent = sum(trace.cost for trace in here.world.store.traces)
    assert spent == sum(reply.status == 200 for reply in got)
    assert 4 <= spent <= 20


async def test_a_stream_that_its_client_leaves_is_paid_for(site):
    async def endless(request, stage):
        yield Delta("Four")
        await asyncio.Event().wait()

    here = site(endless, a={"budget": "50/day", "concurrent": 1})
    task = asyncio.create_task(here.ask("a", {**ASKED, "stream": True}))
    await asyncio.wait_for(here.world.engine.under_way.wait(), 20)
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    account = here.gate._accounts["a"]
    assert here.world.engine.cancelled.is_set()
    assert (account.purse.spent, account.purse.reserved, account.under_way) == (1.0, 0.0, 0)


async def test_streams_and_climbs_are_paid_for_and_decisions_are_not(site):
    here = site(a={"budget": "50/day"})
    await here.ask("a", {**ASKED, "stream": True})
    assert here.gate._accounts["a"].purse.spent == 1.0
    await here.ask("a", {**ASKED, "stepladder": {"mode": "cascade"}})
    assert here.gate._accounts["a"].purse.spent == pytest.approx(1.0 + 1.0 + 1.3 + 1.8)
    await here.ask("a", {**ASKED}, "/v1/route")
    assert here.gate._accounts["a"].purse.spent == pytest.approx(5.1)  # a decision alone costs nothing


async def test_near_its_end_a_budget_bounds_the_request(site):
    here = site(a={"budget": "2.5/day"})
    await here.ask("a", {**ASKED, "model": "medium"})  # 1.3, which leaves 1.2
    got = await here.ask("a", {**ASKED, "stepladder": {"mode": "cascade"}})
    assert [spent["stage"] for spent in got.json["stepladder"]["spent"]] == ["small"]
    dear = await here.ask("a", {**ASKED, "model": "large"})
    assert (dear.status, dear.error["code"]) == (429, "insufficient_quota")


# ── after a restart ──────────────────────────────────────────────────────────


async def test_a_clean_end_forgets_nothing(site):
    here = site(a={"budget": "3/day"})
    for _ in range(2):
        await here.ask("a")
    await here.gate.close()
    here = here.again()
    assert [(await here.ask("a")).status for _ in range(2)] == [200, 429]
    await here.gate.close()
    here = here.again()
    assert (await here.ask("a")).status == 429
    here.clock.now += 86400
    here = here.again()
    assert (await here.ask("a")).status == 200


async def test_a_crash_counts_what_was_reserved(site, monkeypatch):
    monkeypatch.setattr(spending, "SAVE_S", 0.01)
    stay = asyncio.Event()

    async def waits(request, stage):
        await stay.wait()
        yield attempt(stage.name)

    here = site(waits, a={"budget": "9/day"})
    task = asyncio.create_task(here.ask("a"))
    file = here.path.with_name("keys.toml.spent.json")
    await until(file.exists)
    after = here.again().gate._accounts["a"].purse
    assert after.spent == pytest.approx(1.0 + 1.3 + 1.8)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stay.set()
    await task
    await here.gate.close()
    assert here.again().gate._accounts["a"].purse.spent == pytest.approx(1.0)


async def test_revoking_and_making_anew_opens_no_purse(site):
    here = site(a={"budget": "2/day"}, b={"budget": "2/day"})
    for _ in range(2):
        await here.ask("a")
    revoke_key(here.path, "a", now=NOON)
    await here.gate.close()
    between = here.again()
    await between.ask("b")
    await between.gate.close()
    here.keys["a"] = add_key(here.path, "a", {"budget": "2/day"}, now=NOON, chance=os.urandom)
    assert (await here.again().ask("a")).status == 429


def test_spending_that_cannot_be_read_is_no_empty_purse(site):
    here = site(a={"budget": "3/day"})
    file = here.path.with_name("keys.toml.spent.json")
    for damaged in (b"{", b"[]", b'{"spent": {"a": 3}}', b'{"spent": {"a": {"spent": "x"}}}'):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"spent\.json"):
            here.again()


async def test_a_disk_that_takes_nothing_is_logged(site, monkeypatch, caplog):
    here = site(a={"budget": "3/day"})
    await here.ask("a")

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spending, "replace_file", full)
    with caplog.at_level(logging.ERROR, "stepladder.gateway"):
        await here.gate.close()
    assert "cannot be written" in caplog.text
    assert (await here.ask("a")).status == 200


# ── the file ─────────────────────────────────────────────────────────────────


def test_a_key_is_kept_as_a_hash_in_a_private_file(tmp_path):
    path = tmp_path / "keys.toml"
    key = add_key(path, "a", {"rate": "5/min"}, now=NOON, chance=os.urandom)
    text = path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.split("-", 2)[2] not in text
    assert digest_of(key.encode()).hex() in text
    assert read_keys(path)[0].id == id_of(key.encode())
    assert key not in repr(read_keys(path))
    assert digest_of(key.encode()).hex() not in repr(read_keys(path))
    assert "digest" not in repr(read_keys(path)[0].key)


def test_keys_hold_256_bits_of_chance():
    asked = []
    made, key = new_secret(lambda size: asked.append(size) or b"\xff" * size)
    assert sum(asked[1:]) * 8 == 256
    assert key == f"sl-{made}-{'_' * 42}8"
    assert id_of(key.encode()) == made


def test_hand_written_limits_and_comments_survive_the_verbs(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {}, now=NOON, chance=os.urandom)
    path.write_text(path.read_text("utf-8") + "rate = '7/min'  # agreed in June\n", "utf-8")
    add_key(path, "b", {}, now=NOON, chance=os.urandom)
    revoke_key(path, read_keys(path)[0].id, now=NOON)
    text = path.read_text("utf-8")
    assert "rate = '7/min'  # agreed in June" in text
    assert [entry.revoked is not None for entry in read_keys(path)] == [True, False]
    assert tomllib.loads(text)["keys"][0]["revoked"].tzinfo is UTC


def test_names_are_used_once_at_a_time(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {}, now=NOON, chance=os.urandom)
    with pytest.raises(UsageError, match="'a' has a key"):
        add_key(path, "a", {}, now=NOON, chance=os.urandom)
    revoke_key(path, "a", now=NOON)
    add_key(path, "a", {}, now=NOON, chance=os.urandom)
    with pytest.raises(UsageError, match="no key 'b' is in force"):
        revoke_key(path, "b", now=NOON)


GOOD = f'[[keys]]\nid = "{"0" * 12}"\nname = "a"\nhash = "sha256:{"0" * 64}"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = ", "no valid TOML"),
        ("[key]\n", r"line 1: key: unknown key; valid: keys"),
        ("keys = 3\n", "begin each key with"),
        (GOOD + "budgte = '1/day'\n", r"line 5: keys\[0\].budgte: unknown key; did you mean 'budget'"),
        (GOOD + "budget = '1/week'\n", "such as 100/day"),
        (GOOD + "rate = 5\n", "line 5"),
        (GOOD + "stages = []\n", "at least 1"),
        (GOOD + "concurrent = 0\n", "greater than 0"),
        (GOOD + "lambda_min = 3\nlambda_max = 2\n", "above lambda_max"),
        (GOOD + "modes = ['fast']\n", "'route', 'cascade' or 'fixed'"),
        (GOOD + GOOD, "stands here twice"),
        (GOOD + GOOD.replace("0" * 12, "1" * 12), "names two keys in force"),
        (GOOD.replace('name = "a"', 'name = "a b"'), r"keys\[0\].name"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_key_and_line(text, told):
    with pytest.raises(ConfigError, match=told):
        parse_keys(text, "keys.toml")


def test_a_hash_that_is_a_key_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        parse_keys(GOOD.replace(f"sha256:{'0' * 64}", "sl-abc-SECRET"), "keys.toml")
    assert "hash" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_stages_that_the_ladder_does_not_have(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {"stages": ("smal",)}, now=NOON, chance=os.urandom)
    with pytest.raises(ConfigError, match=r"keys 'a'.stages: no stage 'smal'; did you mean 'small'"):
        KeyGate(path, STAGES)
    gate = KeyGate(path, ("smal",))
    with pytest.raises(ConfigError, match="no stage 'smal'"):
        gate.use(STAGES)
    gate.use(("smal", "large"))
    revoke_key(path, "a", now=NOON)
    KeyGate(path, STAGES)  # what a revoked key names is nobody's concern


def test_check_reads_the_keys_too(tmp_path, capsys):
    lines = ['[[stages]]\nname = "a"\nengine = "scripted"\nmodel = "m"\ncost = 1.0', '[gateway]\nkeys = "keys.toml"\n']
    (tmp_path / "ladder.toml").write_text("\n".join(lines), "utf-8")
    words = ["check", str(tmp_path / "ladder.toml")]
    assert cli.main(words) == 2
    assert "'stepladder keys new' makes one" in capsys.readouterr().err
    add_key(tmp_path / "keys.toml", "x", {"stages": ("b",)}, now=NOON, chance=os.urandom)
    assert cli.main(words) == 2
    assert "no stage 'b'" in capsys.readouterr().err
    revoke_key(tmp_path / "keys.toml", "x", now=NOON)
    assert cli.main(words) == 0


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="'stepladder keys new' makes one"):
        KeyGate(tmp_path / "keys.toml", STAGES)


# ── the verb ─────────────────────────────────────────────────────────────────


def test_the_verb_makes_shows_and_ends_keys(tmp_path, capsys):
    file = ["--keys", str(tmp_path / "keys.toml")]
    limits = ["--lambda-min", "1", "--lambda-max", "9", "--stages", "a,b", "--modes", "route", "--max-cost", "0.5"]
    limits += ["--budget", "100/day", "--rate", "60/min", "--concurrent", "8", "--expires", "2127-01-01", "--admin"]
    assert cli.main(["keys", "new", *file, "--name", "team-a", *limits]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("sl-")
    assert shown.out.strip() not in shown.err
    assert cli.main(["keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    told = "lambda_min=1 lambda_max=9 stages=a,b modes=route max_cost=0.5 budget=100/day rate=60/minute concurrent=8"
    assert told in listed
    assert "until 2127-01-01" in listed
    assert shown.out.strip() not in listed
    assert cli.main(["keys", "revoke", *file, "team-a"]) == 0
    assert cli.main(["keys", "list", *file]) == 0
    assert "revoked 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new", "--name", "a b"], "--name"),
        (["new", "--name", "a", "--expires", "soon"], "'soon' is no date"),
        (["new", "--name", "a", "--budget", "5"], "--budget: '5' should be"),
        (["new", "--name", "a", "--lambda-min", "2", "--lambda-max", "1"], "limits: lambda_min 2 is above"),
        (["new", "--name", "a", "--lambda-min", "nan"], "--lambda-min"),
        (["list"], "cannot be read"),
        (["revoke", "a"], "cannot be read"),
    ],
)
def test_the_verb_says_what_would_be_right(tmp_path, capsys, words, told):
    assert cli.main(["keys", *words, "--keys", str(tmp_path / "keys.toml")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "keys.toml").exists()


# ── without keys ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (b"127.0.0.1:8080", True),
        (b"[::1]:8080", True),
        (b"192.168.3.4", True),
        (b"localhost:8080", True),
        (b"LOCALHOST", True),
        (b"app.localhost", True),
        (b"host.docker.internal:8080", True),
        (b"gateway", True),
        (b"", True),
        (b"evil.example", False),
        (b"evil.example:8080", False),
        (b"127.0.0.1.evil.example", False),
        (b"localhost.evil.example.", False),
        (b"\xff.example", False),
    ],
)
def test_names_that_no_public_server_can_answer_for(host, own):
    assert is_local_name(host) is own
    gate = LoopbackGate(("evil.example",))
    scope = {"headers": [(b"host", host)]}
    if own or host.startswith(b"evil."):
        assert gate.enter(scope) is FREE
    else:
        with pytest.raises(access.AccessError) as caught:
            gate.enter(scope)
        assert (caught.value.status, caught.value.code) == (403, "host_not_allowed")


async def test_without_keys_whatever_is_sent_as_one_is_passed_over():
    got = await ask(
        world().app,
        "POST",
        "/v1/chat/completions",
        [orjson.dumps(ASKED)],
        {"content-type": "application/json", "authorization": "Bearer unused"},
    )
    assert got.status == 200


# ── URLs ─────────────────────────────────────────────────────────────────────

PNG = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("rule", "url", "status"),
    [
        ("data", PNG, 200),
        ("data", PNG.upper(), 200),
        ("data", "http://169.254.169.254/latest", 400),
        ("data", "file:///etc/passwd", 400),
        ("data", " data:x", 400),
        ("data", None, 400),
        ("any", "http://169.254.169.254/latest", 200),
        ("off", PNG, 400),
    ],
)
@pytest.mark.parametrize("shape", ["nested", "plain", "video"])
async def test_urls_that_a_stage_would_fetch(rule, url, status, shape):
    part = {"type": "image_url", "image_url": {"url": url}}
    if shape == "plain":
        part = {"type": "image_url", "image_url": url}
    elif shape == "video":
        part = {"type": "video_url", "video_url": {"url": url}}
    here = world(settings=GatewaySettings(image_urls=rule))
    body = {"model": "stepladder", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]}
    got = await ask(
        here.app, "POST", "/v1/chat/completions", [orjson.dumps(body)], {"content-type": "application/json"}
    )
    assert got.status == status
    if status == 400:
        assert (got.error["code"], got.error["param"]) == ("url_not_allowed", "messages[0].content")
        assert not here.engine.calls
