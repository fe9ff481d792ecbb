"""Answers to calls that were not sent because a rule holds them: a text, or a request to open the hold's page."""

from datetime import UTC, datetime
from typing import NamedTuple

from proxy.request import McpRequest
from proxy.response import Response
from wire import jsonrpc
from wire.jsonrpc import Object

HELD = (
    "This call waits for approval by {approvers}. Nothing was executed. Call the tool again with the same arguments"
    " after the approval; the request for approval ends at {ends}. {url}"
)
DENIED = "A person denied this call. Nothing was executed. {sentence}"
WITHDRAWN = "The request to approve this call was withdrawn. Nothing was executed. {sentence}"
EXPIRED = (
    "Nobody decided on this call in time. Nothing was executed. To ask again, call the tool again with the same"
    " arguments. {url}"
)
FULL = (
    "This call needs approval, but {approvers} calls of this connection wait for approval already. Nothing was"
    " executed. Wait for their decisions. {url}"
)


class FoundHold(NamedTuple):
    """The hold of a call, as the database function `approvals_ask` returns it."""

    verdict: str
    id: str | None
    ends: float | None
    sentence: str
    # Who may approve the call, in words; with the verdict `full`, the number of waiting holds of the connection.
    approvers: str
    patience: int | None  # Seconds that a request of this connection may stay open; None if not known.


class HoldAnswer(NamedTuple):
    """One of the possible answers to a held call that was not sent to its server."""

    reason: str  # For the log.
    state: str  # Of the hold; empty if the call has none.
    template: str


ANSWERS = {
    "waiting": HoldAnswer("held", "waiting", HELD),
    "denied": HoldAnswer("hold_denied", "denied", DENIED),
    "withdrawn": HoldAnswer("hold_denied", "withdrawn", WITHDRAWN),
    "expired": HoldAnswer("hold_expired", "expired", EXPIRED),
    "full": HoldAnswer("too_many_holds", "", FULL),
}


class NotApproved(Exception):
    """The call was not sent: its hold is waiting, denied, withdrawn or expired, or too many other holds are waiting."""

    def __init__(self, state: str, found: FoundHold, url: str, sentence: str = "") -> None:
        super().__init__(state)
        self.answer = ANSWERS[state]
        self._found = found
        self._url = url
        self._sentence = sentence

    def response(self, request: McpRequest, more: Object) -> Response:
        """Return a tool result that says why the call was not sent.

        The result is marked as an error, because any other result would have to fit the tool's output schema.
        """
        result = {"content": [{"type": "text", "text": self._text()}], "isError": True, "_meta": self._meta(), **more}
        request_id = request.message.id if request.message is not None else None
        return Response(200, jsonrpc.result(request_id, result), "denied", self.answer.reason)

    def _text(self) -> str:
        known = {"approvers": self._found.approvers, "ends": _time(self._found.ends), "url": self._url}
        return self.answer.template.format(**known, sentence=self._sentence).strip()

    def _meta(self) -> Object:
        if self._found.id is None:
            return {"url": self._url}
        ends = _time(self._found.ends)
        return {"hold": self._found.id, "url": self._url, "state": self.answer.state, "ends": ends}


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The key of the request to open the page, in `inputRequests` and `inputResponses` of MCP 2026-07-28.
PAGE = "gateway-approval"


def page_request(found: FoundHold, url: str) -> Object:
    """Return the request to open the page of a hold, for a client that can open URLs.

    The gateway ignores the client's answer to this request.
    """
    message = f"This call waits for approval by {found.approvers}."
    params = {"mode": "url", "message": message, "url": url, "elicitationId": found.id}
    return {"method": "elicitation/create", "params": params}


class PageOffered(NotApproved):
    """The call was not sent. Its client, which speaks MCP 2026-07-28, is asked to open the page of the hold."""

    def __init__(self, found: FoundHold, url: str) -> None:
        super().__init__("waiting", found, url)

    def response(self, request: McpRequest, more: Object) -> Response:
        """Return the result `input_required`."""
        # No `requestState` is needed: the client repeats the same call, and the hold is found by tool and arguments.
        asked = {PAGE: page_request(self._found, self._url)}
        result = {"resultType": "input_required", "inputRequests": asked, "_meta": self._meta()}
        request_id = request.message.id if request.message is not None else None
        return Response(200, jsonrpc.result(request_id, result), "denied", self.answer.reason)
