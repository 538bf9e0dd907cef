"""A trace as the bytes that a store keeps of it, and back."""

from __future__ import annotations

import orjson

from stepladder.traces.codec import decode, encode
from stepladder.traces.privacy import Veil, veiled
from stepladder.types import Trace


def packed(trace: Trace, veil: Veil | None = None) -> bytes:
    """Its JSON, behind the veil where there is one. Raises TypeError for what JSON cannot hold."""
    body = encode(trace) if veil is None else veiled(encode(trace), veil)
    made = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return bytes(memoryview(made))  # a copy: orjson's own holds on to up to twice the room, and says nothing of it


def unpacked(body: bytes) -> Trace:
    """The trace; raises TraceError for another schema or a record with missing parts."""
    return decode(orjson.loads(body))


def answer_stage(trace: Trace) -> str | None:
    """The stage whose answer was kept, None where none was."""
    index = trace.answer_index
    return None if index is None else trace.attempts[index].stage
