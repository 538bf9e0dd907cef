"""Everything that Stepladder raises on purpose.

StepladderError                      catch this one to catch them all
├── UsageError                       the caller can mend it; command line exits with 2, HTTP answers 400
│   ├── ConfigError                  a configuration with one or more problems, each with key, line and cure
│   ├── MissingExtraError            an optional dependency is not installed; says the command that installs it
│   ├── PluginError                  a name that no plug-in answers to, or a plug-in that cannot be loaded
│   ├── RequestError                 a request that cannot be served as it stands
│   │   └── NoStageError             no stage may take it: says why for each
│   └── AccessError                  a caller without a key that is good, or whose key does not allow what was asked
├── ArtifactError                    a predictor's artifact that is missing, foreign, damaged or of another ladder
├── ModelFileError                   a model file that is missing, no GGUF, or not the one its checksum names
├── EngineError                      an engine that cannot be started or was used after it was closed
├── SandboxError                     a program that could not be run shut in
├── TraceError                       a trace store that cannot be opened, or a record that cannot be read
└── AnswerError                      every allowed stage failed; carries the fault and the trace

A stage's failure during a request is no exception: it is an ``Attempt`` with a ``Fault``, and the policy sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepladder.types import Fault, Trace


class StepladderError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class UsageError(StepladderError):
    """The caller asked for something that cannot be; the message says what would be right."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration: where it is, what is wrong, what would be right."""

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key}: {self.message}"


class ConfigError(UsageError):
    """A configuration that cannot be used; ``problems`` lists all that was found, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class MissingExtraError(UsageError):
    """An optional dependency is missing."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra [{extra}], which is not installed: pip install 'stepladder[{extra}]'")


class PluginError(UsageError):
    """A part asked for by a name that leads nowhere."""


class RequestError(UsageError):
    """A request that cannot be served; ``param`` names the offending field as OpenAI's error shape does."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param = param
        self.code = code
        super().__init__(message)


class NoStageError(RequestError):
    """No stage may take the request."""


class AccessError(UsageError):
    """A caller who may not, or not now. ``status`` is HTTP's, ``kind`` OpenAI's type; ``retry_after`` is in seconds."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str,
        code: str | None,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.status = status
        self.kind = kind
        self.code = code
        self.retry_after = retry_after
        self.headers = headers
        super().__init__(message)


class ArtifactError(StepladderError):
    """A predictor's artifact that cannot be used."""


class ModelFileError(StepladderError):
    """A model file that cannot be used."""


class EngineError(StepladderError):
    """An engine that cannot work."""


class SandboxError(StepladderError):
    """A program that could not be run within its walls."""


class TraceError(StepladderError):
    """A trace store or record that cannot be used."""


class AnswerError(StepladderError):
    """No stage gave an answer."""

    def __init__(self, fault: Fault, trace: Trace) -> None:
        self.fault = fault
        self.trace = trace
        super().__init__(fault.message)


def nearest(word: str, valid: Sequence[str]) -> str:
    """A clause that names the nearest valid word, or all of them where none is near."""
    close = get_close_matches(word, valid, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(valid)}"


def refuse_unknown(what: str, given: Iterable[str], valid: Sequence[str]) -> None:
    """Raise UsageError for the first option that ``what`` does not have, naming the nearest that it has."""
    for word in given:
        hint = nearest(word, valid) if valid else "it has none"
        raise UsageError(f"{what} has no option '{word}'; {hint}")
