"""Troubleshooting has advice for each reason in the log, and quotes texts of the product."""

import re

from auditlog.outcomes import REASONS
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text()


def test_the_page_says_of_every_reason_of_the_log_once_what_to_do_and_of_no_other() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+) \|$", PAGE.partition("## Reasons")[2], re.MULTILINE)
    named = [reason for reasons, _ in rows for reason in re.findall(r"`(\w+)`", reasons)]

    assert sorted(named) == sorted(REASONS)
    assert all(len(advice) > 10 for _, advice in rows)


def test_every_quoted_symptom_is_a_text_of_the_product() -> None:
    quoted = re.findall(r"^\| \"(.+?)\" \|", PAGE, re.MULTILINE)
    rooms = ("accounts", "templates", "ui")
    files = [path for room in rooms for end in ("py", "html") for path in (ROOT / room).rglob(f"*.{end}")]
    product = "\n".join(path.read_text() for path in files)

    assert len(quoted) >= 5
    assert [text for text in quoted if text not in product] == []
