"""llama.cpp's speculation before any process runs: its options, vocabularies, and the trial that decides on it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_maker import SPECIALS, byte_alphabet, write_gguf
from stepladder.config import PRESETS
from stepladder.engines.llama import LlamaEngine
from stepladder.engines.llama_drafting import Drafter, Wanted, check_drafter, check_room, read_speculation
from stepladder.engines.llama_head import cache_shape, difference, read_vocabulary
from stepladder.engines.llama_trial import LOOKS, MARGIN, MOST_TURNS, Rate, Trial
from stepladder.engines.options import Options
from stepladder.errors import ConfigError, EngineError, ModelFileError
from stepladder.types import Stage

TOKENS = [*SPECIALS, *byte_alphabet()]
OTHERS = (
    Stage("small", "llama", "small.gguf", options={"sha256": "0" * 64}),
    Stage("large", "llama", "large.gguf"),
)


# ── the option ───────────────────────────────────────────────────────────────


def read(value: Any, stages: tuple[Stage, ...] = OTHERS) -> tuple[Wanted, str]:
    """What a value of the option means, and what is said against it."""
    options = Options(stage := Stage("large", "llama", "large.gguf", options={"speculation": value}))
    found = read_speculation(options, stage, stages)
    return found, "; ".join(str(problem) for problem in options.problems)


@pytest.mark.parametrize(
    ("value", "drafter"),
    [
        ("off", None),
        ("ngram", Drafter("ngram")),
        ({"draft": "ngram", "n_match": 3, "n_max": 4}, Drafter("ngram", n_match=3, n_max=4)),
        ({"draft": "small"}, Drafter("small", "small.gguf", "0" * 64, n_max=8, p_min=0.6)),
        ({"draft": "small", "n_max": 2, "p_min": 0}, Drafter("small", "small.gguf", "0" * 64, n_max=2, p_min=0.0)),
    ],
)
def test_spellings(value: Any, drafter: Drafter | None) -> None:
    assert read(value) == (Wanted(drafter), "")


def test_auto_tries_ngrams_and_then_the_stages_below_and_nothing_is_off() -> None:
    small = Drafter("small", "small.gguf", "0" * 64, n_max=8, p_min=0.6)
    assert read("auto") == (Wanted(on_trial=(Drafter("ngram"), small)), "")
    assert read("auto", OTHERS[::-1]) == (Wanted(on_trial=(Drafter("ngram"),)), "")
    stage = Stage("large", "llama", "large.gguf")
    assert read_speculation(Options(stage), stage, OTHERS) == Wanted()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("ngrams", "not 'ngrams'; did you mean 'ngram'"),
        (True, "must be 'off', 'ngram', 'auto', not True; or a table"),
        (["small"], r"not \['small'\]; or a table"),
        ({}, "draft must be 'ngram' or another stage of the engine 'llama', not None; valid: ngram, small"),
        ({"draft": "large"}, "not 'large'; "),
        ({"draft": "smal"}, "did you mean 'small'"),
        ({"draft": "small", "n_match": 3}, "no such key 'n_match' where 'small' drafts"),
        ({"draft": "ngram", "p_min": 0.5}, "no such key 'p_min' where 'ngram' drafts"),
        ({"draft": "small", "n_max": 0}, "n_max must be a whole number from 1 to 64, not 0"),
        ({"draft": "small", "n_max": 2.5}, "n_max must be a whole number from 1 to 64, not 2.5"),
        ({"draft": "small", "p_min": 1.5}, "p_min must be a number from 0 to 1, not 1.5"),
        ({"draft": "small", "p_min": float("nan")}, "p_min must be a number from 0 to 1, not nan"),
        ({"draft": "ngram", "n_match": True}, "n_match must be a whole number from 1 to 64, not True"),
    ],
)
def test_what_cannot_be_meant(value: Any, said: str) -> None:
    assert re.search(said, read(value)[1])
    bad = Stage("large", "llama", "large.gguf", options={"speculation": value})
    with pytest.raises(ConfigError, match="speculation"):
        LlamaEngine((OTHERS[0], bad))


# ── vocabularies ─────────────────────────────────────────────────────────────


def vocabulary(folder: Path, name: str, tokens: list[str] | None = None) -> str:
    return str(write_gguf(folder / name, hidden=8, layers=1, tokens=tokens))


def test_the_same_tokens_draft_for_one_another(tmp_path: Path) -> None:
    one, other = vocabulary(tmp_path, "a"), vocabulary(tmp_path, "b")
    assert len(read_vocabulary(one).tokens) == len(TOKENS)
    assert difference(read_vocabulary(one), read_vocabulary(other)) is None
    padded = vocabulary(tmp_path, "c", [*TOKENS, "<|x|>"])
    assert difference(read_vocabulary(one), read_vocabulary(padded)) is None
    check_drafter("large", one, Drafter("small", padded))
    check_drafter("large", "absent", Drafter("ngram"))
    check_drafter("large", "absent", None)


def test_other_tokens_do_not(tmp_path: Path) -> None:
    one, swapped = vocabulary(tmp_path, "a"), vocabulary(tmp_path, "b", [*TOKENS[:-2], *TOKENS[:-3:-1]])
    with pytest.raises(EngineError, match=r"stage 'large': 'small' cannot draft for it, .*: token 257 is"):
        check_drafter("large", one, Drafter("small", swapped))
    many = vocabulary(tmp_path, "c", [*TOKENS, *(f"<|{n}|>" for n in range(129))])
    with pytest.raises(EngineError, match=f"one has {len(TOKENS)} tokens, the other {len(TOKENS) + 129}"):
        check_drafter("large", one, Drafter("small", many))
    ends = Path(tmp_path / "d")
    marked = Path(one).read_bytes()
    where = marked.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    ends.write_bytes(marked[:where] + b"\5" + marked[where + 1 :])
    with pytest.raises(EngineError, match="eos_token_id differs"):
        check_drafter("large", one, Drafter("small", str(ends)))


def test_files_that_tell_no_vocabulary(tmp_path: Path) -> None:
    whole = vocabulary(tmp_path, "a")
    data = Path(whole).read_bytes()
    broken = tmp_path / "b"
    for content, said in (
        (data[:40], "ends too early"),
        (data[:4] + b"\1" + data[5:], "of GGUF version 1"),
        (data.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "names no tokens"),
        (data[:24] + b"\xff" * 8 + data[32:], "ends too early"),
        (data.replace(b"general.architecture\x08", b"general.architecture\x63"), "unknown kind 99"),
    ):
        broken.write_bytes(content)
        with pytest.raises(ModelFileError, match=f"stage 'large', drafter 'small': .*{said}"):
            check_drafter("large", whole, Drafter("small", str(broken)))
    with pytest.raises(ModelFileError, match="cannot be read"):
        check_drafter("large", whole, Drafter("small", str(tmp_path / "absent")))
    with pytest.raises(ModelFileError, match="SHA-256"):
        check_drafter("large", whole, Drafter("small", whole, sha256="0" * 64))
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_vocabulary(str(tmp_path / "absent"))


def test_the_cache_that_a_model_takes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a", hidden=64, layers=3)
    layers, heads, width, longest = cache_shape(str(path))
    assert (layers, heads * width) == (3, 64)
    assert longest > 0
    nano = PRESETS / "nano" / "nano-medium.gguf"
    assert cache_shape(str(nano)) == (5, 5, 32, 512)
    broken = tmp_path / "b"
    broken.write_bytes(path.read_bytes().replace(b"block_count", b"block_kount"))
    with pytest.raises(ModelFileError, match="does not tell its layers, heads and context"):
        cache_shape(str(broken))


def test_a_second_process_needs_room_and_a_drafter_that_is_much_smaller(tmp_path: Path) -> None:
    large = str(write_gguf(tmp_path / "large", hidden=128, layers=4))
    small = str(write_gguf(tmp_path / "small", hidden=32, layers=1))
    drafter, context = Drafter("small", small), 2048
    caches = 2 * 2 * context * (4 * 128 + 1 * 32)
    need = Path(small).stat().st_size + caches
    check_room("large", large, drafter, context, probe=lambda _: need)
    check_room("large", large, drafter, context, probe=lambda _: None)
    check_room("large", large, Drafter("ngram"), context, probe=lambda _: 2 * 2 * context * 4 * 128)
    with pytest.raises(EngineError, match=r"stage 'large': a second process with 'small' needs 0.\d+ GiB, and 0.\d+"):
        check_room("large", large, drafter, context, probe=lambda _: need - 1)
    with pytest.raises(EngineError, match="file of 'large' is more than two thirds of its own"):
        check_room("small", small, Drafter("large", large), context, probe=lambda _: None)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_head_is_an_error_and_nothing_else(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = Path(vocabulary(folder, "fuzz")).read_bytes()[:9000]
    place, byte = data.draw(st.integers(4, len(whole) - 1)), data.draw(st.binary(min_size=1, max_size=8))
    broken = folder / "fuzzed"
    broken.write_bytes((whole[:place] + byte + whole[place + len(byte) :])[: data.draw(st.integers(4, len(whole)))])
    with suppress(ModelFileError):
        read_vocabulary(str(broken))


# ── the trial ────────────────────────────────────────────────────────────────


def tried(ratio: float, noise: float, seed: int) -> Trial:
    """A trial in which drafting takes ``ratio`` times as long, with answers of mixed lengths and noisy times."""
    trial, chance = Trial(), Random(seed)
    while trial.verdict is None:
        drafting = trial.turn()
        tokens = chance.randint(1, 200)
        seconds = tokens * 0.01 * (ratio if drafting else 1) * chance.lognormvariate(0, noise)
        trial.observe(drafting=drafting, tokens=tokens, seconds=seconds)
    return trial


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.3))
@settings(max_examples=50, deadline=None)
def test_what_is_clearly_faster_is_taken_and_what_is_slower_is_not(seed: int, noise: float) -> None:
    assert tried(0.4, noise, seed).verdict is True
    assert tried(1.5, noise, seed).verdict is False


@given(seed=st.integers(0, 10**6), ratio=st.floats(0.5, 2), noise=st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_what_is_taken_was_measured_faster_and_the_trial_ends(seed: int, ratio: float, noise: float) -> None:
    trial = tried(ratio, noise, seed)
    assert trial.drafting.count + trial.plain.count <= 2 * LOOKS[-1] + 1
    assert not trial.verdict or trial.drafting.mean < (1 - MARGIN) * trial.plain.mean
    assert "ms a token" in trial.reason


def test_a_drafter_that_is_worth_nothing_is_rarely_taken() -> None:
    taken = sum(tried(1 - MARGIN, 0.3, seed).verdict is True for seed in range(300))
    assert taken <= 15  # three looks at z > 2.5: at most 1.9 % where the normal law holds


def test_a_trial_that_can_compare_nothing_ends_too() -> None:
    trial = Trial()
    for _ in range(MOST_TURNS):
        assert trial.verdict is None
        trial.observe(drafting=trial.turn(), tokens=0, seconds=1.0)
    assert trial.turn() is False
    assert (trial.verdict, trial.reason) == (False, f"too few of {MOST_TURNS} answers could be compared")
    trial.observe(drafting=True, tokens=5, seconds=1.0)
    assert trial.drafting.count == 0


def test_turns_alternate() -> None:
    trial = Trial()
    assert [trial.turn() for _ in range(6)] == [False, True] * 3


def test_a_rate_is_the_ratio_of_the_sums() -> None:
    rate = Rate()
    rate.add(10, 1.0)
    assert rate.relative_variance == float("inf")
    rate.add(30, 3.0)
    assert (rate.mean, rate.relative_variance) == (pytest.approx(0.1), pytest.approx(0.0))
    rate.add(10, 3.0)
    assert rate.mean == pytest.approx(7 / 50)
    residuals = [1 - 1.4, 3 - 4.2, 3 - 1.4]
    assert rate.relative_variance == pytest.approx(sum(r * r for r in residuals) * 3 / 2 / 7**2)
