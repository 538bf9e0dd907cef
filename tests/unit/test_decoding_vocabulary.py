"""One tokenizer for all stages of a chain, and the size that their logits are cut to."""

from __future__ import annotations

import pytest

from stepladder.decoding.vocabulary import Voice, common
from stepladder.errors import ConfigError
from tiny_models import letters


def voice(stage: str, words: list[str], width: int | None = None) -> Voice:
    return Voice(stage, letters(words), len(words) if width is None else width)


WORDS = ["<|end|>", "a", "b", "c"]


def test_the_same_tokenizer_passes_and_the_least_width_is_common():
    assert common([voice("s", WORDS, 4), voice("m", WORDS, 4)]) == 4
    assert common([voice("s", WORDS, 16), voice("m", WORDS, 8), voice("l", WORDS, 32)]) == 8
    assert common([voice("alone", WORDS, 5)]) == 5


def test_the_first_token_that_differs_is_named_with_both_stages_and_spellings():
    with pytest.raises(ConfigError) as caught:
        common([voice("small", WORDS), voice("same", WORDS), voice("large", ["<|end|>", "a", "x", "y"])], "ladder.toml")
    text = str(caught.value)
    assert len(caught.value.problems) == 1
    for part in ("ladder.toml", "stages.large", "'small'", "token 2", "'x' here", "'b' there"):
        assert part in text


def test_every_stage_that_differs_is_told_of():
    other = ["<|end|>", "x", "b", "c"]
    with pytest.raises(ConfigError) as caught:
        common([voice("small", WORDS), voice("medium", other), voice("large", other)])
    assert [problem.key for problem in caught.value.problems] == ["stages.medium", "stages.large"]


def test_ids_behind_the_shorter_tokenizer_do_not_matter_where_every_model_has_logits_for_them():
    longer = [*WORDS, "d", "e"]
    assert common([voice("small", WORDS, 8), voice("large", longer, 6)]) == 6
    with pytest.raises(
        ConfigError, match=r"stages.small.*logits for 4 tokens, and the tokenizer of stage 'large' has 6"
    ):
        common([voice("small", WORDS, 4), voice("large", longer, 6)])


def test_an_id_that_one_tokenizer_leaves_out_is_a_difference():
    gap = letters(WORDS)
    gap.vocabulary().pop("b")
    with pytest.raises(ConfigError, match=r"token 2 is nothing here and 'b' there"):
        common([voice("small", WORDS), Voice("large", gap, 4)])


def test_a_model_smaller_than_its_own_tokenizer_is_refused():
    with pytest.raises(
        ConfigError, match=r"stages.small: its model gives logits for 3 tokens, and its tokenizer has 4"
    ):
        common([voice("small", WORDS, 3)])
