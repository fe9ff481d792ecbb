"""The reference pages match the code: all names are compared."""

import re
from inspect import getsource

import prometheus_client

from accounts.capability_groups import notes_on
from auditlog.checkpoints import verify_export, verifying
from auditlog.outcomes import REASONS
from capabilities import Capability
from capabilities.catalogue import BUILT_IN
from gatewayadmin.config import environment
from gatewayadmin.management.commands import verify_log
from gatewayadmin.serving import health, housekeeping
from proxy import app, metrics
from proxy.access.decision import DENIALS
from proxy.access.features import Refusal
from sinks import archive
from sinks.receivers import KINDS
from tests.docs.pages import ROOT, first_column
from wire import background, jsonrpc, token_text
from wire.errors import UpstreamError

REFERENCE = ROOT / "docs" / "reference"


def test_every_setting_is_documented_and_no_other() -> None:
    ours = {name for name in environment._seen if not name.startswith("GATEWAY_BUILTIN_")}

    assert set(first_column(REFERENCE / "settings.md")) == ours


def test_every_capability_is_documented_word_for_word() -> None:
    text = (REFERENCE / "permissions.md").read_text()

    for one in Capability:
        assert f"| `{one.name}` | `{one.slug}` | {one.label} | {notes_on(one)} |" in text
    for role in BUILT_IN:
        assert f"| {role.name} |" in text


def test_every_metric_is_documented_and_no_other() -> None:
    documented = first_column(REFERENCE / "metrics.md")
    background.failures()
    families = [family for family in prometheus_client.REGISTRY.collect() if family.name.startswith("gateway_")]
    families += health.families([], 0.0, 0)

    assert {f"{one.name}_total" if one.type == "counter" else one.name for one in families} == set(documented)
    assert {metrics.UNAVAILABLE, health.POOL, housekeeping.FAILED}  # Importing these modules registers their metrics.


def test_the_page_of_alerts_names_metrics_there_are() -> None:
    asked = set(re.findall(r"gateway_[a-z0-9_]+_[a-z]+", (ROOT / "docs" / "how-to" / "monitor.md").read_text()))
    asked -= {"gateway_disabled"}  # A deny reason, not a metric.

    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= set(first_column(REFERENCE / "metrics.md"))


def test_every_kind_of_log_sink_is_documented() -> None:
    page = (REFERENCE.parent / "how-to" / "send-the-logs.md").read_text().lower()

    for kind in KINDS.values():
        assert f"\n| {kind.label.partition(',')[0].lower()}" in page, kind.name


def test_the_lines_of_the_verifiers_are_documented_as_they_are_printed() -> None:
    text = (REFERENCE / "commands.md").read_text().split("### Lines of the verifiers")[1].split("\n## ")[0]
    told = [code for row in text.splitlines() if row.startswith("| `") for code in re.findall("`([^`]+)`", row[:-1])]
    sources = "".join(map(getsource, (verify_export, verifying, verify_log, archive)))
    printed = re.findall(r'(?:found\(|add\("\w+", |said = |return )\s*f?"([^"]+[.…])"', sources)

    assert len(printed) > 20
    assert [piece for code in told for piece in code.split("...") if piece.strip() not in sources] == []
    pieces = {line: max(re.split(r"{[^}]*}", line), key=len).removeprefix("s ").strip() for line in printed}
    assert [line for line, piece in pieces.items() if piece not in text] == []


# Statuses other than 200, for errors that no access rule raises.
STATUSES = {"session_lost": 404, "open_files": 503}


def upstream_errors() -> list[type[UpstreamError]]:
    """Return all subclasses of UpstreamError."""
    assert callable(app.runtime)  # The import defines the error classes.
    kinds = UpstreamError.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


# The answer is the result of a tool, which tells the model to call again.
HELD = {"too_many_holds", "held", "hold_denied", "hold_expired"}


def answer_of(reason: str) -> str:
    """Return the HTTP status (if not 200) and the JSON-RPC code of a refusal with this reason."""
    codes = {kind.reason: kind.code for kind in upstream_errors() if kind is not Refusal}
    codes["open_files"] = jsonrpc.INTERNAL_ERROR
    if reason in HELD:
        return "[result](#held-calls)"
    status = REASONS[reason].status or STATUSES.get(reason)
    code = jsonrpc.UNAUTHORIZED if status == 401 else codes.get(reason, jsonrpc.FORBIDDEN)
    return f"{status}, {code}" if status else str(code)


def test_the_decision_order_names_the_reasons_of_the_code_with_their_answers_and_no_other() -> None:
    page = (REFERENCE / "decision-order.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| (?:`(\w+)`)? *\| (.*?) *\|$", page, re.MULTILINE)
    documented = {reason: answer for _, reason, answer in rows if reason}
    raised = {error.reason for error in upstream_errors()} | {"open_files"}

    assert [int(number) for number, *_ in rows] == sorted(int(number) for number, *_ in rows)
    assert documented.keys() == set(REASONS) - {"internal_error"}  # An error of the gateway, not a check.
    assert documented == {reason: answer_of(reason) for reason in documented}
    assert set(DENIALS) | raised <= documented.keys()


def test_the_decision_order_quotes_every_body_of_a_refusal() -> None:
    page = (REFERENCE / "decision-order.md").read_text()

    quoted = {*re.findall(r'`(\{"jsonrpc".*\})`', page)}
    published = {denied.published.decode() for denied in DENIALS.values() if denied.published}
    example = DENIALS["gateway_disabled"].body("https://gateway.example.com").decode()

    assert quoted == published | {example}


def test_the_documented_pattern_and_check_recognise_every_kind_of_token() -> None:
    page = (REFERENCE / "protocol.md").read_text()
    pattern, program = re.findall(r"^```(?:python)?\n(\\b.*?|from zlib.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    is_token = names["is_token"]
    assert callable(is_token)

    for prefix in token_text.PREFIXES:
        text = token_text.mint(prefix)

        assert re.search(pattern, f"token={text};"), prefix
        assert is_token(text), prefix
        assert not is_token(text[:-1] + ("a" if text[-1] != "a" else "b")), prefix
        assert f"| `{prefix}_` |" in page


def test_a_token_is_made_as_its_formula_says() -> None:
    page = (REFERENCE / "protocol.md").read_text()
    (formula,) = re.findall(r"^gwa_ \+ (\d+) random characters \+ (\d+) characters of checksum$", page, re.MULTILINE)
    random, checksum = map(int, formula)

    text = token_text.mint("gwa")

    assert len(text) == len("gwa_") + random + checksum
    assert f"All tokens and keys have the same form, {len(text)} characters" in page
