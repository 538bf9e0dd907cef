"""Graded tasks whose answers can be checked. `tasks.nano` generates those that the embedded ladder knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Level = Literal["simple", "medium", "complex"]
Split = Literal["nano-train", "train", "judged"]

PARAMS: Mapping[str, Any] = MappingProxyType({"temperature": 0, "max_tokens": 96})
"""How tasks are asked unless told otherwise: greedily, with room for the longest answer."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its reference answer.

    `grader` names a function of `stepladder.evaluate.graders`; `group_id` names the fact or the instance behind the
    question, so that two splits that share no group share no answer to learn by heart.
    """

    query_id: str
    family: str
    level: Level
    prompt: str
    answer: str
    grader: str
    group_id: str
    split: Split
