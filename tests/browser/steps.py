"""Functions that act on the pages as a person does. They find buttons, links and fields by their visible text."""

import re
from dataclasses import dataclass
from urllib.parse import quote

from playwright.sync_api import Dialog, Locator, Page, expect

from tests import workspace


@dataclass(frozen=True, slots=True)
class Minted:
    """The content of the show-once dialog."""

    token: str
    gateway_url: str
    snippets: dict[str, str]


def sign_in(page: Page, url: str, email: str = workspace.OWNER, password: str = workspace.PASSWORD) -> None:
    page.goto(f"{url}/")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def press(page: Page | Locator, label: str) -> None:
    """Press the button with this label, or a link styled as a button."""
    button = page.get_by_role("button", name=label, exact=True)
    button.or_(page.get_by_role("link", name=label, exact=True)).first.click()


def add_host(page: Page, url: str, name: str) -> None:
    """Create a host by *Add API access token-based host* in Apps & Agents; ends on the host's Connections tab."""
    page.goto(f"{url}/hosts/")
    press(page, "Add API access token-based host")
    dialog = page.get_by_role("dialog", name="Add API access token-based host")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def add_connection(page: Page, gateway: str) -> Page:
    """Create a connection from a host's Connections tab; return the page with the open show-once dialog."""
    flow = start_connection(page)
    choose_gateway(flow, gateway)
    generate(flow)
    return flow


def start_connection(page: Page) -> Page:
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Add a connection").click()
    return opened.value


def choose_gateway(flow: Page, gateway: str) -> None:
    flow.get_by_role("radio", name=gateway).check()
    flow.get_by_role("button", name="Allow").click()
    expect(flow.get_by_role("button", name="Generate")).to_be_visible()


def generate(flow: Page) -> None:
    flow.get_by_role("button", name="Generate").click()
    expect(token_dialog(flow)).to_be_visible()


def token_dialog(flow: Page) -> Locator:
    return flow.get_by_role("dialog", name="Your API access token")


def copied(flow: Page) -> Minted:
    """Return everything that the show-once dialog offers to copy."""
    dialog = token_dialog(flow)
    snippets = {}
    for tab in dialog.get_by_role("tab").all():
        tab.click()
        snippets[tab.inner_text()] = "\n".join(dialog.get_by_role("tabpanel").locator("code").all_inner_texts())
    return Minted(
        dialog.get_by_label("API access token").input_value(),
        dialog.get_by_label("Gateway URL").input_value(),
        snippets,
    )


def done(flow: Page) -> None:
    dialog = token_dialog(flow)
    dialog.get_by_label("I have stored it").check()
    dialog.get_by_role("button", name="Done").click()
    expect(dialog).to_be_hidden()


def open_connections(page: Page, url: str, host: str) -> None:
    """Go from Apps & Agents to the Connections tab of this host."""
    page.goto(f"{url}/hosts/?q={quote(host)}")
    page.get_by_role("link", name=host).click()
    page.get_by_role("navigation", name=host).get_by_role("link", name="Connections").click()


def revoke(page: Page, *words: str) -> None:
    """Revoke the connection whose row contains these words, and check that the row shows it as revoked."""
    connection = row(page, *words)
    connection.get_by_role("button", name="Revoke").first.click()
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    expect(connection).to_contain_text("revoked")


def row(page: Page, *words: str) -> Locator:
    """Return the table row that contains all of these words."""
    rows = page.get_by_role("row")
    for text in words:
        rows = rows.filter(has_text=text)
    return rows.first


def refuse_dialogs(page: Page) -> list[str]:
    """Cancel native dialogs from now on, and return the list of their texts, which should stay empty."""
    said: list[str] = []

    def note(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    return said


def check_server(page: Page, url: str, address: str) -> Locator:
    """Check an address in *Add a server*, repeatedly if the server answers too slowly, and return the form."""
    flow = page.locator("#add-form")
    said = flow.get_by_role("status")
    too_slow = "did not (finish|answer) within"
    for _ in range(9):
        page.goto(f"{url}/servers/")
        press(page, "Add a server")
        page.get_by_label("URL").fill(address)
        press(page, "Check")
        expect(said).to_contain_text(re.compile(f"tool|{too_slow}"))
        if not re.search(too_slow, said.inner_text()):
            break
    expect(said).to_contain_text("tool")
    return flow


def add_server(page: Page, url: str, name: str, address: str) -> None:
    """Add a server after its check succeeded, without assigning it to a gateway."""
    flow = check_server(page, url, address)
    expect(flow.get_by_role("status")).to_contain_text("tools")
    flow.get_by_label("Name", exact=True).fill(name)
    for box in flow.get_by_role("checkbox").all():
        box.uncheck()
    press(flow, "Add a server")
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def add_gateway(page: Page, url: str, name: str) -> None:
    """Add a gateway by its form; ends on its page."""
    page.goto(f"{url}/gateways/")
    press(page, "Add a gateway")
    dialog = page.get_by_role("dialog", name="Add a gateway")
    dialog.get_by_label("Name", exact=True).fill(name)
    press(dialog, "Add a gateway")
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def assign(page: Page, url: str, gateway: str, server: str, *, alias: str) -> None:
    """Assign a server on the gateway's Servers tab, without a credential."""
    page.goto(f"{url}/gateways/?q={quote(gateway)}")
    page.get_by_role("link", name=gateway, exact=True).click()
    page.get_by_role("navigation", name=gateway).get_by_role("link", name="Servers").click()
    press(page, "Assign a server")
    dialog = page.get_by_role("dialog", name="Assign a server")
    dialog.get_by_label("Server", exact=True).select_option(label=server)
    dialog.get_by_role("textbox", name="Alias").fill(alias)
    dialog.get_by_role("radio", name="No credential").check()
    press(dialog, "Assign")
    expect(row(page, server)).to_be_visible()
