"""``stepladder traces export|outcomes|prune``: what a gateway has stored, taken out or cut down."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from stepladder.build import keeping
from stepladder.cli import options
from stepladder.config import Settings, TraceSettings
from stepladder.errors import RequestError, UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.harvest import Harvest, harvest, recorded
from stepladder.files import replacing
from stepladder.gateway.export import PAGE, Wanted, pages, read_count, read_time
from stepladder.traces.keeping import Keeping
from stepladder.traces.retention import prune
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Trace

ACTIONS = {
    "export": "write traces with their feedback as JSON lines, as GET /v1/decisions does",
    "outcomes": "write the answers that have feedback as an outcomes table",
    "prune": "delete traces and feedback that are too old or too many",
}

T = TypeVar("T")


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, told in ACTIONS.items():
        action = actions.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False)
        options.add_ladder(action)
        action.add_argument("--store", metavar="FILE", help="the store itself (default: the ladder's traces.path)")
        _ADD[name](action)


def _add_export(action: argparse.ArgumentParser) -> None:
    action.add_argument("--out", required=True, metavar="FILE", help="the file to write; '-' is standard output")
    _add_window(action)
    action.add_argument("--stage", help="only where this stage's answer was kept")
    action.add_argument("--limit", metavar="N", help="so many at the most (default: all)")


def _add_outcomes(action: argparse.ArgumentParser) -> None:
    action.add_argument("--out", required=True, metavar="TABLE", help="the table to write, .parquet or .jsonl")
    _add_window(action)


def _add_window(action: argparse.ArgumentParser) -> None:
    action.add_argument("--since", metavar="TIME", help="made from then on: 2026-11-23, or seconds since the epoch")
    action.add_argument("--until", metavar="TIME", help="made before then")


def _add_prune(action: argparse.ArgumentParser) -> None:
    told = "(default: the ladder's traces."
    action.add_argument("--keep-days", metavar="N", help=f"delete older traces {told}keep_days)")
    action.add_argument("--keep-rows", metavar="N", help=f"keep no more traces than these {told}keep_rows)")
    action.add_argument("--keep-feedback-days", metavar="N", help=f"delete older feedback {told}keep_feedback_days)")
    action.add_argument("--shrink", action="store_true", help="give the room back to the disk; writers wait meanwhile")


def run(args: argparse.Namespace) -> int:
    return _RUN[args.action](args)


def _export(args: argparse.Namespace) -> int:
    wanted, path, count = _wanted(args), _store(args), 0
    with closing(SqliteTraceStore(path)) as store, _writing(args.out) as file:
        for lines in pages(store, wanted):
            file.writelines(lines)
            count += len(lines)
    sys.stderr.write(f"{count} traces\n")
    return 0


def _outcomes(args: argparse.Namespace) -> int:
    outcomes.check_path(args.out)
    wanted = _wanted(args)
    with closing(SqliteTraceStore(_store(args))) as store:
        found = harvest(_traces(store, wanted), store.outcomes)
    rows = recorded(found)
    for line in _told(found, len(rows)):
        sys.stderr.write(f"{line}\n")
    if not rows:
        raise UsageError(f"{args.out}: not written, since no answer has feedback")
    outcomes.write(rows, args.out)
    return 0


def _traces(store: SqliteTraceStore, wanted: Wanted) -> Iterator[Trace]:
    after: int | None = wanted.after
    while after is not None:
        found = store.scan(after=after, since=wanted.since, until=wanted.until, limit=PAGE)
        yield from (each.trace for each in found)
        after = found[-1].seq if found else None


def _told(found: Harvest, rows: int) -> Iterable[str]:
    """What came of it; above all how many queries can train a predictor that compares stages."""
    stages: dict[str, set[str]] = {}
    for query_id, stage in found.scores:
        stages.setdefault(query_id, set()).add(stage)
    names = {entry.stage for entry in found.answers}
    whole = sum(have == names for have in stages.values())
    yield f"{rows} rows of {len(stages)} queries; {whole} of them have feedback on all of {', '.join(sorted(names))}"
    if found.private:
        yield f"{found.private} traces were left out: they are private and hold no texts"


def _prune(args: argparse.Namespace) -> int:
    settings = _settings(args)
    path, kept = _place(args, settings), _kept(args, settings)
    if not kept.prunes:
        raise UsageError("nothing to go by: give --keep-days, --keep-rows or --keep-feedback-days, or set them")
    traces, told = prune(path, kept, shrink=args.shrink)
    sys.stdout.write(f"deleted {traces} traces and the feedback of {told} reports from {path}\n")
    return 0


def _kept(args: argparse.Namespace, settings: Settings | None) -> Keeping:
    traces = TraceSettings() if settings is None else settings.traces
    asked = {
        "keep_days": options.number(args.keep_days, "--keep-days"),
        "keep_feedback_days": options.number(args.keep_feedback_days, "--keep-feedback-days"),
        "keep_rows": None if args.keep_rows is None else _asked(read_count, "--keep-rows", args.keep_rows),
    }
    return keeping(traces.model_copy(update={key: value for key, value in asked.items() if value is not None}))


# ── what they share ──────────────────────────────────────────────────────────


def _store(args: argparse.Namespace) -> Path:
    return _place(args, _settings(args))


def _settings(args: argparse.Namespace) -> Settings | None:
    """The ladder's; None where the store itself is named, and then raises UsageError where a ladder is named too."""
    if args.store is None:
        return options.read_settings(args)
    if args.ladder is not None or args.overrides:
        raise UsageError("--store names the store itself: leave out --ladder and --set, which would not be read")
    return None


def _place(args: argparse.Namespace, settings: Settings | None) -> Path:
    """The store's file; raises UsageError where there is none: it is not made here."""
    if settings is None:
        path, where = Path(args.store), "--store"
    else:
        if settings.traces.path is None:
            raise UsageError(f"{settings.source}: traces.path is not set, so its traces end with their process")
        path, where = settings.folder / settings.traces.path, "traces.path"
    if not path.is_file():
        raise UsageError(f"{where}: {path} is no file; has the gateway run with it?")
    return path


def _wanted(args: argparse.Namespace) -> Wanted:
    wanted = Wanted(stage=getattr(args, "stage", None), limit=sys.maxsize)
    if args.since is not None:
        wanted = replace(wanted, since=_asked(read_time, "--since", args.since))
    if args.until is not None:
        wanted = replace(wanted, until=_asked(read_time, "--until", args.until))
    if getattr(args, "limit", None) is not None:
        wanted = replace(wanted, limit=_asked(read_count, "--limit", args.limit))
    return wanted


def _asked(read: Callable[[str, str], T], flag: str, text: str) -> T:
    try:
        return read(flag, text)
    except RequestError as error:
        raise UsageError(str(error)) from error


@contextmanager
def _writing(out: str) -> Iterator[BinaryIO]:
    """The file to write, whole or not at all and readable by its owner alone: it holds what people asked."""
    if out == "-":
        yield sys.stdout.buffer
        return
    try:
        with replacing(out, mode=0o600) as file:
            yield file
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be written: {error.strerror or error}") from error


_ADD: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "export": _add_export,
    "outcomes": _add_outcomes,
    "prune": _add_prune,
}
_RUN: Mapping[str, Callable[[argparse.Namespace], int]] = {"export": _export, "outcomes": _outcomes, "prune": _prune}
