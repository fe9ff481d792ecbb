"""Write the table of reasons in docs/reference/error-codes.md from proxy/reasons.py: `make readme`."""

import re

from proxy import app
from proxy.access.features import Refusal
from proxy.reasons import REASONS
from tests.docs.pages import ROOT
from wire import jsonrpc
from wire.errors import UpstreamError

PAGE = ROOT / "docs" / "reference" / "error-codes.md"
BLOCK = re.compile(r"(<!-- reasons: .*?-->\n).*?(?=<!-- end of reasons -->)", re.DOTALL)
HEAD = "| reason | answer | the log says |\n| --- | --- | --- |\n"
# Statuses other than 200 of errors that are no access rule's.
STATUSES = {"session_lost": 404, "internal_error": 500, "open_files": 503}


def upstream_errors() -> list[type[UpstreamError]]:
    """Return all kinds of errors between the gateway and a server."""
    assert callable(app.runtime)  # Importing it imports the modules that define them.
    kinds = UpstreamError.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


def table() -> str:
    """Return a table row per reason: its HTTP status unless 200, its JSON-RPC code and its sentence."""
    codes = {kind.reason: kind.code for kind in upstream_errors() if kind is not Refusal}
    codes |= dict.fromkeys(("internal_error", "open_files"), jsonrpc.INTERNAL_ERROR)
    rows = []
    for name, reason in REASONS.items():
        status = reason.status or STATUSES.get(name)
        code = jsonrpc.UNAUTHORIZED if status == 401 else codes.get(name, jsonrpc.FORBIDDEN)
        rows.append(f"| `{name}` | {f'{status}, ' if status else ''}{code} | {reason.sentence} |\n")
    return HEAD + "".join(rows)


def written(text: str) -> str:
    """Return the page with the generated table."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table()}\n", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
