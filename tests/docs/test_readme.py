"""The README's first call, run as printed by a newcomer with a browser."""

import json
import re

from tests.browser import steps
from tests.browser.fixtures import Open
from tests.docs.newcomer import Newcomer, Terminal
from tests.docs.pages import ROOT
from tests.docs.test_quickstart import expect_in_log

README = (ROOT / "README.md").read_text()


def test_the_first_call_works_as_printed(newcomer: Newcomer, terminal: Terminal, open_browser: Open) -> None:
    """The README's first block has started the newcomer's workspace; its second block is the call."""
    start, call = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)

    answer = json.loads(terminal.run(call))

    assert start == "make run\n"
    assert answer["result"]["content"][0]["text"] == "5"
    page = open_browser().new_page()
    steps.sign_in(page, newcomer.url, newcomer.email, newcomer.password)
    expect_in_log(page, newcomer, "CI bot", newcomer.email, "add")
