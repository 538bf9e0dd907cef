"""URLs that a request names. Stepladder fetches none; a stage's server may, from inside the operator's network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from stepladder.errors import RequestError

Urls = Literal["any", "data", "off"]
"""Which URLs in a message's parts are let through: all, only those that hold their content themselves, or none."""


def check_urls(messages: Sequence[Mapping[str, Any]], rule: Urls) -> None:
    """Raises RequestError for a part whose URL (``image_url``, ``video_url`` …) the rule does not let through."""
    if rule == "any":
        return
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for key, url in _urls(content):
            if rule == "off" or not _holds_itself(url):
                raise RequestError(_told(key, rule), param=f"messages[{index}].content", code="url_not_allowed")


def _urls(parts: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for part in parts:
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if key.endswith("_url"):
                yield key, value.get("url") if isinstance(value, Mapping) else value


def _holds_itself(url: Any) -> bool:
    return isinstance(url, str) and url[:5].lower() == "data:"


def _told(key: str, rule: Urls) -> str:
    if rule == "off":
        return f"{key}: images and other media are not taken here (gateway.image_urls is 'off')"
    return (
        f"{key}: only data: URLs are taken here, since a stage's server would fetch others from its own network; "
        "send the content itself, or set gateway.image_urls to 'any'"
    )
