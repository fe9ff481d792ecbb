"""The trail of the current decision, worded for one reader; for pages and the API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from accounts.models import User
from auditlog.detail import NAMES
from auditlog.reasons import Step
from auditlog.remedies import Cause, cause, of_answer
from auditlog.today import CurrentDecision, near_tools
from tokens.models import Token, TokenKind
from tokens.visibility import SEES as SEES_TOKENS


class TrailLine(NamedTuple):
    """One check: `result` is pass, stop or open; a stop has its cause."""

    name: str
    result: str
    text: str
    cause: Cause | None = None


@dataclass(frozen=True)
class Trail:
    """An answer as shown to `reader`."""

    answer: CurrentDecision
    reader: User
    lines: list[TrailLine]
    further: list[TrailLine]
    near: list[str]

    @property
    def works(self) -> bool | None:
        return self.answer.works

    @property
    def stops(self) -> list[TrailLine]:
        """Return all obstacles in the order of the checks."""
        return [line for line in (*self.lines, *self.further) if line.cause is not None]

    @property
    def headline(self) -> str:
        """Return the answer in a sentence."""
        question = self.answer.question
        match self.works:
            case True if question.feature is None:
                return "Yes, this would be let in now."
            case True:
                return "Yes, this would go to its server now."
            case None:
                return "Only the server can tell."
        return f"No. It would stop at {self.lines[-1].name}."

    @property
    def not_reached(self) -> list[str]:
        """Return the names of the checks after the one that stops."""
        stop = self.answer.stops_at
        if stop is None:
            return []
        return [NAMES[step] for step, _ in _texts(self.answer, self.reader) if step > stop]

    @property
    def notes(self) -> list[str]:
        """Return the conditions of the answer."""
        return list(_notes(self.answer))


def trail_of(answer: CurrentDecision, reader: User) -> Trail:
    """Return the answer as shown to `reader`."""
    stopped = [
        TrailLine(
            NAMES[words.step], "stop", words.sentence, cause(obstacle.reason, of_answer(answer, obstacle), reader)
        )
        for obstacle, words in answer.obstacles
    ]
    stop = answer.stops_at
    passed = [_line(answer, step, text) for step, text in _texts(answer, reader) if stop is None or step < stop]
    return Trail(answer, reader, [*passed, *stopped[:1]], stopped[1:], _near(answer, reader))


def _near(answer: CurrentDecision, reader: User) -> list[str]:
    """Return similar tool names if the gateway does not know the tool."""
    feature = answer.question.feature
    if feature is None or feature.kind != "tool" or not answer.is_unknown:
        return []
    return near_tools(reader, answer.question.gateway, feature.name)


def _texts(answer: CurrentDecision, reader: User) -> Iterator[tuple[Step, str]]:
    """Yield the text of each check when passed."""
    question, server = answer.question, answer.verdict.assigned
    person, gateway = question.user.email, question.gateway.name
    yield Step.TOKEN, _token_text(answer, reader)
    yield Step.USER, f"{person} is active"
    yield Step.ADDRESS, f"{question.address or 'An address that the token allows'} may use it"
    yield Step.HOST, f"{question.host.name} is enabled"
    yield Step.GATEWAY, f"{gateway} and the connection are enabled"
    yield Step.REACH, f"{person} reaches {gateway}; limits count calls and are not judged here"
    if question.feature is not None:
        its = server.server_name if server else "Its server"
        yield Step.SERVER, f"{its} is assigned, enabled and within the token's scope"
        yield Step.TOOL, f"{question.feature.name} may be used"
        is_used = server is not None and server.identity_label
        yield Step.IDENTITY, f"“{server.identity_label}” would be used" if server and is_used else "None is needed"


def _line(answer: CurrentDecision, step: Step, text: str) -> TrailLine:
    server, feature = answer.verdict.assigned, answer.question.feature
    if step != Step.TOOL or not answer.verdict.unlisted or server is None or feature is None:
        return TrailLine(NAMES[step], "pass", text)
    asked = f"No list of {server.server_name} has had {feature.name} so far; a call would make the gateway ask again"
    return TrailLine(NAMES[step], "open", asked)


def _token_text(answer: CurrentDecision, reader: User) -> str:
    token = answer.token
    if token is None:
        return "The app has a token, or gets one by itself"
    if token.connection.user_id == reader.pk or token.last_used_at or any(map(reader.has_perm, SEES_TOKENS)):
        return f"“{token.name}” {token.prefix} is known, not revoked, not expired"
    return "A token is known, not revoked, not expired"


def _notes(answer: CurrentDecision) -> Iterator[str]:
    came_with: Token | None = answer.question.token
    if came_with is not None and came_with.kind == TokenKind.ACCESS and answer.token != came_with:
        yield "This is about the token that gets furthest; the one of the call gets less far."
    if answer.verdict.by_arguments:
        yield "Its server changed the definition; until that is accepted, the arguments have to fit both."
