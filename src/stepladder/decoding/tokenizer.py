"""Text to tokens and back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepladder.errors import ModelFileError, RequestError

CUT = "\ue000"
"""Put into words of a message that spell a control token, and taken out again; from Unicode's private use."""

INSTRUCTING = ("system", "developer")
"""Roles whose words tell the model what to do."""

UNFINISHED = "\ufffd"
"""What decoding gives for bytes that are no whole character, perhaps not yet."""

ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|return|>",
)
"""Control tokens that end an answer by what they are called, whatever else a model's files say."""


class Tokenizer:
    """One model's tokenizer: ``size`` ids, and ``eos``, all those that end an answer. Threads may share it."""

    def __init__(self, tokenizer: Any, *, name: str, eos: Iterable[int] = ()) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # whether control tokens are words is kept in the tokenizer and not in the call
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.size = max(self._vocabulary.values()) + 1
        self._control = sorted(
            (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True
        )
        ends = {self._vocabulary[text] for text in self._control if text in ENDS}
        if tokenizer.eos_token_id is not None:
            ends.add(int(tokenizer.eos_token_id))
        self.eos = frozenset({*ends, *eos})
        own = tokenizer.eos_token_id
        self.end: int | None = int(own) if own is not None else min(self.eos, default=None)
        """The one that an answer of this model usually ends with."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text: none is added, and words that spell a control token stay words."""
        return self._encode(text, split_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text that is to be gone on with: as ``encode``, with what the model's texts begin with."""
        return self._encode(text, split_special_tokens=True, add_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation ({"role", "content"} each) as the model was taught it, up to where it answers.

        Control tokens come from the template alone: contents that spell one are kept apart while the template is filled
        in, and read as words. Instructions (system, developer) that a template leaves out are put before the words of
        the user's turn behind them, as llama.cpp does: they must not vanish.

        Raises ModelFileError for a model without a template, RequestError for messages that its template refuses.
        """
        if self._tokenizer.chat_template is None:
            raise ModelFileError(f"model '{self.name}' has no chat template, so it cannot be given messages")
        from jinja2 import TemplateError

        kept = [{**message, "content": self._apart(message["content"])} for message in messages]
        try:
            text = self._rendered(kept)
            if any(part not in text for part in _instructions(kept)):
                text = self._rendered(_folded(kept))
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the chat template of '{self.name}' refuses these messages: {error}") from error
        return [token for part in text.split(CUT) for token in self._encode(part, split_special_tokens=False)]

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without control tokens; bytes that are no character become U+FFFD."""
        with self._lock:
            text: str = self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def text_of(self, token: int) -> str | None:
        """How the vocabulary spells an id; None where there is none."""
        with self._lock:
            text: str | None = self._tokenizer.convert_ids_to_tokens(token) if token < self.size else None
        return text

    def vocabulary(self) -> Mapping[str, int]:
        """Spelling → id."""
        return self._vocabulary

    def _apart(self, content: str) -> str:
        for text in self._control:
            if text in content:
                content = content.replace(text, text[:1] + CUT + text[1:])
        return content

    def _encode(self, text: str, **how: bool) -> list[int]:
        with self._lock:
            tokens: list[int] = self._tokenizer.encode(text, **({"add_special_tokens": False} | how))
        return tokens


def _instructions(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """What system and developer messages say, without the blanks around it."""
    return [each["content"].strip() for each in messages if each["role"] in INSTRUCTING]


def _folded(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The messages with instructions put before the words of the next user's turn."""
    folded: list[Mapping[str, str]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in INSTRUCTING:
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            folded.append({**message, "content": "\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            folded.append(message)
    return [*folded, {"role": "user", "content": "\n".join(waiting)}] if waiting else folded


class Detokenizer:
    """Text of an answer as its tokens come.

    Pieces are whole characters; they and ``finish`` join to ``decode`` of all tokens. One kind of tokenizer (byte
    fallback, SentencePiece's) takes back a character of single bytes where bytes that are none follow on it; what was
    told stays told there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        """Those of the last piece, for what follows depends on them, and those that gave no text yet."""
        self._told = 0
        """How many of them the last piece was."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that more tokens complete; empty while it ends within a character."""
        self._tokens += tokens
        piece = self._untold()
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        return piece

    def finish(self) -> str:
        """What is left where the answer ends within a character."""
        piece = self._untold()
        self._told = len(self._tokens)
        return piece

    def _untold(self) -> str:
        return self._tokenizer.decode(self._tokens)[len(self._tokenizer.decode(self._tokens[: self._told])) :]
