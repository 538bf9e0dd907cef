"""Stepladder: adaptive inference over a ladder of language models.

Importing this costs the standard library only; ``load`` and everything heavy is fetched when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepladder.version import __version__

if TYPE_CHECKING:
    from stepladder.build import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from stepladder.build import load

        return load
    raise AttributeError(f"module 'stepladder' has no attribute '{name}'")
