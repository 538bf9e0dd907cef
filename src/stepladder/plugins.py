"""Names → parts. Built-ins and other people's packages come through the same door: entry points.

A package adds a part by naming it in its own ``pyproject.toml``::

    [project.entry-points."stepladder.policies"]
    thrifty = "thrifty_stepladder:ThriftyPolicy"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from inspect import signature
from typing import Any, Literal

from stepladder.errors import PluginError, UsageError, nearest

Kind = Literal["engines", "features", "predictors", "policies", "costs"]
KINDS: tuple[Kind, ...] = ("engines", "features", "predictors", "policies", "costs")


@cache
def entry_points(kind: Kind) -> Mapping[str, metadata.EntryPoint]:
    """Every part of this kind that is installed, by name. Read once for each process."""
    return {point.name: point for point in metadata.entry_points(group=f"stepladder.{kind}")}


def names(kind: Kind) -> tuple[str, ...]:
    """Installed names of this kind, sorted."""
    return tuple(sorted(entry_points(kind)))


def load(kind: Kind, name: str) -> Any:
    """The factory behind a name.

    Raises PluginError for a name that nobody registered, or whose module cannot be imported; MissingExtraError
    passes through as the part raised it.
    """
    found = entry_points(kind).get(name)
    if found is None:
        raise PluginError(f"no {_singular(kind)} is called '{name}'; {nearest(name, names(kind))}")
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"the {_singular(kind)} '{name}' ({found.value}) cannot be loaded: {error}") from error


def make(kind: Kind, name: str, *args: Any, **options: Any) -> Any:
    """The part itself. Raises as ``load`` does, and UsageError for options that the part's factory does not take."""
    factory = load(kind, name)
    try:
        signature(factory).bind(*args, **options)
    except TypeError as error:
        given = ", ".join(options) or "no options"
        raise UsageError(f"{_singular(kind)} '{name}' cannot be made with {given}: {error}") from error
    return factory(*args, **options)


def _singular(kind: Kind) -> str:
    return {"policies": "policy", "features": "featurizer", "costs": "cost model"}.get(kind, kind[:-1])
