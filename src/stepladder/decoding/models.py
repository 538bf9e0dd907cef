"""A causal language model with rows of its own cache: many sequences, any widths, one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from stepladder.decoding import attention
from stepladder.decoding.arithmetic import Places
from stepladder.decoding.attention import Layout, Masked, Packed, Span
from stepladder.decoding.cache import KeyValueCache
from stepladder.decoding.fused import Fused, arithmetic_for, why_not
from stepladder.decoding.graphs import ROWS, WIDTHS, Captured, Graphs, above, reach_for
from stepladder.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CHUNK = 512
"""Tokens of one row that are fed in one pass, unless told otherwise."""

FEW = 8
"""Tokens that a row has missed and reads in its next narrow pass; more of them, and all of a prompt, are packed."""

WIDEST = WIDTHS[-1] - FEW
"""Wanted tokens of a narrow pass."""

SOME, MANY = 4 * WIDTHS[-1], 16 * WIDTHS[-1]
"""Tokens that a row has missed, all of a prompt left aside, which it reads in narrow passes of the one width that is
captured for that: a packed pass takes a small model as long as a dozen of them, and one of a length that was not seen
before has libraries load kernels. The second number is for what is read roughly, a prompt included."""

USUAL = 256
"""Positions that usually stand before a pass that is timed."""

PROBE = 8
"""Tokens by which a model of an untried family is compared with itself."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Write ``tokens`` at positions ``start``.. of cache row ``slot``; what stood at or after ``start`` is forgotten.

    ``want`` logits are asked for, those after each of the last ``want`` tokens; 0 asks for none. ``rough``: nothing
    hangs on the last bits of what is read so, as of a drafter's, and it may be read in the quickest way.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    want: int
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cache must hold of a model: layers, key-value heads, query heads per key-value head, width of a head."""

    layers: int
    heads: int
    group: int
    width: int


class LanguageModel:
    """One model and its cache of ``slots`` rows with ``context`` positions each.

    ``vocab`` is the width of the logits that are given out; ``limit_vocab`` narrows it. Not safe for more than one
    thread at a time. Logits are float32, or float64 for a model of that kind.

    ``narrow``: passes of a few tokens a row run as rectangles (``masked``), with fused layers where the family has them
    and out of CUDA graphs where there are any; None: on a GPU. ``told`` says which of the two it came to, and why not
    the other. Whatever is wanted of a feed is then computed there, and only what is read before it in packed passes.

    Raises EngineError where the model is of a kind whose past cannot be rolled back by position (see ``shape_of``).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        context: int | None = None,
        slots: int = 8,
        chunk: int = CHUNK,
        narrow: bool | None = None,
    ) -> None:
        attention.register()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        self.shape = shape_of(config, name)
        self.context = context_of(config, context, name)
        if slots < 1 or chunk < 1:
            raise EngineError(f"model '{name}': slots and chunk must be at least 1, not {slots} and {chunk}")
        self.slots = slots
        self.vocab: int = int(model.get_output_embeddings().weight.shape[0])
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.device = torch.device(model.device)
        self.dtype = model.dtype
        self.cache = KeyValueCache(
            layers=self.shape.layers,
            slots=slots,
            heads=self.shape.heads,
            capacity=self.context,
            width=self.shape.width,
            dtype=self.dtype,
            device=self.device,
        )
        self._chunk = chunk
        self._lengths: list[int | None] = [None] * slots
        self._lead_attention()
        self._fused: Fused | None = None
        self._unfused: str | None = "the passes of this device are packed"
        self._graphs: Graphs | None = None
        if narrow or (narrow is None and self.device.type == "cuda"):
            self._graphs = Graphs(self.device, name)
            self._fuse()

    def _fuse(self) -> None:
        """Take fused layers where there are any for this model and device."""
        self._unfused = why_not(self.model)
        if self._unfused is not None:
            return
        arithmetic = arithmetic_for(self.device, self.dtype, self.context)
        if isinstance(arithmetic, str):
            self._unfused = arithmetic
        else:
            self._fused = Fused(self.model, self.cache, arithmetic)

    @property
    def told(self) -> str:
        """How passes of a few tokens run: with fused layers or stock ones, with graphs or without, and why."""
        layers = "fused layers" if self._unfused is None else f"stock layers ({self._unfused})"
        reason = None if self._graphs is None else self._graphs.reason
        return layers if self._graphs is None else f"{layers}, {'CUDA graphs' if reason is None else reason}"

    def _lead_attention(self) -> None:
        """Have the model call ``attention.attend``."""
        config = self.model.config.get_text_config()
        self.model.set_attn_implementation(attention.NAME)
        if config._attn_implementation != attention.NAME:  # transformers only warns
            raise EngineError(
                f"model '{self.name}' ({config.model_type}) cannot be run here: its code has an attention of its own "
                "that cannot be exchanged"
            )

    def limit_vocab(self, size: int) -> None:
        """Give out logits of the first ``size`` tokens only; see ``vocabulary.common``."""
        if not 0 < size <= self.vocab:
            raise EngineError(f"model '{self.name}' has {self.vocab} tokens; logits of {size} cannot be given")
        self.vocab = size

    def open(self) -> int:
        """Take a free cache row; raises EngineError where all are taken."""
        for slot, length in enumerate(self._lengths):
            if length is None:
                self._lengths[slot] = 0
                return slot
        raise EngineError(f"model '{self.name}': all {self.slots} cache rows are taken")

    def close(self, slot: int) -> None:
        """Give a row back; what it held is forgotten. Raises EngineError for one that is not open."""
        self.length(slot)
        self._lengths[slot] = None

    def length(self, slot: int) -> int:
        """Positions of a row that hold keys and values. Raises EngineError for a row that is not open."""
        length = self._lengths[slot] if 0 <= slot < self.slots else None
        if length is None:
            raise EngineError(f"model '{self.name}': cache row {slot} is not open")
        return length

    def forward(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Read all feeds in one pass and give each one's logits, (want, vocab).

        A feed longer than the chunk takes more passes, of which the last is shared with the other feeds. Raises
        EngineError for a feed that cannot be: a row that is not open or fed twice, a hole before ``start``, more
        positions than the context has, tokens that the vocabulary does not have, no tokens, more wanted than fed.
        """
        self._check(feeds)
        for feed in feeds:
            self._lengths[feed.slot] = feed.start
        logits = self._packed(feeds) if self._graphs is None else self._split(feeds)
        self.wait()
        return logits

    def wait(self) -> None:
        """Until the device is done: who times a pass times that."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def warm(self, rows: Sequence[int] = ROWS[:1], widths: Sequence[int] = WIDTHS, length: int = 1) -> None:
        """Capture the graphs of these shapes for rows up to a length, that no answer waits for them."""
        if self._graphs is not None:
            for count in rows:
                for width in widths:
                    self._rectangle(count, width, reach_for(length, self.context))

    def narrow_seconds(self, width: int, slot: int, start: int = USUAL) -> float | None:
        """Seconds that a narrow pass behind ``start`` positions of an open row takes the device, without the host.

        It is run, and overwrites what stands there. None where such a pass is not captured.
        """
        if self._graphs is None or width > WIDTHS[-1]:
            return None
        columns = above(width, WIDTHS)
        start = min(start, self.context - columns)
        if start < 0:
            return None
        rectangle = self._rectangle(1, columns, reach_for(start + columns, self.context))
        rectangle.fill(0, [*[0] * columns, slot, start, width])
        return rectangle.seconds()

    def _split(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Packed passes for what is read before the wanted tokens, then one rectangle for those."""
        cuts = [_cut(feed) for feed in feeds]
        begun = [
            (index, replace(feed, tokens=feed.tokens[:cut], want=feed.want if cut == len(feed.tokens) else 0))
            for index, (feed, cut) in enumerate(zip(feeds, cuts, strict=True))
            if cut
        ]
        ended = [
            (index, replace(feed, start=feed.start + cut, tokens=feed.tokens[cut:]))
            for index, (feed, cut) in enumerate(zip(feeds, cuts, strict=True))
            if cut < len(feed.tokens)
        ]
        found: dict[int, torch.Tensor] = {}
        missed = [part for part in (*begun, *ended) if _is_missed(part[1])]
        packed, narrow = ([part for part in parts if not _is_missed(part[1])] for parts in (begun, ended))
        for parts, read in ((packed, self._packed), (missed, self._catch_up), (narrow, self._narrow)):
            if parts:
                logits = read([feed for _, feed in parts])
                found.update(zip((index for index, _ in parts), logits, strict=True))
        return [found[index] for index in range(len(feeds))]

    def _catch_up(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Narrow passes over feeds of which nothing is wanted, each by itself."""
        wide = WIDTHS[-1]
        for feed in feeds:
            for at in range(0, len(feed.tokens), wide):
                self._narrow([Feed(feed.slot, feed.start + at, feed.tokens[at : at + wide], 0)], wide)
        return [torch.empty((0, self.vocab), device=self.device) for _ in feeds]

    @torch.inference_mode()
    def _narrow(self, feeds: Sequence[Feed], least: int = 1) -> list[torch.Tensor]:
        """One rectangle, padded to a shape that there are graphs for, of ``least`` columns or more."""
        counts = [len(feed.tokens) for feed in feeds]
        rows, columns = above(len(feeds), ROWS), above(max(least, *counts), WIDTHS)
        empty = [0] * (rows - len(feeds))
        numbers = [token for feed in feeds for token in (*feed.tokens, *[0] * (columns - len(feed.tokens)))]
        numbers += [*empty * columns, *(feed.slot for feed in feeds), *empty]
        numbers += [*(feed.start for feed in feeds), *empty, *counts, *empty]
        end = max(feed.start + count for feed, count in zip(feeds, counts, strict=True))
        rectangle = self._rectangle(rows, columns, reach_for(end, self.context))
        rectangle.fill(0, numbers)
        logits = rectangle.run()
        for feed, count in zip(feeds, counts, strict=True):
            self._lengths[feed.slot] = feed.start + count
        return [
            logits[row, count - feed.want : count].clone()
            for row, (feed, count) in enumerate(zip(feeds, counts, strict=True))
        ]

    def _rectangle(self, rows: int, columns: int, reach: int) -> Captured:
        assert self._graphs is not None  # noqa: S101 - asked only where there are any
        size = rows * (columns + 3)

        def compute(numbers: torch.Tensor) -> torch.Tensor:
            tokens, slots, starts, widths = torch.split(numbers, [rows * columns, rows, rows, rows])
            return self.masked(tokens.view(rows, columns), slots, starts, widths, reach=reach)

        return self._graphs.get(
            (rows, columns, reach, self.vocab),
            compute,
            lambda: [torch.zeros(size, dtype=torch.int64, device=self.device)],
        )

    def _packed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        wanted: list[list[torch.Tensor]] = [[] for _ in feeds]
        for step in _passes(feeds, self._chunk):
            for index, logits in self._pass(feeds, step):
                wanted[index].append(logits)
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in wanted]

    @torch.inference_mode()
    def masked(
        self,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        starts: torch.Tensor,
        widths: torch.Tensor,
        *,
        reach: int,
        ordered: bool = False,
    ) -> torch.Tensor:
        """The same pass with nothing known to the host, for capture in a CUDA graph.

        ``tokens`` (rows, width) is padded with any token; ``slots``, ``starts`` and ``widths`` are (rows,), all int64
        on the model's device; ``reach`` is at least every start + width. Gives logits (rows, width, vocab), of which
        those of padding mean nothing. Nothing is checked, and lengths are the caller's to tell with ``wrote``.
        """
        if self._fused is not None:
            # Kernels read them one behind another; those of a round or of a rectangle already are.
            slots, starts, widths = slots.contiguous(), starts.contiguous(), widths.contiguous()
            return self._fused.logits(tokens, Places(slots, starts, widths, tokens.shape[1], reach), self.vocab)
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        positions = starts[:, None] + columns
        real = columns < widths[:, None]
        last = self.context - 1
        layout = Masked(
            slots,
            positions.clamp(max=last),
            positions.masked_fill(~real, last + 1),  # ``where`` with a number would copy it from the host
            reach=reach,
            group=self.shape.group,
            dtype=self.dtype,
            ordered=ordered,
        )
        return self._run(tokens, positions.clamp(max=last), layout, 0)

    def wrote(self, slot: int, length: int) -> None:
        """Tell that ``masked`` left a row with ``length`` positions."""
        self.length(slot)
        self._lengths[slot] = length

    @torch.inference_mode()
    def _pass(self, feeds: Sequence[Feed], step: list[tuple[int, int, int]]) -> list[tuple[int, torch.Tensor]]:
        """One packed pass over parts of feeds, (feed's index, first token, end), and the logits wanted of each."""
        tokens: list[int] = []
        positions: list[int] = []
        columns: list[int] = []
        counts: list[int] = []
        spans: list[Span] = []
        for index, first, end in step:
            feed = feeds[index]
            begin = len(tokens)
            tokens += feed.tokens[first:end]
            positions += range(feed.start + first, feed.start + end)
            spans.append(Span(feed.slot, feed.start + first, feed.start + end, begin, len(tokens)))
            count = max(0, end - max(first, len(feed.tokens) - feed.want))
            columns += range(len(tokens) - count, len(tokens))
            counts.append(count)
        read, places, keep = (torch.tensor(part, device=self.device) for part in (tokens, positions, columns or [0]))
        logits = self._run(read[None], places[None], Packed(spans), keep)[0]
        for span in spans:
            self._lengths[span.slot] = span.end
        ends = accumulate(counts)
        return [
            (index, logits[end - count : end]) for (index, _, _), count, end in zip(step, counts, ends, strict=True)
        ]

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, layout: Layout, keep: torch.Tensor | int
    ) -> torch.Tensor:
        self.cache.layout = layout
        try:
            logits: torch.Tensor = self.model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
                layout=layout,
            ).logits
        finally:
            self.cache.layout = None
        logits = logits[..., : self.vocab]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _check(self, feeds: Sequence[Feed]) -> None:
        seen: set[int] = set()
        for feed in feeds:
            length = self.length(feed.slot)
            if problem := self._problem(feed, length, seen):
                raise EngineError(f"model '{self.name}', cache row {feed.slot}: {problem}")
            seen.add(feed.slot)

    def _problem(self, feed: Feed, length: int, seen: set[int]) -> str | None:
        end = feed.start + len(feed.tokens)
        if feed.slot in seen:
            return "fed twice in one pass"
        if not feed.tokens or not 0 <= feed.want <= len(feed.tokens):
            return f"{feed.want} logits wanted of {len(feed.tokens)} tokens"
        if not 0 <= feed.start <= length:
            return f"fed from position {feed.start}, but it holds {length}"
        if end > self.context:
            return f"{end} positions needed, and its context has {self.context}"
        if min(feed.tokens) < 0 or max(feed.tokens) >= self.vocab:
            return f"tokens outside its vocabulary of {self.vocab}"
        return None


def shape_of(config: PreTrainedConfig, name: str) -> Shape:
    """What the cache must hold. Raises EngineError for models whose past is more than keys and values by position."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    if config.is_encoder_decoder or kinds or not isinstance(layers, int) or not isinstance(heads, int):
        what = ", ".join(sorted(kinds)) or config.model_type
        raise EngineError(
            f"model '{name}' ({config.model_type}) cannot be run here: {what} has a past that is not "
            "keys and values by position, so that drafts could not be taken back"
        )
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(layers, shared, heads // shared, width)


def context_of(config: PreTrainedConfig, asked: int | None, name: str) -> int:
    """Positions of a row: what was asked for, else all that can be had.

    That is what the model was made for, or the window that some of its layers look back over: beyond it they forget.
    Raises EngineError for more than that.
    """
    most: int | None = getattr(config, "max_position_embeddings", None)
    if window := _window(config):
        most = min(window, most or window)
    if asked is None and most is None:
        raise EngineError(f"model '{name}' does not say how many positions it has: set the stage's context")
    if asked is not None and (asked < 1 or (most is not None and asked > most)):
        raise EngineError(
            f"model '{name}' can be run on up to {most} positions here; context {asked} is not within that"
        )
    return asked or most or 0


def own_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a few tokens (PROBE, vocab) as a model computes them by itself; to be asked before it is wrapped."""
    with torch.inference_mode():
        read: torch.Tensor = model(input_ids=_probe(model.device)[None], use_cache=False).logits[0]
    return read


def require_same(model: LanguageModel, own: torch.Tensor) -> None:
    """Raise EngineError where a wrapped model does not give its own logits, within its dtype's rounding.

    The proof that its attention is of the kind that is done here, for models that nobody has tried.
    """
    slot = model.open()
    tokens: list[int] = _probe(model.device).tolist()
    refused = f"model '{model.name}' ({model.model.config.model_type}) cannot be run here: "
    try:
        begun = model.forward([Feed(slot, 0, tokens[:-2], PROBE - 2)])[0]
        ended = model.forward([Feed(slot, PROBE - 2, tokens[-2:], 2)])[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EngineError(f"{refused}its code cannot use the cache: {error}") from error
    model.close(slot)
    far = (torch.cat([begun, ended]) - own).abs().max().item()
    near = 20 * torch.finfo(model.dtype).eps ** 0.75 * max(1.0, own.abs().max().item())
    if not far <= near:
        raise EngineError(f"{refused}read through a cache it gives logits that are {far:.3g} off its own")


def _probe(device: torch.device) -> torch.Tensor:
    return torch.arange(1, PROBE + 1, device=device)


def _window(config: PreTrainedConfig) -> int | None:
    """The least number of positions that a layer looks back over, where any is bounded so."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _cut(feed: Feed) -> int:
    """How many of a feed's tokens are read in packed passes: what stands before the wanted ones, but for a few.

    It must not depend on how many are wanted, so that a prompt is read alike whether drafts stand behind it or not.
    """
    if feed.want > WIDEST:
        return len(feed.tokens)
    before = len(feed.tokens) - feed.want
    return before if feed.start == 0 or before > FEW else 0


def _is_missed(feed: Feed) -> bool:
    """True for what a row reads that was written without it, where it is not much."""
    few = len(feed.tokens) <= (MANY if feed.rough else SOME)
    return few and not feed.want and (feed.rough or feed.start > 0)


def _passes(feeds: Sequence[Feed], chunk: int) -> list[list[tuple[int, int, int]]]:
    """Parts of feeds, (index, first token, end), pass by pass; the ends of all feeds stand in the last one."""
    passes: list[list[tuple[int, int, int]]] = []
    for index, feed in enumerate(feeds):
        parts = [(index, at, min(at + chunk, len(feed.tokens))) for at in range(0, len(feed.tokens), chunk)]
        passes = [[] for _ in range(len(parts) - len(passes))] + passes
        for step, part in zip(reversed(passes), reversed(parts), strict=False):
            step.append(part)
    return passes
