"""Writes the README's section on clients from ui/clients.toml: `make readme`."""

import re

from tests.docs.pages import ROOT
from ui.clients import section

README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- clients: .*?-->\n).*?(?=<!-- end of clients -->)", re.DOTALL)


def written(text: str) -> str:
    """The README with the section as the data says."""
    return PLACE.sub(lambda found: f"{found[1]}\n{section()}\n", text)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
