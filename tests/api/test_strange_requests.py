"""Malformed requests get a readable refusal: no 5xx, no HTML page, no partial answer."""

import pytest

from capabilities import Capability
from hosts.models import Host
from tests import make
from tests.rest import Rest

pytestmark = pytest.mark.django_db

# Requests with encoding mistakes of programs, and requests that only an attacker sends.
STRANGE = [
    ("get", "/gateways/work/servers/%00", None, 404),
    ("get", "/gateways/work/servers/%00/disable", None, 405),
    ("get", "/gateways/work/tools/00000000-0000-0000-0000-00000000000g", None, 404),
    ("get", "/hosts?q=%00", None, 400),
    ("get", "/hosts?q=%ed%a0%80%ff", None, 200),
    ("get", "/hosts?%ff=1", None, 400),
    ("get", f"/hosts?page={10**40}", None, 404),
    ("get", f"/hosts?page_size={10**40}", None, 200),
    ("get", "/connections?user=%00", None, 400),
    ("get", "/connections?host=x", None, 400),
    ("get", "/tokens?expires_before=0001-01-01T00:00:00%2B14:00", None, 400),
    ("get", "/logs?from=9999-12-31T23:59:59-14:00", None, 400),
    ("get", "/logs?cursor=%00", None, 400),
    ("get", f"/logs?http_status={10**40}", None, 400),
    ("get", "/logs/ffffffff-ffff-ffff-ffff-ffffffffffff", None, 404),
    ("post", "/hosts", r'{"\ud800": 1}', 400),
    ("post", "/hosts", r'{"name": "\u0000"}', 400),
    ("post", "/hosts", "[1]", 400),
    ("post", "/hosts", "null", 400),
    ("post", "/hosts", '"name"', 400),
    ("post", "/hosts", "1e999", 400),
    ("post", "/hosts", "[" * 100_000, 400),
    ("post", "/hosts", f'"{"x" * 1024 * 1024}"', 413),
    ("post", "/tokens", r'{"identities": {"\ud800": "x"}}', 400),
    ("post", "/tokens", f'{{"expires_in_days": {10**400}}}', 400),
    ("post", "/gateways", r'{"name": "x", "reach": "\udfff"}', 400),
    ("post", "/gateways", r'{"name": "x", "reach": {}}', 400),
    ("post", "/roles", r'{"name": "x", "capabilities": [{}]}', 400),
    ("patch", "/workspace", f'{{"log_retention_days": -{10**400}}}', 400),
]


def test_the_strange_is_refused_in_words_and_makes_nothing(subtests: pytest.Subtests) -> None:
    make.gateway(slug="work")
    client = Rest.of(make.user(*Capability)).client
    for method, path, body, status in STRANGE:
        with subtests.test(f"{method} {path[:80]} {(body or '')[:80]}"):
            answer = client.generic(method.upper(), f"/api{path}", body or "", content_type="application/json")
            assert answer.status_code == status, answer.content
            assert answer["Content-Type"] == "application/json"
            assert status == 200 or {"detail", "code"} <= set(answer.json())
    assert not Host.objects.exists()
