"""The policy that another one wraps."""

from __future__ import annotations

from typing import Any

from stepladder.contracts import Policy
from stepladder.errors import UsageError
from stepladder.policies.pandora import PandoraPolicy


def base_of(policy: str, value: Any) -> Policy:
    """The policy itself, or ``pandora`` where none was given; ``build`` has made it from its name.

    Raises UsageError for what is no policy.
    """
    if value is None:
        return PandoraPolicy()
    if not (isinstance(getattr(value, "name", None), str) and callable(getattr(value, "decide", None))):
        raise UsageError(f"policy '{policy}': 'base' should be a policy, not {value!r}")
    found: Policy = value
    return found
