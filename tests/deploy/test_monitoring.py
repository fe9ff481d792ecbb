"""deploy/prometheus and deploy/grafana use existing metrics and labels, and each alert is documented."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from gatewayadmin.serving import health
from tests.docs.pages import ROOT, anchors
from wire import background

RULE_FILE = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RULE_TESTS = ROOT / "tests" / "deploy" / "alerts.yaml"
RULES = yaml.safe_load(RULE_FILE.read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
BOARD = json.loads((ROOT / "deploy" / "grafana" / "gateway-admin.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ASKED = [(panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
PAGE = ROOT / "docs" / "how-to" / "monitor.md"

FUNCTIONS = {"absent", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time"}
# Labels that Prometheus adds to every scraped metric.
ADDED = {"job", "instance"}
WORD = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
SELECTED = re.compile(r"\b(gateway_\w+|up)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'\s*(\w+)(=~|!~|!=|=)"([^"]*)"\s*')


def exported() -> dict[str, set[str]]:
    """Return the label names of each sample in /metrics, by the sample's name."""
    for name in ("gatewayadmin.serving.health", "gatewayadmin.serving.housekeeping", "proxy.metrics"):
        import_module(name)  # The import registers the module's metrics.
    background.failures()
    found = {}
    for name, collector in REGISTRY._names_to_collectors.items():
        if name.startswith("gateway_"):
            labels = vars(collector)["_labelnames"]
            found[name] = {*labels, *({"le"} if name.endswith("_bucket") else ())}
    for family in health.families([], 0.0, 0):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = set(family._labelnames)  # type: ignore[attr-defined]
    return found | {"up": set()}


METRICS = exported()


def parts(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each metric of the expression, with its label matchers."""
    for name, selector in SELECTED.findall(expression):
        matchers = [MATCHER.fullmatch(part) for part in selector.split(",")] if selector else []
        assert all(matchers), f"{name} {{{selector}}} cannot be read"
        yield name, [(match[1], match[2], match[3]) for match in matchers if match]


def check(expression: str) -> set[str]:
    """Check that a PromQL expression parses and uses existing metrics; return the labels of its result."""
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)
    for name, matchers in parts(expression):
        assert name in METRICS, f"{name} is not in /metrics"
        assert {label for label, _, _ in matchers} <= METRICS[name] | ADDED, f"{name} has no such label"
        counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
        ranged = re.search(rf"(?:rate|increase)\({name}(?:{{[^}}]*}})?\[(?:\d+[mh]|\$__rate_interval)\]\)", expression)
        assert bool(ranged) == counts, f"{name} counts up, and what is asked for is how fast"
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"', "", expression)
    assert set(re.findall(r"([a-z_]+)\(", bare)) <= FUNCTIONS
    kept = [{*WORD.findall(labels)} for labels in re.findall(r"by \(([^)]*)\)", expression)]
    for labels in kept:
        assert all(labels <= METRICS[name] for name, _ in parts(expression))
    if "histogram_quantile" in expression:
        assert all("le" in labels for labels in kept)
        assert kept
        return kept[0] - {"le"}
    return kept[0] if kept else (ADDED if "sum" not in expression and "max" not in expression else set())


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_asks_for_what_there_is_and_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert.keys() == {"alert", "expr", "for", "labels", "annotations"}
    labels = check(alert["expr"])

    assert re.search(r" (<|>|==) [\d.]+( \* \d+)?$", alert["expr"]) or alert["expr"].startswith("absent(")
    assert re.fullmatch(r"\d+[smh]", alert["for"])
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"].keys() == {"summary", "runbook"}
    assert set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])) <= labels
    page, anchor = alert["annotations"]["runbook"].split("#")
    assert ROOT / page == PAGE
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(PAGE)


def test_the_page_explains_each_alert_and_no_other() -> None:
    explained = re.findall(r"^\| <a id=\"\w+\"></a>(Gateway\w+)", PAGE.read_text(), re.MULTILINE)

    assert explained == [alert["alert"] for alert in ALERTS]
    assert list(RULES) == ["groups"]
    assert len(set(explained)) == len(explained)


def test_each_alert_has_a_test_of_when_it_fires_and_when_not() -> None:
    cases = [one for group in yaml.safe_load(RULE_TESTS.read_text())["tests"] for one in group["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}

    assert {one["alertname"] for one in cases if one.get("exp_alerts")} == names
    assert {one["alertname"] for one in cases if not one.get("exp_alerts")} == names


def test_series_of_immediate_alerts_exist_before_the_first_fault() -> None:
    """Without an earlier 0, the first fault raises no alert: Prometheus sees no increase when a series begins at 1."""
    program = "import proxy.metrics, prometheus_client as p; print(p.generate_latest().decode())"
    fresh = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    at_once = [part for alert in ALERTS if "increase(" in alert["expr"] for part in parts(alert["expr"])]

    assert len(at_once) == 2
    for name, matchers in at_once:
        series = re.findall(rf"^{name}(\{{.*\}}) 0.0$", fresh, re.MULTILINE)
        assert [one for one in series if all(f'{label}="{value}"' in one for label, _, value in matchers)], name


def promtool(*words: str) -> str:
    """Run promtool, which must succeed; return its output."""
    program = shutil.which("promtool")
    assert program, "These tests need promtool: install Debian's package prometheus."
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "FAILED" not in said
    return said


@pytest.mark.full
def test_prometheus_takes_the_rules_and_fires_as_they_say() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULE_FILE))
    assert "SUCCESS" in promtool("test", "rules", str(RULE_TESTS))


@pytest.mark.full
def test_prometheus_takes_the_documented_configuration(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    one_address, pods = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    token = tmp_path / "gateway-metrics-token"
    token.write_text("of-a-test")
    place = tmp_path / "prometheus.yaml"
    found = re.compile(r"    kubernetes_sd_configs:\n.*\n")
    assert found.search(pods), "Debian's Prometheus has no way to look for pods, so that part is read by nobody here"
    for scrape in (one_address, found.sub("", pods)):
        place.write_text(scrape.replace("/etc/prometheus/gateway-metrics-token", str(token)))
        assert "SUCCESS" in promtool("check", "config", str(place))


@pytest.mark.full
def test_prometheus_reads_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    """The expressions are sent as Grafana sends them, with variables replaced by values."""
    rules = []
    for number, (_, expression, _) in enumerate(ASKED):
        asked = re.sub(r"\$\{?(?!__)\w+\}?", ".*", expression.replace("$__rate_interval", "5m"))
        rules.append({"record": f"panel:{number}", "expr": asked})
    place = tmp_path / "panels.yaml"
    place.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    assert f"{len(ASKED)} rules found" in promtool("check", "rules", str(place))


@pytest.mark.parametrize(("title", "expression", "legend"), ASKED)
def test_each_panel_asks_for_what_there_is(title: str, expression: str, legend: str) -> None:
    labels = check(expression)

    assert set(re.findall(r"{{(\w+)}}", legend)) <= labels, title
    variables = set(re.findall(r"\$(?!__)(\w+)", expression))
    assert variables <= {each["name"] for each in BOARD["templating"]["list"]}


def test_the_dashboard_can_be_laid_out() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], f"{panel['title']} overlaps"
    assert len(set(ids)) == len(ids)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    for each in BOARD["templating"]["list"]:
        if each["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"]).groups()  # type: ignore[union-attr]
            assert metric in METRICS
            assert label in METRICS[metric] | ADDED


def test_every_metric_is_on_the_dashboard() -> None:
    """Operators do not look at metrics that no dashboard shows."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for _, expression, _ in ASKED for name, _ in parts(expression)}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in METRICS} - {"up"}
    counters = {name.removesuffix("_total") for name in families if name.endswith("_total")}

    assert families - counters - shown == set()


@pytest.mark.parametrize(
    "expression",
    [
        "sum(rate(gateway_nothing_total[5m]))",
        "sum by (person) (rate(gateway_calls_total[5m]))",
        'sum(rate(gateway_calls_total{person="ann"}[5m]))',
        "sum(gateway_calls_total)",
        "sum(rate(gateway_waiting[5m]))",
        "sum(rate(gateway_calls_total[5m])",
        "summe(gateway_waiting)",
        "histogram_quantile(0.9, sum(rate(gateway_call_duration_seconds_bucket[5m])))",
    ],
)
def test_the_check_notices_invalid_and_unknown_metrics(expression: str) -> None:
    with pytest.raises(AssertionError):
        check(expression)
