"""A person enters the key that a server asks for: on *My identities*, and while connecting an agent."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests import curl, upstreams
from tests.asgi_server import Upstream
from tests.browser import steps
from tests.make import unique
from tests.secrecy import note
from tests.workspace import OWNER, Serve

MAKE = f"""
from accounts.models import User
from tests import make

owner = User.objects.get(email={OWNER!r})
server = make.server(name={{name!r}}, slug={{slug!r}}, url={{url!r}}, auth_type="bearer")
gateway = make.gateway(name={{name!r}}, slug={{slug!r}})
make.assignment(gateway, server, identity_scheme="per_user")
make.agent(name="Other " + {{name!r}}, by=owner)
connection = make.connection(make.agent(name={{name!r}}, by=owner), gateway, owner)
print(connection.pk, make.token(connection).secret)
"""


@pytest.fixture(scope="module")
def github() -> Iterator[Upstream]:
    with upstreams.running(upstreams.github()) as upstream:
        yield upstream


@pytest.mark.full
def test_a_person_enters_a_key_on_my_identities_and_on_the_way_to_a_token(
    live: Serve, page: Page, github: Upstream
) -> None:
    name, keys = unique("Keyed"), (note("ghp_of_the_first_form_0123"), note("ghp_of_the_second_form_0123"))
    slug = name.lower().replace(" ", "-")[-16:]
    connection, token = live.manage("shell", "-c", MAKE.format(name=name, slug=slug, url=github.url)).split()[-2:]
    url = f"{live.url}/mcp/{slug}"

    page.goto(f"{live.url}/settings/identities?connection={connection}")
    adds = page.get_by_role("button", name=f"Add credential for {name}")
    adds.click()
    dialog = page.get_by_role("dialog")
    enters(dialog, keys[0])
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(dialog).to_be_hidden()
    expect(adds).to_be_hidden()  # The page has been loaded again, so that this does not interrupt the next page.
    assert whoami(url, token) == f"Bearer {keys[0]}"

    steps.open_connections(page, live.url, f"Other {name}")
    flow = steps.start_connection(page)
    flow.get_by_role("radio", name=name).check()
    flow.get_by_role("button", name="Next").click()
    flow.get_by_role("radio", name="Add a new identity").check()
    enters(flow.locator("main"), keys[1])
    flow.get_by_role("button", name="Allow").click()
    steps.generate(flow)
    assert whoami(url, steps.copied(flow).token) == f"Bearer {keys[1]}"
    steps.done(flow)


def enters(form: Locator, key: str) -> None:
    """Fill in a new credential. Fails if the fields are not visible."""
    form.get_by_label("Label").fill(unique("Key"))
    form.locator("[name=secret]").fill(key)


def whoami(url: str, token: str) -> str:
    (tool,) = (one["name"] for one in curl.list_tools(url, token).json["result"]["tools"] if "whoami" in one["name"])
    return curl.call_tool(url, token, tool).text
