"""Write the names of the clients in ui/clients.toml into the documents (`make readme`)."""

import re
from pathlib import Path

from tests.docs.pages import ROOT
from ui.clients import clients

NAMES = ", ".join(client.name for client in clients()) + ".\n"
TEXTS = (ROOT / "README.md", ROOT / "docs" / "how-to" / "connect-a-client.md")
PLACE = re.compile(r"(<!-- clients: .*?-->\n).*?(?=<!-- end of clients -->)", re.DOTALL)


def written(page: Path) -> str:
    """Return the page with the text between the two marks replaced by the generated text."""
    text, places = PLACE.subn(lambda found: f"{found[1]}\n{NAMES}\n", page.read_text())
    assert places == 1, page
    return text


if __name__ == "__main__":
    for page in TEXTS:
        page.write_text(written(page))
