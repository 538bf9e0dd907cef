"""The ``torch`` engine from end to end: over models that say what they are told to, and over nano's weights."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI

import stepladder
from stepladder import config
from stepladder.build import build
from stepladder.decoding.gguf_file import GGUFFile
from stepladder.decoding.loading import Wanted
from stepladder.decoding.memory import GIB, Need
from stepladder.decoding.tokenizer import Tokenizer
from stepladder.engines import torch_models
from stepladder.engines.torch import TorchEngine
from stepladder.engines.torch_settings import read_settings
from stepladder.errors import ConfigError, EngineError, MissingExtraError, ModelFileError
from stepladder.gateway.app import create_app
from stepladder.gateway.server import running as serving
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Attempt, Delta, Request, Stage, Usage
from tiny_models import SPECIALS, letters
from torch_fakes import (
    END,
    LETTERS,
    NANO,
    VOCAB,
    FakeModel,
    Head,
    answers,
    ask,
    attempt,
    codes,
    collect,
    instead_of_files,
    nano,
    running,
    stage,
)

TEXT = "the quick brown fox jumps over the lazy dog."
Install = Callable[..., dict[str, FakeModel]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts models under names; a string is what one answers."""

    def put(*, tokenizers: Any = None, **says: Any) -> dict[str, FakeModel]:
        models = {
            name: say if isinstance(say, FakeModel) else FakeModel(say, parameters=100 + place)
            for place, (name, say) in enumerate(says.items())
        }
        instead_of_files(monkeypatch, models, tokenizers)
        return models

    return put


def chained(**options: Any) -> tuple[Stage, Stage]:
    return stage("low"), stage("top", **{"speculation": ["low"], "draft_length": 5, **options})


def read(found: Attempt) -> str:
    assert found.fault is None, found.fault
    return found.text


def threads() -> int:
    return sum(thread.name == "stepladder-torch" for thread in threading.enumerate())


# ── where an answer ends ─────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("text", ["", "a", "abcd", "abcdefgh"])
async def test_an_end_anywhere_in_a_block(install: Install, text: str, length: int) -> None:
    models = install(low=text, top=text)
    low, top = chained(draft_length=length)
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask())
    assert (read(found), found.finish_reason) == (text, "stop")
    assert found.usage.output_tokens == len(text) + 1
    assert found.speculation is not None
    assert found.speculation.chain == ("low", "top")
    assert found.speculation.passes["top"] == math.ceil((len(text) + 1) / (length + 1))
    assert all(not model.rows for model in models.values())


@pytest.mark.parametrize("ends_early", ["low", "top"])
async def test_an_end_that_only_one_of_the_two_writes(install: Install, ends_early: str) -> None:
    install(**{name: "abc" if name == ends_early else "abcdef" for name in ("low", "top")})
    low, top = chained()
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask())
    assert (read(found), found.finish_reason) == ("abc" if ends_early == "top" else "abcdef", "stop")


@pytest.mark.parametrize("most", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("length", [1, 5, 16])
async def test_the_most_tokens_within_a_block(install: Install, most: int, length: int) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained(draft_length=length)
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask(max_tokens=most))
        assert (read(found), found.finish_reason) == (TEXT[:most], "length")
        assert found.usage.output_tokens == most


@pytest.mark.parametrize("length", [2, 5, 16])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("quick", "the "),
        ("k b", "the quic"),
        (" ", "the"),
        (["zzz", "brown", "own fox"], "the quick "),
        (["own fox", "brown fox jumps"], "the quick br"),
        ("dog.", "the quick brown fox jumps over the lazy "),
        ("never", TEXT),
        (TEXT, ""),
    ],
)
async def test_stop_strings_within_blocks_and_over_their_borders(
    install: Install, stop: Any, text: str, length: int
) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained(draft_length=length)
    async with running(low, top) as engine:
        whole = await attempt(engine, top, ask(stop=stop))
        *deltas, streamed = await collect(engine, top, ask(stop=stop, stream=True))
    assert (read(whole), whole.finish_reason) == (text, "stop")
    assert isinstance(streamed, Attempt)
    assert (streamed.text, streamed.usage) == (whole.text, whole.usage)
    assert "".join(delta.text for delta in deltas) == text
    shortest = min(
        [len(text) + len(each) for each in ([stop] if isinstance(stop, str) else stop) if each in TEXT] or [0]
    )
    assert whole.usage.output_tokens == (len(TEXT) + 1 if stop == "never" else shortest)


async def test_a_piece_that_may_begin_a_stop_string_is_held_back_and_told_in_the_end(install: Install) -> None:
    install(top="abcab")
    top = stage("top")
    async with running(top) as engine:
        *deltas, found = await collect(engine, top, ask(stop="abd", stream=True))
    assert "".join(delta.text for delta in deltas) == "abcab"
    assert isinstance(found, Attempt)
    assert found.text == "abcab"
    assert "ab" not in [delta.text for delta in deltas[:-1]]


async def test_characters_of_several_tokens_come_whole(install: Install) -> None:
    text = "naïve – 猫🧗!"
    install(low=text, top=text)
    low, top = chained(draft_length=3)
    async with running(low, top) as engine:
        *deltas, found = await collect(engine, top, ask(stream=True))
        cut = await attempt(engine, top, ask(max_tokens=3))
        stopped = await attempt(engine, top, ask(stop="猫🧗"))
    assert "".join(delta.text for delta in deltas) == text
    assert all("\ufffd" not in delta.text for delta in deltas)
    assert isinstance(found, Attempt)
    assert found.text == text
    assert read(cut) == "na\ufffd"
    assert read(stopped) == "naïve – "


async def test_a_context_that_is_filled(install: Install) -> None:
    models = install(low=answers(TEXT, end=False), top=answers(TEXT, end=False))
    low, top = stage("low", context=40), stage("top", context=40, speculation=["low"], draft_length=6)
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask("x" * 20, max_tokens=1000))
        assert (found.fault, found.finish_reason) == (None, "length")
        assert found.usage.prompt_tokens + found.usage.output_tokens == 40
        room = 40 - found.usage.prompt_tokens + 20
        last = await attempt(engine, top, ask("x" * (room - 1)))
        assert (last.fault, last.finish_reason, last.usage.output_tokens) == (None, "length", 1)
        for text in ("x" * room, "x" * 500):
            refused = await attempt(engine, top, ask(text))
            assert refused.fault is not None
            assert refused.fault.kind == "context"
            assert "context" in refused.fault.message
            assert "'top'" in refused.fault.message
    assert not models["top"].rows


async def test_a_drafter_with_less_context_than_its_target(install: Install) -> None:
    install(low=TEXT, top=TEXT)
    low, top = stage("low", context=30), stage("top", context=200, speculation=["low"], draft_length=4)
    async with running(low, top) as engine:
        for prompt in ("x", "x" * 15, "x" * 60):
            assert read(await attempt(engine, top, ask(prompt))) == TEXT


# ── chains ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize(
    ("chain", "length"),
    [
        (["low"], 4),
        (["ngram"], 4),
        (["low", "mid"], 4),
        (["ngram", "low"], 3),
        (["ngram", "low", "mid"], 2),
        (["low"], "auto"),
        ("off", "auto"),
        ("auto", "auto"),
    ],
)
async def test_a_greedy_text_is_the_same_under_every_chain(
    install: Install, chain: Any, length: Any, rule: str
) -> None:
    """Drafters that are right now and then, and wrong in between."""
    text = "to be or not to be, that is the question: to be or not to be."
    install(low=text.replace("not", "now"), mid=text.replace("question", "quest"), top=text)
    top = stage("top", speculation=chain, draft_length=length, verification=rule)
    stages = (stage("low"), stage("mid"), top)
    async with running(*stages) as engine:
        for _ in range(3):
            found = await attempt(engine, top, ask())
            assert read(found) == text
    told = found.speculation
    assert told is not None
    assert told.chain[-1] == "top"
    if isinstance(chain, list):
        assert told.chain == (*chain, "top")
        assert {(pair.drafter, pair.target) for pair in told.pairs} >= {(chain[-1], "top")}
    for pair in told.pairs:
        assert 0 <= pair.accepted <= pair.drafted


def hashing(wrong: int = 0) -> Callable[[Any], int]:
    """Says what depends on every token that stands in its row; ``wrong`` times in ten something else."""

    def say(tokens: Any) -> int:
        number = zlib.crc32(bytes(token % 256 for token in tokens))
        return codes("abcdefgh")[(number // 10 + (number % 10 < wrong)) % 8]

    return say


@pytest.mark.parametrize("chain", [["low"], ["low", "mid"], ["ngram", "low"], ["ngram", "low", "mid"], "auto"])
async def test_what_is_written_follows_from_every_token_read(install: Install, chain: Any) -> None:
    """A row in which one token of a draft that was taken back still stands leads to another text."""
    install(
        low=FakeModel(hashing(4)), mid=FakeModel(hashing(2), parameters=200), top=FakeModel(hashing(), parameters=300)
    )
    alone, top = stage("top", speculation="off"), stage("top", speculation=chain)
    questions = [f"question {number}" for number in range(6)]
    async with running(stage("low"), stage("mid"), alone) as engine:
        own = [read(await attempt(engine, alone, ask(text, max_tokens=60))) for text in questions]
    async with running(stage("low"), stage("mid"), top) as engine:
        many = await asyncio.gather(*(attempt(engine, top, ask(text, max_tokens=60)) for text in questions))
        climbed = await attempt(engine, top, ask(questions[0], max_tokens=60), lower(own[0][:20] + "xyz", "length"))
    assert [read(each) for each in many] == own
    assert read(climbed) == own[0]


async def test_a_drafter_of_its_own(install: Install) -> None:
    install(small=TEXT, low=TEXT, top=TEXT)
    low = stage("low")
    top = stage("top", drafter="small", speculation=["top-drafter"], draft_length=5)
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask())
        assert read(found) == TEXT
        assert found.speculation is not None
        assert found.speculation.chain == ("top-drafter", "top")
    install(small=TEXT, low=TEXT, top=TEXT)
    async with running(stage("low", drafter="small"), stage("top")) as engine:
        assert engine._running is not None
        row = engine._running.row
        assert row.names == ("low-drafter", "low", "top")
        assert row.below[row.index("low")] == (0,)
        assert row.below[row.index("top")] == (1,)  # another stage's drafter drafts for nobody else


def other_letters() -> Any:
    return letters([*SPECIALS, "x", *(chr(256 + number) for number in range(255))])


async def test_models_with_other_tokens_draft_only_where_nobody_asked_for_it(install: Install) -> None:
    install(low=TEXT, top=TEXT, tokenizers={"low": other_letters()})
    low, top = stage("low"), stage("top")
    async with running(low, top) as engine:
        assert engine._running is not None
        assert engine._running.row.below == ((), ())
        for _ in range(4):
            found = await attempt(engine, top, ask())
            assert read(found) == TEXT
            assert found.speculation is not None
            assert "low" not in found.speculation.passes
    engine = TorchEngine(chained(), trial_s=0.0)
    with pytest.raises(ConfigError, match=r"token 4.*speculation needs one tokenizer"):
        await engine.start()
    assert threads() == 0
    found = await attempt(engine, top, ask())  # it tries again, and says so
    assert found.fault is not None
    assert found.fault.kind == "crash"
    assert "one tokenizer" in found.fault.message
    assert (await attempt(engine, low, ask())).is_answer
    await engine.close()


async def test_the_first_answer_starts_what_was_not_started(install: Install) -> None:
    install(low=TEXT, top=TEXT)
    engine = TorchEngine((stage("low"), stage("top")), trial_s=0.0)
    try:
        assert read(await attempt(engine, stage("top"), ask())) == TEXT
    finally:
        await engine.close()
    with pytest.raises(EngineError, match="was closed"):
        await attempt(engine, stage("top"), ask())


async def test_a_first_answer_whose_model_cannot_be_loaded_is_a_failed_attempt(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever loading raises; and the next answer tries again."""
    models = install(top=TEXT)
    engine, top = TorchEngine((stage("top"),), trial_s=0.0), stage("top")
    models["top"].fail = RuntimeError("no memory is left")
    found = await attempt(engine, top, ask())
    assert found.fault is not None
    assert found.fault.kind == "crash"
    assert "'top' cannot be loaded: RuntimeError: no memory is left" in found.fault.message
    assert read(await attempt(engine, top, ask())) == TEXT
    await engine.close()


async def test_a_stage_that_cannot_be_loaded_keeps_no_other_from_serving(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither when its files cannot be read nor later; who wants its drafts by name fails with it."""
    install(low=TEXT, top=TEXT, asked=TEXT)
    stages = stage("low"), stage("bad"), stage("top"), stage("asked", speculation=["bad"])
    for method in ("look", "load"):
        with monkeypatch.context() as broken:
            _break(broken, "bad", method)
            engine = TorchEngine(stages, trial_s=0.0)
            for each in (stages[0], stages[2]):
                assert read(await attempt(engine, each, ask())) == TEXT
                assert engine.expected_cost(each, 10, 10) is not None
            assert engine.expected_cost(stages[1], 10, 10) is None
            for each, told in ((stages[1], "OSError: it is gone"), (stages[3], "its drafter 'bad' cannot be loaded")):
                found = await attempt(engine, each, ask())
                assert found.fault is not None
                assert found.fault.kind == "crash"
                assert f"'{each.name}' cannot be loaded: " in found.fault.message
                assert told in found.fault.message
            await engine.close()
            assert "stage 'bad' cannot be served: OSError: it is gone" in caplog.text
            with pytest.raises(OSError, match="it is gone"):  # a start is strict
                await engine.start()
            assert threads() == 0


def _break(monkeypatch: pytest.MonkeyPatch, source: str, method: str) -> None:
    """Have a look at a model's files, or their load, fail."""
    look, load = torch_models.look, Head.load

    def broken_look(wanted: Wanted) -> Any:
        if wanted.source == source and method == "look":
            raise OSError("it is gone")
        return look(wanted)

    def broken_load(head: Head, **settings: Any) -> Any:
        if head.wanted.source == source:
            raise OSError("it is gone")
        return load(head, **settings)

    monkeypatch.setattr(torch_models, "look", broken_look)
    monkeypatch.setattr(Head, "load", broken_load)


async def test_a_prompt_is_split_into_tokens_beside_the_loop(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(top=TEXT)
    split, go_on, real = asyncio.Event(), threading.Event(), Tokenizer.chat
    loop, top = asyncio.get_running_loop(), stage("top", total_timeout_s=30.0)

    def slow(self: Tokenizer, messages: Any) -> list[int]:
        loop.call_soon_threadsafe(split.set)
        assert go_on.wait(20), "the loop was held up"
        return real(self, messages)

    monkeypatch.setattr(Tokenizer, "chat", slow)
    async with running(top) as engine:
        asked = asyncio.create_task(attempt(engine, top, ask()))
        await split.wait()
        go_on.set()
        assert read(await asked) == TEXT
        for event in (split, go_on):
            event.clear()
        leaving, late = (asyncio.create_task(attempt(engine, top, ask())) for _ in range(2))
        await split.wait()
        leaving.cancel()
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0.05)
        go_on.set()
        await closing
        with pytest.raises(EngineError, match="was closed"):
            await late
        assert leaving.cancelled() or (await asyncio.wait((leaving,)) and leaving.cancelled())
    assert threads() == 0


async def test_time_may_run_out_while_a_prompt_is_split(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(top=TEXT)
    go_on, top = threading.Event(), stage("top", total_timeout_s=0.2)
    monkeypatch.setattr(Tokenizer, "chat", lambda *_: go_on.wait(20) and [1])
    async with running(top) as engine:
        found = await attempt(engine, top, ask())
        go_on.set()
    assert found.fault is not None
    assert found.fault.kind == "timeout"
    assert "no tokens of the prompt" in found.fault.message


async def test_models_are_loaded_once_however_many_ask_and_leave(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, loads = install(top=TEXT), []
    load = Head.load
    monkeypatch.setattr(Head, "load", lambda *args, **kwargs: loads.append(1) or load(*args, **kwargs))
    engine, top = TorchEngine((stage("top"),), trial_s=0.0), stage("top")
    models["top"].gate.clear()
    asked = [asyncio.create_task(attempt(engine, top, ask())) for _ in range(4)]
    await asyncio.sleep(0.05)
    for each in asked[:3]:
        each.cancel()
    await asyncio.sleep(0.05)
    late = asyncio.create_task(attempt(engine, top, ask()))
    await asyncio.sleep(0.05)
    models["top"].gate.set()
    assert [read(await each) for each in (asked[3], late)] == [TEXT, TEXT]
    assert loads == [1]
    await engine.close()


async def test_a_first_answer_waits_for_its_model_no_longer_than_it_may(install: Install) -> None:
    models = install(top=TEXT)
    top = stage("top", total_timeout_s=0.1)
    engine = TorchEngine((top,), trial_s=0.0)
    models["top"].gate.clear()
    found = await attempt(engine, top, ask())
    models["top"].gate.set()
    assert found.fault is not None
    assert (found.fault.kind, "no loaded model" in found.fault.message) == ("timeout", True)
    await engine.close()
    assert threads() == 0


def test_models_that_do_not_fit_together_are_refused_before_any_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_models, "look", lambda wanted: Head(wanted, {}, need=Need(2 * GIB, GIB)))
    monkeypatch.setattr(Head, "load", lambda *_, **__: pytest.fail("nothing may be loaded"))
    with pytest.raises(
        EngineError, match=r"'low', 'top' needs 6.00 GiB .* on cpu, where 5.00 GiB .* 1.00 GiB are miss"
    ):
        torch_models.load_row(read_settings((stage("low"), stage("top"))), probe=lambda _: 5 * GIB)


async def test_close_while_a_first_answer_waits_for_its_model(install: Install) -> None:
    models = install(top=TEXT)
    engine, top = TorchEngine((stage("top"),), trial_s=0.0), stage("top")
    models["top"].gate.clear()
    asked = asyncio.create_task(attempt(engine, top, ask()))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    models["top"].gate.set()
    found = (await asyncio.gather(asked, closing, return_exceptions=True))[0]
    closed = isinstance(found, EngineError) or (isinstance(found, Attempt) and found.fault is not None)
    assert closed, found
    assert threads() == 0


@pytest.mark.parametrize(("low", "top"), [(0, 40), (40, 0), (10, 40)])
async def test_models_whose_logits_are_padded_differently_are_cut_to_the_same(
    install: Install, low: int, top: int
) -> None:
    models = install(
        low=FakeModel(TEXT.replace("lazy", "busy"), vocab=VOCAB + low, sure=6.0),
        top=FakeModel(TEXT, vocab=VOCAB + top, parameters=200),
    )
    below, above = chained()
    async with running(below, above) as engine:
        assert {model.vocab for model in models.values()} == {VOCAB + min(low, top)}
        assert read(await attempt(engine, above, ask(temperature=1))) == TEXT


async def test_a_drafter_no_smaller_than_its_target_is_warned_of(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(low=FakeModel(TEXT, parameters=200), top=FakeModel(TEXT, parameters=100))
    low, top = chained()
    with caplog.at_level(logging.WARNING, "stepladder.engines"):
        async with running(low, top) as engine:
            assert read(await attempt(engine, top, ask())) == TEXT
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'low' (200 parameters) drafts for 'top'" in caplog.text


# ── a lower answer as a draft ────────────────────────────────────────────────


def lower(text: str, finish: str = "stop") -> Attempt:
    return Attempt("low", text, Usage(5, len(text)), finish_reason=finish)


@pytest.mark.parametrize("temperature", [0, 1.0])
async def test_a_climbed_draft_that_is_right_is_kept_in_one_pass(install: Install, temperature: float) -> None:
    install(low=TEXT, top=TEXT)
    top = stage("top", speculation="off")
    async with running(stage("low"), top) as engine:
        asked = ask(temperature=temperature)
        alone, climbed = await attempt(engine, top, asked), await attempt(engine, top, asked, lower(TEXT))
    assert read(alone) == read(climbed) == TEXT
    assert alone.speculation is not None
    assert climbed.speculation is not None
    assert alone.speculation.climbed == 0
    assert (climbed.speculation.climbed, climbed.speculation.kept) == (len(TEXT) + 1, len(TEXT) + 1)
    assert climbed.speculation.saved_s > 0
    assert climbed.speculation.passes == {"top": 1}
    assert alone.speculation.passes == {"top": len(TEXT) + 1}
    assert climbed.usage == alone.usage
    assert climbed.speculation.pairs == ()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(
    ("draft", "kept"),
    [
        ("X" + TEXT, 0),
        (TEXT[:10] + "X" + TEXT[11:], 10),
        (TEXT[:10], 10),
        (TEXT + " and more", len(TEXT)),
        ("🧗" * 60, 0),
        ("", 0),
    ],
)
async def test_a_climbed_draft_is_kept_as_far_as_it_agrees(
    install: Install, draft: str, kept: int, temperature: float
) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained()
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask(temperature=temperature), lower(draft, "length"))
        *deltas, streamed = await collect(engine, top, ask(temperature=temperature, stream=True), lower(draft))
    assert read(found) == TEXT
    assert found.speculation is not None
    assert (found.speculation.climbed, found.speculation.kept) == (len(codes(draft)), kept)
    assert found.speculation.saved_s >= 0
    assert "".join(delta.text for delta in deltas) == TEXT
    assert isinstance(streamed, Attempt)
    assert streamed.text == TEXT


async def test_a_climbed_draft_longer_than_what_may_be_written(install: Install) -> None:
    install(top=TEXT)
    top = stage("top", context=40)
    async with running(top) as engine:
        for most in (1, 5, 500):
            found = await attempt(engine, top, ask(max_tokens=most), lower(TEXT * 4))
            assert found.fault is None
            assert found.usage.output_tokens == min(most, 40 - found.usage.prompt_tokens)
            assert found.speculation is not None
            assert found.speculation.kept == found.speculation.climbed == found.usage.output_tokens
        stopped = await attempt(engine, top, ask(stop="quick"), lower(TEXT))
        assert read(stopped) == "the "
        assert stopped.speculation is not None
        assert stopped.speculation.kept == len("the quick")


# ── deferral ─────────────────────────────────────────────────────────────────


async def test_deferral_is_off_unless_asked_for_and_says_what_it_moved(install: Install) -> None:
    install(low="cheap answer", top="dear answer!")
    low, top = chained()
    async with running(low, top) as engine:
        plain = await attempt(engine, top, ask())
        assert (read(plain), plain.speculation.moved if plain.speculation else 1) == ("dear answer!", None)
    install(low="cheap answer", top="dear answer!")
    low, top = chained(deferral="opt", deferral_slack=1.0)
    async with running(low, top) as engine:
        moved = await attempt(engine, top, ask())
        assert read(moved) == "cheap answer"
        assert moved.speculation is not None
        assert moved.speculation.moved == pytest.approx(12 / 13)  # of the end both are sure


async def test_the_slack_of_deferral_follows_from_the_price_in_force(install: Install) -> None:
    install(low=FakeModel("cheap answer", sure=3.0), top=FakeModel("dear answer!", sure=9.0))
    low, top = stage("low"), stage("top", cost=1.0, speculation=["low"], draft_length=5, deferral="diff")
    async with running(low, top) as engine:
        assert read(await attempt(engine, top, ask(lam=1000.0))) == "dear answer!"
        assert read(await attempt(engine, top, ask(lam=0.5))) == "cheap answer"
        for lam in (0.0, None):
            refused = await attempt(engine, top, ask(lam=lam))
            assert refused.fault is not None
            assert refused.fault.kind == "bad_request"
            assert "λ" in refused.fault.message


# ── log probabilities, streams, seeds ────────────────────────────────────────


@pytest.mark.parametrize("chain", ["off", ["small"]])
async def test_log_probabilities_are_those_of_a_fresh_pass(chain: Any) -> None:
    small, top = nano("small"), nano("medium", speculation=chain, draft_length="auto" if chain == "off" else 4)
    async with running(small, top) as engine:
        asked = ask("What is 12 + 7?", logprobs=True, top_logprobs=3, max_tokens=12)
        found = await attempt(engine, top, asked)
        assert engine._running is not None
        row = engine._running.row
        tokenizer = row.tokenizer(1)
        prompt = tokenizer.chat([{"role": "user", "content": "What is 12 + 7?"}])
        fresh = fresh_logprobs(top.model, prompt, found, tokenizer)
        assert row.models[1].vocab == fresh.shape[-1]
        raw = await attempt(
            engine,
            top,
            Request("r", prompt="The capital of", params={"temperature": 0, "logprobs": 2, "max_tokens": 4}),
        )
    assert found.raw is not None
    told = found.raw["choices"][0]["logprobs"]["content"]
    assert found.logprobs == pytest.approx([each["logprob"] for each in told])
    assert len(told) == found.usage.output_tokens
    for each, law in zip(told, fresh, strict=True):
        best = law.topk(3)
        assert [top["logprob"] for top in each["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert each["logprob"] == pytest.approx(best.values[0].item(), abs=1e-4)
        assert each["token"] == each["top_logprobs"][0]["token"]
        assert bytes(each["bytes"]).decode() == each["token"]
    assert raw.raw is not None
    body = raw.raw["choices"][0]
    assert "".join(body["logprobs"]["tokens"]).startswith(body["text"])
    assert len(body["logprobs"]["token_logprobs"]) == 4
    assert body["logprobs"]["text_offset"][0] == 0


def fresh_logprobs(model: str, prompt: list[int], found: Attempt, tokenizer: Any) -> torch.Tensor:
    """From a model of transformers' own, read in one pass without any cache."""
    network = GGUFFile(Path(model)).network(torch.float32).eval()
    written = tokenizer.encode(found.text)
    tokens = [*prompt, *written, tokenizer.end][: len(prompt) + found.usage.output_tokens]
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : len(tokens) - 1]


async def test_streams_tell_log_probabilities_too(install: Install) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained()
    async with running(low, top) as engine:
        *deltas, found = await collect(engine, top, ask(stream=True, logprobs=True))
        plain = await attempt(engine, top, ask())
    assert isinstance(found, Attempt)
    assert "".join(delta.text for delta in deltas) == found.text == TEXT
    chunks = [delta.raw for delta in deltas if isinstance(delta, Delta) and delta.raw is not None]
    told = [each["token"] for chunk in chunks for each in chunk["choices"][0]["logprobs"]["content"]]
    assert "".join(told).startswith(TEXT)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found.logprobs is not None
    assert len(found.logprobs) == found.usage.output_tokens
    assert found.first_token_s is not None
    assert found.first_token_s <= found.seconds
    assert (plain.logprobs, plain.raw, plain.first_token_s) == (None, None, None)


@pytest.mark.parametrize(
    "options",
    [{}, {"speculation": "off"}, {"speculation": ["low"], "draft_length": 3}, {"speculation": ["ngram", "low"]}],
)
async def test_the_same_seed_gives_the_same_text(install: Install, options: Any) -> None:
    """Also where a planner measures: what it measured must not be seen in a text that was asked for with its seed."""
    install(low=FakeModel(TEXT, sure=5.0), top=FakeModel(TEXT, sure=4.0))
    low, top = stage("low"), stage("top", **options)
    async with running(low, top) as engine:

        async def write(**params: Any) -> str:
            return read(await attempt(engine, top, ask(temperature=1.2, max_tokens=40, **params)))

        first = await write(seed=7)
        for _ in range(4):
            await write()
        again = await asyncio.gather(*(write(seed=7) for _ in range(4)))
        others = {await write(seed=seed) for seed in range(5)}
        free = {await write() for _ in range(5)}
    assert set(again) == {first}
    assert len(others) > 1
    assert len(free) > 1


async def test_stages_draw_from_streams_of_their_own(install: Install) -> None:
    """With one seed for a whole climb: who judges a lower answer must not draw what it was drawn from."""
    even = math.log(VOCAB - 1)  # half of the mass on what is said
    install(low=FakeModel(TEXT, sure=even), top=FakeModel(TEXT, sure=even))
    low, top = stage("low"), stage("top")
    async with running(low, top) as engine:
        pairs = [
            [await attempt(engine, each, ask(temperature=1, max_tokens=1, seed=seed)) for each in (low, top)]
            for seed in range(100)
        ]
    same = sum(one.text == other.text for one, other in pairs)
    assert 10 < same < 45  # a quarter, and not all


async def test_companions_do_not_change_a_greedy_text() -> None:
    questions = ["What is 12 + 7?", "What is the capital of France?", "Reverse the word lamp.", "What is 9 - 4?"] * 2
    small, top = nano("small"), nano("medium", speculation=["small"], draft_length=4)
    async with running(small, top) as engine:
        alone = [read(await attempt(engine, top, ask(text, max_tokens=16))) for text in questions]
        many = await asyncio.gather(*(attempt(engine, top, ask(text, max_tokens=16)) for text in questions))
    assert [read(each) for each in many] == alone


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-3, 1e300])
async def test_temperatures_far_out(install: Install, temperature: float) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained()
    async with running(low, top) as engine:
        found = await attempt(engine, top, ask(temperature=temperature, max_tokens=20, seed=1))
    assert found.fault is None
    assert (found.text == TEXT[:20]) == (temperature < 1)


async def test_a_model_that_gives_no_numbers(install: Install) -> None:
    models = install(top=FakeModel(TEXT, sure=float("nan")))
    top = stage("top")
    async with running(top) as engine:
        found = await attempt(engine, top, ask(temperature=1))
        assert found.fault is not None
        assert (found.fault.kind, "no numbers" in found.fault.message) == ("server", True)
        models["top"].sure = 30.0
        assert read(await attempt(engine, top, ask(temperature=1, seed=1))) == TEXT


# ── the caller leaves, time runs out, the engine closes ──────────────────────


async def test_a_hundred_callers_who_leave_within_a_round(install: Install) -> None:
    models = install(low=TEXT, top=TEXT)
    low, top = chained(n_parallel=3)
    low = stage("low", n_parallel=3)
    async with running(low, top) as engine:
        for turn in range(100):
            events = engine.generate(ask(stream=True, max_tokens=1000), top)
            if turn % 3:
                await anext(events)
            elif turn % 2:
                task = asyncio.create_task(anext(events))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await events.aclose()
        for model in models.values():
            model.most_open = 0
        found = await asyncio.gather(*(attempt(engine, top, ask()) for _ in range(9)))
        assert {read(each) for each in found} == {TEXT}
        assert models["top"].most_open == 3
    assert all(not model.rows for model in models.values())


async def test_time_runs_out(install: Install) -> None:
    models = install(low=answers(TEXT, end=False), top=answers(TEXT, end=False))
    models["top"].wait_s = 0.02
    low, top = stage("low"), stage("top", total_timeout_s=0.3, n_parallel=1, speculation=["low"])
    async with running(low, top) as engine:
        slow, waiting = await asyncio.gather(*(attempt(engine, top, ask(max_tokens=10_000)) for _ in range(2)))
        for found in (slow, waiting):
            assert found.fault is not None
            assert (found.fault.kind, "total_timeout_s" in found.fault.message) == ("timeout", True)
        assert slow.text.startswith(TEXT[:4])
        models["top"].wait_s = 0.0
        models["top"].say = answers("ok")
        assert read(await attempt(engine, top, ask())) == "ok"
    assert all(not model.rows for model in models.values())


async def test_a_reader_who_stops_reading_holds_no_place_beyond_the_time_limit(install: Install) -> None:
    install(top=TEXT)
    top = stage("top", total_timeout_s=0.3, n_parallel=1)
    async with running(top) as engine:
        idle = engine.generate(ask(stream=True), top)
        await anext(idle)
        await asyncio.sleep(0.4)
        assert read(await attempt(engine, top, ask())) == TEXT
        await idle.aclose()


async def test_close_while_answers_are_at_work_and_waiting(install: Install) -> None:
    models = install(low=answers(TEXT, end=False), top=answers(TEXT, end=False))
    models["top"].wait_s = 0.01
    low, top = stage("low"), stage("top", n_parallel=2, speculation=["low"])
    engine = TorchEngine((low, top), trial_s=0.0)
    await engine.start()
    tasks = [asyncio.create_task(attempt(engine, top, ask(max_tokens=10_000))) for _ in range(4)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await engine.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    for each in found[:2]:
        assert isinstance(each, Attempt)
        assert each.fault is not None
        assert (each.fault.kind, "was closed" in each.fault.message) == ("cancelled", True)
    assert all(isinstance(each, EngineError) and "was closed" in str(each) for each in found[2:])
    assert all(not model.rows for model in models.values())
    assert threads() == 0
    with pytest.raises(EngineError, match="was closed"):
        await attempt(engine, top, ask())
    await engine.close()


async def test_start_twice_and_again_after_close(install: Install) -> None:
    install(top=TEXT)
    top = stage("top")
    engine = TorchEngine((top,), trial_s=0.0)
    assert engine.expected_cost(top, 10, 10) is None
    await asyncio.gather(engine.start(), engine.start())
    assert threads() == 1
    await engine.start()
    assert read(await attempt(engine, top, ask())) == TEXT
    await engine.close()
    assert threads() == 0
    await engine.start()
    assert read(await attempt(engine, top, ask())) == TEXT
    await asyncio.gather(engine.close(), engine.close())
    assert threads() == 0


async def test_close_while_the_models_are_loaded_leaves_no_thread(install: Install) -> None:
    models = install(top=TEXT)
    top = stage("top")
    engine = TorchEngine((top,), trial_s=0.0)
    models["top"].gate.clear()
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    models["top"].gate.set()
    await asyncio.gather(starting, closing)
    assert threads() == 0
    with pytest.raises(EngineError, match="was closed"):
        await attempt(engine, top, ask())


async def test_a_start_that_is_given_up_leaves_no_thread(install: Install) -> None:
    models = install(top=TEXT)
    engine = TorchEngine((stage("top"),), trial_s=0.0)
    models["top"].gate.clear()
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    starting.cancel()
    models["top"].gate.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert threads() == 0
    await engine.start()
    assert threads() == 1
    await engine.close()


# ── what goes wrong ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["low", "top"])
async def test_an_error_of_a_model_fails_those_answers_alone(install: Install, where: str) -> None:
    models = install(low=TEXT, top=TEXT)
    low, top = chained()
    async with running(low, top) as engine:
        models[where].fail = RuntimeError("out of paper")
        failed = await asyncio.gather(*(attempt(engine, top, ask()) for _ in range(2)))
        faults = [each.fault for each in failed if each.fault is not None]
        assert faults
        assert {fault.kind for fault in faults} == {"server"}
        assert all("'top'" in fault.message and "out of paper" in fault.message for fault in faults)
        assert read(await attempt(engine, top, ask())) == TEXT
        assert all(not model.rows for model in models.values())


async def test_an_answer_that_cannot_be_told_of_does_not_end_the_thread(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepladder.engines import torch_text

    install(top=TEXT)
    top = stage("top")
    async with running(top) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(torch_text, "whole_body", lambda *_: 1 / 0)
            found = await attempt(engine, top, ask(logprobs=True))
        assert found.fault is not None
        assert "ZeroDivisionError" in found.fault.message
        assert read(await attempt(engine, top, ask(logprobs=True))) == TEXT


async def test_a_batch_that_breaks_does_not_end_the_thread(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepladder.decoding.batch import Batch

    models = install(top=TEXT)
    top = stage("top")
    async with running(top) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", lambda _: 1 / 0)
            found = await attempt(engine, top, ask())
        assert found.fault is not None
        assert found.fault.kind == "server"
        assert read(await attempt(engine, top, ask())) == TEXT
    assert not models["top"].rows


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"n": 2}, "n: the engine 'torch' cannot do 2; leave it out, or 1"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"frequency_penalty": 0.5}, "frequency_penalty: the engine 'torch' cannot do 0.5; leave it out, or 0"),
        ({"presence_penalty": -1}, "presence_penalty: "),
        ({"logit_bias": {"5": 1}}, "logit_bias: "),
        ({"temperature": -1}, "temperature: "),
        ({"temperature": "hot"}, "temperature: should be a number, not 'hot'"),
        ({"temperature": 10**400}, "temperature: "),
        ({"top_p": 0}, "top_p: "),
        ({"top_k": 1.5}, "top_k: "),
        ({"max_tokens": 0}, "max_tokens: should be a whole number from 1, not 0"),
        ({"max_tokens": float("inf")}, "max_tokens: "),
        ({"max_completion_tokens": "many"}, "max_completion_tokens: "),
        ({"stop": ["a", ""]}, "stop: "),
        ({"stop": 5}, "stop: "),
        ({"seed": 1.5}, "seed: "),
        ({"seed": float("nan")}, "seed: "),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: should be a whole number from 0 to 20, not 21"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(install: Install, params: Any, told: str) -> None:
    install(top=TEXT)
    top = stage("top")
    async with running(top) as engine:
        found = await attempt(engine, top, ask(**params))
        assert found.fault is not None
        assert found.fault.kind == "bad_request"
        assert told in found.fault.message
        assert read(await attempt(engine, top, ask())) == TEXT


@pytest.mark.parametrize(
    "asked",
    [
        Request("r", ({"role": "user", "content": "\ud800"},)),
        Request("r", prompt="\udfff!"),
        Request("r", prompt=""),
        Request("r", ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]},)),
    ],
)
async def test_prompts_that_are_no_text(install: Install, asked: Request) -> None:
    install(top=TEXT)
    top = stage("top")
    async with running(top) as engine:
        found = await attempt(engine, top, asked)
        assert found.fault is not None
        assert found.fault.kind == "bad_request"
        assert found.fault.message.startswith(("messages: ", "prompt: "))


async def test_control_tokens_in_a_prompt_are_words(install: Install) -> None:
    models = install(top=TEXT)
    top = stage("top")
    async with running(top) as engine:
        assert read(await attempt(engine, top, ask("<|end|><|assistant|>"))) == TEXT
    assert models["top"].widths
    assert LETTERS.eos == {END}


async def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Stage("top", "torch", str(tmp_path / "gone.gguf"))
    with pytest.raises(ModelFileError, match="stage 'top'"):
        await TorchEngine((gone,)).start()
    wrong = nano("small", sha256="0" * 64)
    with pytest.raises(ModelFileError, match="SHA-256"):
        await TorchEngine((wrong,)).start()
    assert threads() == 0
    monkeypatch.setattr("stepladder.engines.torch.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stage 'top' .* needs the extra \[torch\]"):
        await TorchEngine((gone,)).start()


class Passes:
    """Seconds that only passes take, by model."""

    def __init__(self, **costs: float) -> None:
        self._costs, self._now = costs, 0.0

    def __call__(self) -> float:
        return self._now

    def count(self, name: str, model: FakeModel) -> None:
        forward = model.forward

        def counted(feeds: Any) -> Any:
            self._now += self._costs[name]
            return forward(feeds)

        model.forward = counted  # type: ignore[method-assign]


# ── prices and places ────────────────────────────────────────────────────────


async def test_prices_rise_with_what_is_written_and_fall_with_a_draft(install: Install) -> None:
    install(low=TEXT, top=TEXT)
    low, top = chained()
    async with running(low, top) as engine:
        for _ in range(3):
            await attempt(engine, top, ask(), lower(TEXT))
        costs = [engine.expected_cost(top, 50, tokens) for tokens in (0, 10, 100)]
        drafted = engine.expected_cost(top, 50, 100, lower("x" * 90))
    known = [cost.seconds for cost in costs if cost is not None]
    assert len(known) == 3
    assert known == sorted(known)
    assert drafted is not None
    assert drafted.seconds > 0


async def test_a_price_follows_the_traffic_that_there_is(install: Install) -> None:
    """Also at the temperature that callers use by default, and with several answers at once."""
    models = install(low=FakeModel(TEXT, sure=60.0), top=FakeModel(TEXT, sure=60.0))
    clock = Passes(low=0.1, top=1.0)
    for name, model in models.items():
        clock.count(name, model)
    low, top = stage("low"), stage("top")
    async with running(low, top, timer=clock) as engine:
        plain = engine.expected_cost(top, 10, 100)
        for _ in range(40):
            assert read(await attempt(engine, top, ask(temperature=1))) == TEXT
        drafted = engine.expected_cost(top, 10, 100)
    assert plain is not None
    assert drafted is not None
    assert drafted.seconds < 0.8 * plain.seconds


async def test_prices_may_be_asked_for_while_answers_are_written(install: Install) -> None:
    """From any thread: the planners of all stages read the same step times."""
    install(low=TEXT, top=TEXT)
    low, top = stage("low"), stage("top")
    async with running(low, top) as engine:
        errors: list[BaseException] = []
        over = threading.Event()

        def price() -> None:
            try:
                while not over.is_set():
                    engine.expected_cost(low, 100, 10)
                    engine.expected_cost(top, 100, 10)
                    time.sleep(0.0002)
            except Exception as error:  # noqa: BLE001 - told to the test
                errors.append(error)

        asking = threading.Thread(target=price)
        asking.start()
        for count in range(1, 6):
            await asyncio.gather(*(attempt(engine, each, ask()) for each in (low, top) for _ in range(count)))
        over.set()
        asking.join()
    assert errors == []


async def test_a_busy_lower_stage_does_not_keep_a_higher_one_from_work(install: Install) -> None:
    models = install(low=answers(TEXT, end=False), top=TEXT)
    models["low"].wait_s = 0.001
    low, top = stage("low", total_timeout_s=20), stage("top", speculation="off")
    async with running(low, top) as engine:
        busy = asyncio.create_task(attempt(engine, low, ask(max_tokens=200)))
        await asyncio.sleep(0.01)
        behind = [asyncio.create_task(attempt(engine, low, ask(max_tokens=200))) for _ in range(6)]
        found = await attempt(engine, top, ask(max_tokens=3))
        assert read(found) == TEXT[:3]
        assert not behind[-1].done()
        await asyncio.gather(busy, *behind)


async def test_threads(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: asked.append((n, threading.current_thread().name)))
    install(low=TEXT, top=TEXT)
    low, top = stage("low"), stage("top", threads=1)
    async with running(low, top) as engine:
        assert read(await attempt(engine, top, ask())) == TEXT
    assert [count for count, _ in asked] == [1, 1]
    assert asked[1][1] == "stepladder-torch"
    install(top=TEXT)
    async with running(stage("top")):
        pass
    assert len(asked) == 2


# ── the whole stack ──────────────────────────────────────────────────────────


def ladder_of_nano(folder: Path) -> Path:
    """The embedded ladder's configuration with this engine in the place of the other."""
    text = (NANO / "ladder.toml").read_text("utf-8")
    text = text.replace('engine = "llama"', 'engine = "torch"').replace("context = 512", "context = 128")
    for name in ("nano-small.gguf", "nano-medium.gguf", "nano-large.gguf", "costs.json"):
        text = text.replace(f'"{name}"', f'"{NANO / name}"')
    text = text.replace('artifact = "artifact"', f'artifact = "{NANO / "artifact"}"')
    text = text.replace('name = "large"', 'name = "large"\noptions = { speculation = ["small"], draft_length = 4 }')
    file = folder / "ladder.toml"
    file.write_text(text + '\n[gateway]\nport = 0\n\n[traces]\npath = "traces.sqlite3"\n', "utf-8")
    return file


def test_a_ladder_that_climbs_on_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TorchEngine.__init__.__kwdefaults__, "trial_s", 0.0)
    question = "What is 12 + 7?"
    file = ladder_of_nano(tmp_path)
    with stepladder.load(file, environ={}) as ladder:
        ladder.start()
        routed = ladder.ask(question, temperature=0, lam=1000.0, mode="route")
        assert routed.text.strip() == "19"
        told = routed.attempt.speculation
        assert told is not None
        assert told.chain[-1] == routed.stage
        climbed = [
            attempt
            for text in (question, "What is 31 * 4?", "What is the capital of Italy?")
            for attempt in ladder.ask(text, temperature=0, lam=100_000.0, mode="cascade").trace.attempts[1:]
        ]
        assert climbed
        large = ladder.ask(question, temperature=0, min_stage="large", max_stage="large", max_tokens=16)
        assert large.attempt.speculation is not None
        assert large.attempt.speculation.chain == ("small", "large")
        (pair,) = large.attempt.speculation.pairs
        assert (pair.drafter, pair.target) == ("small", "large")
        assert pair.drafted >= pair.accepted
    for each in climbed:
        assert each.speculation is not None
        assert each.speculation.climbed > 0
        assert 0 <= each.speculation.kept <= each.speculation.climbed
        assert each.speculation.saved_s >= 0
    assert any(each.speculation and each.speculation.kept for each in climbed)
    store = SqliteTraceStore(tmp_path / "traces.sqlite3")
    kept = [attempt.speculation for trace in store.read() for attempt in trace.attempts]
    store.close()
    assert [each.speculation for each in climbed if each.speculation in kept] == [each.speculation for each in climbed]

    router = build(config.read(file))
    with (
        serving(create_app(router, manage_router=True)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        messages: Any = [{"role": "user", "content": question}]
        whole = client.chat.completions.create(model="large", messages=messages, temperature=0, max_tokens=16)
        chunks = client.chat.completions.create(
            model="large", messages=messages, temperature=0, max_tokens=16, stream=True, logprobs=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        with pytest.raises(BadRequestError, match="frequency_penalty"):
            client.chat.completions.create(model="large", messages=messages, frequency_penalty=1)
        with pytest.raises(BadRequestError, match="context"):
            client.chat.completions.create(
                model="large", messages=[{"role": "user", "content": "word " * 300}], temperature=0
            )
    assert whole.choices[0].message.content == streamed == large.text
    assert streamed.strip() == "19"


def test_options_that_cannot_be_are_told_of_with_their_key(tmp_path: Path) -> None:
    file = ladder_of_nano(tmp_path)
    file.write_text(file.read_text("utf-8").replace('["small"]', '["samll"]'), "utf-8")
    with pytest.raises(ConfigError, match=r"speculation: 'samll' cannot draft for 'large'; did you mean 'small'"):
        stepladder.load(file, environ={})
