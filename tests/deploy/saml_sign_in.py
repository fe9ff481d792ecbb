"""SAML sign-in over HTTPS at a running gateway: an administrator sets it up, and a new person signs in."""

import base64
import html
import re
import zlib
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.sso.saml_provider import Answer, Pair, metadata_of

ENTITY, SSO = "https://idp.example.com/saml", "https://idp.example.com/sso"
OURS = "/accounts/organisation/saml"
FIELD = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


def signs_in(open_client: Callable[[], httpx.Client], administrator: httpx.Client, email: str) -> int:
    """Sign in a new person with a SAML response; return the status of the person's profile page."""
    pair, url = Pair.make(), str(administrator.base_url).rstrip("/")
    set_up(administrator, metadata_of(ENTITY, SSO, pair), email.partition("@")[2])
    ours = administrator.get(f"{OURS}/metadata/")
    assert f'entityID="{url}{OURS}/metadata/"' in ours.text, ours.text
    with open_client() as person, open_client() as from_their_page:
        page = person.get("/accounts/login/").text
        form = {"csrfmiddlewaretoken": FIELD.findall(page)[0]}
        asked = person.post("/accounts/organisation/", data=form, headers={"Referer": f"{url}/accounts/login/"})
        away = html.unescape(re.findall(r'data-kind="primary" href="([^"]+)"', asked.text)[0])
        assert away.startswith(SSO)
        answer = Answer(
            ENTITY,
            pair,
            answers=request_id(away),
            email=email,
            audience=f"{url}{OURS}/metadata/",
            recipient=f"{url}{OURS}/acs/",
            destination=f"{url}{OURS}/acs/",
        )
        led = from_their_page.post(f"{OURS}/acs/", data=answer.fields())
        assert led.status_code == httpx.codes.SEE_OTHER, led.text
        person.get(led.headers["Location"])
        return person.get("/settings/profile").status_code


def set_up(administrator: httpx.Client, metadata: str, domain: str) -> None:
    """Offer SAML, in addition to passwords, to everybody with an e-mail address in this domain."""
    token = FIELD.findall(administrator.get("/settings/profile").text)[0]
    headers = {"X-CSRFToken": token, "Referer": str(administrator.base_url)}
    roles = administrator.get("/api/roles", params={"q": "Member"}).json()["results"]
    steps = (
        {"protocol": "saml", "name": "Example"},
        {"metadata_xml": metadata, "domains": [domain], "default_role_id": roles[0]["id"], "mode": "offered"},
    )
    for changes in steps:
        said = administrator.patch("/api/organisation", json=changes, headers=headers)
        assert said.status_code == httpx.codes.OK, said.text


def request_id(away: str) -> str:
    """Return the request id in the redirect to the provider."""
    (request,) = parse_qs(urlsplit(away).query)["SAMLRequest"]
    return str(re.findall(r' ID="([^"]+)"', zlib.decompress(base64.b64decode(request), -15).decode())[0])
