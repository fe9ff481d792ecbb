"""The doctor's report: the result of each step, without secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class StepState(StrEnum):
    OK = "ok"
    FAILED = "failed"
    NOT_REACHED = "not reached"


class StepFailed(Exception):
    """The reason a step failed, and advice on what to change."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of the check: request, response, and finding."""

    title: str
    state: StepState
    asked: str = ""
    answered: str = ""
    reason: str = ""
    advice: str = ""


def passed(steps: Sequence[CheckStep]) -> bool:
    return all(step.state == StepState.OK for step in steps)
