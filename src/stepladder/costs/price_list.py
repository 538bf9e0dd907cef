"""Costs in usd from each stage's price list."""

from __future__ import annotations

from stepladder.contracts import Forecast
from stepladder.costs.settings import price, settings_version, stage_prices
from stepladder.costs.tokens import TYPICAL_OUTPUT, expected_seconds, expected_tokens
from stepladder.errors import refuse_unknown
from stepladder.types import Attempt, Cost, Request, Stage

MILLION = 1_000_000
OPTIONS = ("latency_price", "typical_output")


class PriceListCosts:
    """usd from ``Stage.price_in`` and ``Stage.price_out`` (for a million tokens).

    Expected: a token for every four characters, and ``typical_output`` tokens to an answer or the caller's limit, if
    that is lower. Billed: the tokens that the server counted, or the engine's estimate for an answer that broke off
    before; an answer whose server reports no usage bills 0. Tokens read from a cache are billed like any other, which
    is never too little. ``latency_price`` is in usd a second.

    Raises ConfigError for stages without prices, UsageError for options that it does not have.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        forecast: Forecast,
        *,
        latency_price: float = 0.0,
        typical_output: float = TYPICAL_OUTPUT,
        **unknown: object,
    ) -> None:
        refuse_unknown("cost model 'price-list'", unknown, OPTIONS)
        self._in = stage_prices(stages, "price_in", "price-list")
        self._out = stage_prices(stages, "price_out", "price-list")
        self._forecast = forecast
        self._latency_price = price(latency_price, "costs.latency_price")
        self._typical_output = price(typical_output, "costs.options.typical_output")
        settings = {"in": self._in, "out": self._out, "latency": self._latency_price, "typical": self._typical_output}
        self.version = settings_version(kind="price-list", **settings)

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        """usd for the expected tokens, and the price of the expected seconds."""
        tokens = expected_tokens(request, self._typical_output)
        seconds = expected_seconds(self._forecast, stage, tokens, draft)
        return Cost(self._usd(stage, *tokens), seconds, self._latency_price * seconds)

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        """usd for the tokens used; a failed attempt that used tokens is billed for them."""
        return self._usd(stage, attempt.usage.prompt_tokens, attempt.usage.output_tokens)

    def _usd(self, stage: Stage, prompt_tokens: int, output_tokens: int) -> float:
        return (prompt_tokens * self._in[stage.name] + output_tokens * self._out[stage.name]) / MILLION
