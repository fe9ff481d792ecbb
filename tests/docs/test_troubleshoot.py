"""Troubleshooting names each reason with the sentence of the log, and texts that the product says."""

import re

from auditlog.outcomes import REASONS
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text()


def test_every_reason_of_the_log_has_its_sentence_and_what_to_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)

    assert {reason: sentence for reason, sentence, _ in rows} == {
        reason: known.sentence for reason, known in REASONS.items()
    }
    assert all(len(advice) > 10 for _, _, advice in rows)


def test_every_quoted_symptom_is_a_text_of_the_product() -> None:
    quoted = re.findall(r"^\| \"(.+?)\" \|", PAGE, re.MULTILINE)
    rooms = ("accounts", "templates", "ui")
    files = [path for room in rooms for end in ("py", "html") for path in (ROOT / room).rglob(f"*.{end}")]
    product = "\n".join(path.read_text() for path in files)

    assert len(quoted) >= 5
    assert [text for text in quoted if text not in product] == []
