"""The engine ``torch`` on a GPU: whole rounds write what plain decoding pass by pass writes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

pytestmark = pytest.mark.gpu
pytest.importorskip("gguf", reason="GGUF files need the package gguf")
pytest.importorskip("pydantic", reason="the engine's settings need pydantic")

from stepladder.types import Stage  # noqa: E402
from torch_fakes import ask, attempt, nano, running  # noqa: E402 - only where its packages are there
from whole_rounds import CHECKS  # noqa: E402


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("check", CHECKS)
def test_whole_rounds(gpu, check, kind):
    """Chosen by the engine itself; greedy answers token by token, near ties included."""

    def ladder(common: Mapping[str, Any], **options: Any) -> tuple[Stage, ...]:
        where = {"device": "cuda", "dtype": kind, **common}
        return (*(nano(name, **where) for name in ("small", "medium")), nano("large", **where | options))

    asyncio.run(CHECKS[check](ladder))


def test_a_model_that_cannot_be_captured_is_run_pass_by_pass(gpu, caplog, monkeypatch):
    """With a reason in the log, and the same answer."""
    from stepladder.decoding.graphs import Captured

    stage = nano("small", device="cuda")

    async def told() -> str:
        async with running(stage) as engine:
            assert engine._running is not None
            assert bool(engine._running.rounds) == (captured == "yes")
            return (await attempt(engine, stage, ask("What is 3 + 4?", max_tokens=20))).text

    captured = "yes"
    wanted = asyncio.run(told())
    begun = Captured.__init__

    def refusing(self: Any, compute: Any, inputs: Any, *, pool: Any = None, capture: bool) -> None:
        if capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        begun(self, compute, inputs, pool=pool, capture=capture)

    monkeypatch.setattr(Captured, "__init__", refusing)
    captured = "no"
    assert asyncio.run(told()) == wanted
    assert "stage 'small' is run pass by pass: operation not permitted when stream is capturing" in caplog.text
