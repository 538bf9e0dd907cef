"""``stepladder keys new|list|revoke``: the keys that callers of a gateway need."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from stepladder.errors import UsageError
from stepladder.gateway.keys import Entry, add_key, moment, read_keys, revoke_key

ACTIONS = {
    "new": "make a key, write down its hash and show it once",
    "list": "show the keys that there are and what each allows",
    "revoke": "end a key",
}
LIMITS = ("lambda_min", "lambda_max", "stages", "modes", "max_cost", "budget", "rate", "concurrent", "admin")


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, told in ACTIONS.items():
        action = actions.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False)
        action.add_argument("--keys", type=Path, default=Path("keys.toml"), help="the file (default: keys.toml)")
        if name == "new":
            _limits(action)
        elif name == "revoke":
            action.add_argument("which", metavar="NAME", help="the key's name or id")


def _limits(new: argparse.ArgumentParser) -> None:
    new.add_argument("--name", required=True, help="what traces and logs call whoever holds the key")
    new.add_argument("--lambda-min", type=float, metavar="λ", help="no λ below this may be asked for")
    new.add_argument("--lambda-max", type=float, metavar="λ", help="no λ above this may be asked for")
    new.add_argument("--stages", metavar="A,B", help="only these stages answer (default: all)")
    new.add_argument("--modes", metavar="A,B", help="only these modes may be asked for (default: all)")
    new.add_argument("--max-cost", type=float, metavar="COST", help="the most that one request may be expected to cost")
    new.add_argument(
        "--budget", metavar="N/PERIOD", help="cost for each hour, day or month (UTC), or in total: 100/day"
    )
    new.add_argument("--rate", metavar="N/PERIOD", help="requests for each second, minute, hour or day: 60/min")
    new.add_argument("--concurrent", type=int, metavar="N", help="requests under way at once")
    new.add_argument("--expires", metavar="DATE", help="the day on which it ends (UTC): 2027-01-01")
    new.add_argument("--admin", action="store_true", default=None, help="may read everybody's decisions")


def run(args: argparse.Namespace) -> int:
    return {"new": _new, "list": _list, "revoke": _revoke}[args.action](args)


def _new(args: argparse.Namespace) -> int:
    limits: dict[str, Any] = {name: getattr(args, name) for name in LIMITS}
    for name in ("stages", "modes"):
        limits[name] = None if limits[name] is None else _words(limits[name])
    limits["expires"] = _day(args.expires)
    key = add_key(args.keys, args.name, limits, now=time.time(), chance=os.urandom)
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(f"This is the only time it is shown; {args.keys} holds its hash.\n")
    return 0


def _list(args: argparse.Namespace) -> int:
    now = time.time()
    rows = [("id", "name", "state", "allows"), *(_row(entry, now) for entry in read_keys(args.keys))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
        sys.stdout.write(f"{'  '.join(cells).rstrip()}\n")
    return 0


def _row(entry: Entry, now: float) -> tuple[str, str, str, str]:
    state = "in force"
    if entry.revoked is not None:
        state = f"revoked {entry.revoked}"
    elif entry.expires is not None:
        state = f"{'expired' if now >= moment(entry.expires) else 'until'} {entry.expires}"
    told = {name: getattr(entry, name) for name in LIMITS}
    allows = [f"{name}={_shown(value)}" for name, value in told.items() if value not in (None, False)]
    return entry.id, entry.name, state, " ".join(allows) or "everything"


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _revoke(args: argparse.Namespace) -> int:
    entry = revoke_key(args.keys, args.which, now=time.time())
    sys.stdout.write(f"the key of '{entry.name}' ({entry.id}) is revoked; a running gateway knows within a second\n")
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _day(text: str | None) -> date | datetime | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--expires: '{text}' is no date; write it as 2027-01-01") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
