"""The calls of a session in the log, including the server's requests to the client."""

import json
from typing import Any

import pytest

from accounts.models import User, WorkspaceSettings
from auditlog.models import Call
from auditlog.templatetags.calls import ms
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from proxy.models import Session
from tests import make
from tests.conftest import Run, SignIn
from tests.eventually import eventually
from tests.proxy.asking import FORM, Asker, Person
from tests.proxy.conftest import Proxy, Start

GIVEN = {"action": "accept", "content": {"name": "Ada"}}


@pytest.fixture
def ada() -> User:
    return make.user(email="ada@example.com")


@pytest.fixture
def work(start: Start, run: Run, ada: User) -> tuple[Proxy, Connection]:
    """A proxy, and Ada's connection to a server that asks the client during a call."""
    docs = run(Asker(asks=[FORM]).app())
    gateway: Gateway = make.gateway(make.introduced(make.server(slug="docs", name="Docs", url=docs.url)), slug="work")
    return start(), make.connection(make.agent(by=ada), gateway, ada)


def text(response: Any) -> str:
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return str(body.decode())


def test_calls_of_a_session_are_a_waterfall_with_what_the_client_was_asked(
    work: tuple[Proxy, Connection], ada: User, sign_in: SignIn
) -> None:
    WorkspaceSettings.objects.update_or_create(pk=1, defaults={"record_payloads": True})
    proxy, connection = work
    reader = make.user(Capability.LOGS_READ)
    person = Person(proxy.agent(connection)).initialize()
    [open_session] = Session.objects.all()
    person.call("docs__quick")
    person.call("docs__it", lambda asked: person.say({"id": asked["id"], "result": GIVEN}))
    other = Person(proxy.agent(connection)).initialize()
    other.call("docs__hasty")
    proxy.agent(connection).call("docs__quick")

    calls = Call.objects.filter(session_id=open_session.pk)
    assert [*calls.order_by("created_at").values_list("method", flat=True)] == [
        *("initialize", "tools/call", "tools/call", "elicitation/create", "response")
    ]
    assert Call.objects.get(session_id=None).feature_name == "docs__quick"
    assert Call.objects.find(open_session.pk).method == "initialize"

    page = text(sign_in(reader).get(f"/logs/sessions/{open_session.pk}/"))
    own = text(sign_in(ada).get(f"/logs/sessions/{open_session.pk}/"))
    asked, call = calls.get(method="elicitation/create"), calls.get(feature_name="docs__it")
    assert page.index(">docs__quick<") < page.index(">docs__it<") < page.index("Docs asked the client")
    assert "docs__hasty" not in page
    assert f'href="/logs/{asked.uid}/"' in page
    assert f'href="/settings/calls/{asked.uid}/"' in own
    assert page.count(f"{ms(asked.duration_ms)} waiting for the client") == 2, "in its own bar, and in that of its call"
    assert call.duration_ms >= asked.duration_ms
    assert sign_in(make.user()).get(f"/logs/sessions/{open_session.pk}/").status_code == 404
    drawer = text(sign_in(reader).get(f"/logs/{call.uid}/"))
    assert f'href="/logs/sessions/{open_session.pk}/"' in drawer

    connection.end_sessions(by=ada)
    eventually(lambda: not Session.objects.exists())
    ended = text(sign_in(reader).get(f"/logs/sessions/{open_session.pk}/"))
    assert ">ended<" in ended
    assert ">docs__it<" in ended

    exported = text(sign_in(reader).get(f"/logs/export/?format=jsonl&session={open_session.pk}"))
    assert exported.count(f'"session_id":"{open_session.pk}"') == calls.count()
    log = json.dumps([*Call.objects.values()], default=str)
    for secret in (person.session, other.session, bytes(open_session.digest).hex()):
        assert not [where for where in (log, page, own, ended, drawer, exported) if secret in where]
