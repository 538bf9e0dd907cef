"""Stages behind any server that speaks OpenAI's HTTP API: vLLM, SGLang, llama.cpp, Ollama, hosted ones."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, aclosing
from urllib.parse import urlsplit

from stepladder.engines.client import Pool
from stepladder.engines.deadline import Deadline
from stepladder.engines.forecast import Forecasts
from stepladder.engines.http import Target, bearer, exchange, new_pool, read_limits
from stepladder.engines.options import Options
from stepladder.engines.wire import WireError
from stepladder.errors import EngineError
from stepladder.types import Attempt, Capability, EngineCost, EngineEvent, Request, Stage

PROMPTS: frozenset[Capability] = frozenset({"prompts"})


class OpenAIEngine:
    """Asks servers over HTTP, all stages through one pool of kept-alive connections.

    Options of a stage: ``base_url`` (required, normally ends in /v1); ``api_key_env`` (the environment variable that
    holds the key); ``headers`` (a table of further headers); ``stream_usage`` (true: streams are asked for their
    usage; false for old servers that refuse ``stream_options``); ``connect_timeout_s`` 5, ``first_byte_timeout_s``
    120, ``idle_timeout_s`` 60, ``total_timeout_s`` 600 (``http.Limits`` says what each covers); ``retries`` 1, how
    often a server is asked again that did nothing yet (``http.Target``), within ``total_timeout_s``.

    At most ``stage.max_concurrency`` calls are in flight for a stage; the wait for a free place counts against
    ``total_timeout_s`` and is not part of an attempt's seconds. When that time is over, the place is free again also
    where nobody takes the call's next event. Raises ConfigError for options that cannot be used, a missing key's
    variable included.
    """

    ignores = frozenset({"cost", "price_in", "price_out", "context", "gpus", "capabilities"})
    """Fields of a stage that say nothing of its server: where only these changed, a reload keeps the connections."""

    def __init__(
        self,
        stages: tuple[Stage, ...],
        *,
        environ: Mapping[str, str] = os.environ,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._targets = {stage.name: _target(stage, environ) for stage in stages}
        self._places = {
            stage.name: asyncio.Semaphore(stage.max_concurrency) for stage in stages if stage.max_concurrency
        }
        self._forecasts = Forecasts()
        self._chance = chance
        self._pool: Pool | None = None
        self._closed = False

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured: a server cannot be asked what it can do. Several prompts in one call are part of the API."""
        return stage.capabilities | PROMPTS

    def target(self, stage: Stage) -> Target:
        """Where a stage is served."""
        return self._targets[stage.name]

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """Learned from the answers so far; a draft cannot be handed to a server, so it changes nothing."""
        return self._forecasts.cost(stage, prompt_tokens, output_tokens)

    async def start(self) -> None:
        """Open the pool; servers are not asked, since one that is down must not keep the others from working."""
        self._closed = False
        if self._pool is None:
            self._pool = new_pool()

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Ask the stage's server. Raises EngineError after ``close`` only."""
        target = self._targets[stage.name]
        deadline = Deadline(stage.name, target.limits.total_s)
        if self._pool is None or stage.name in self._places:
            return self._in_place(request, stage, deadline)
        return exchange(self._pool, target, request, deadline, chance=self._chance, tell=self._observe)

    async def _in_place(self, request: Request, stage: Stage, deadline: Deadline) -> AsyncGenerator[EngineEvent, None]:
        """The same where a place has to be waited for, or the pool to be opened first."""
        if self._closed:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        await self.start()
        with ExitStack() as held:
            try:
                await self._take_place(stage, deadline, held)
            except WireError as error:
                yield Attempt(stage.name, fault=error.fault)
                return
            if self._pool is None:
                raise EngineError(f"stage '{stage.name}': the engine was closed")
            target = self._targets[stage.name]
            made = exchange(self._pool, target, request, deadline, chance=self._chance, tell=self._observe)
            async with aclosing(made) as events:
                async for event in events:
                    yield event

    def _observe(self, attempt: Attempt) -> None:
        if attempt.tries == 1:  # a pause says nothing of the server's speed
            self._forecasts.observe(attempt)

    async def _take_place(self, stage: Stage, deadline: Deadline, held: ExitStack) -> None:
        place = self._places.get(stage.name)
        if place is None:
            return
        async with deadline.waiting("no free place"):
            await place.acquire()
        held.callback(place.release)
        deadline.let_go(held)


def _target(stage: Stage, environ: Mapping[str, str]) -> Target:
    options = Options(stage)
    target = Target(
        stage=stage.name,
        model=stage.model,
        base_url=_base_url(options),
        headers={**_headers(options), **bearer(_key(options, environ))},
        limits=read_limits(options),
        ask_usage=options.flag("stream_usage", default=True),
        retries=options.whole("retries", 1, least=0, most=10),
    )
    options.done()
    return target


def _base_url(options: Options) -> str:
    url = options.text("base_url")
    if url is None:
        if not options.problems:
            options.wrong("base_url", "is missing: the server's address, such as http://127.0.0.1:8000/v1")
        return ""
    wrong = _wrong_with(url)
    if wrong is not None:
        options.wrong("base_url", wrong)
    return url.rstrip("/")


def _wrong_with(url: str) -> str | None:
    """Why an address cannot be asked; None where it can. What may hold a password is not repeated."""
    if "@" in url:
        return "must not hold a user or password: put the key in an environment variable and name it in api_key_env"
    if not url.startswith(("http://", "https://")):
        return f"must begin with http:// or https://, not {url!r}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # the port is read only now, and refused here
        host.encode("idna")  # labels that are empty or longer than 63, characters that no name may have
    except ValueError as error:  # UnicodeError is one
        return f"is no address that can be asked ({error}): {url!r}"
    if not host or not url.isprintable() or " " in url:
        return f"must name a host and hold no spaces, such as http://127.0.0.1:8000/v1, not {url!r}"
    if parts.query or parts.fragment:
        return "must not hold a query or fragment: the endpoints' paths are put behind it"
    return None


def _headers(options: Options) -> Mapping[str, str]:
    headers = options.texts("headers")
    for name, value in headers.items():
        if not name.isascii() or not value.isprintable():
            options.wrong("headers", f"the header {name!r} holds characters that HTTP does not allow")
    return headers


def _key(options: Options, environ: Mapping[str, str]) -> str | None:
    name = options.text("api_key_env")
    if name is None:
        return None
    key = environ.get(name, "").strip()
    if not key:
        options.wrong("api_key_env", f"the environment variable {name} is not set")
    return key
