"""Alert rules, what Prometheus scrapes, the dashboard: right, and a misspelt word is noticed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra import tools
from tests.infra.metrics import LABELS
from tests.infra.spelling import INFRA, unnoticed

FOLDER = INFRA / "monitoring"
TESTS = Path(__file__).with_name("alerts.test.yml")
ALERTS = (FOLDER / "alerts.yml").read_text()
UNITS = {"percentunit", "percent", "s", "ops", "short", "currencyUSD"}
VARIABLES = {"$__range": "3h", "$replica_hour": "1", "$run": ".*"}


def promtool(*arguments: object) -> list[str]:
    """What it complains about."""
    command = [tools.command("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [] if done.returncode == 0 else [done.stdout + done.stderr]


def query_problems(query: str) -> list[str]:
    """It parses, and every series and label in it is one that Ray or the driver has."""
    promql = tools.module("promql_parser")
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    found: list[str] = []
    labels: set[str] = set()
    for selector in selectors(promql.parse(query)):
        known = LABELS.get(selector.name)
        if known is None:
            found.append(f"no metric {selector.name}")
            continue
        labels |= known.keys()
        for matcher in selector.matchers.matchers:
            values = known.get(matcher.name, ())
            right = matcher.value in values or (values == "any" and matcher.value == ".*")
            found += [] if right else [f"{selector.name}: {matcher.name} {matcher.value}"]
    lists = re.findall(r"\b(?:by|on|ignoring|without) \(([^)]*)\)", query)
    used = {label for text in lists for label in re.findall(r"\w+", text)}
    return found + [f"no label {label}" for label in used - labels]


def selectors(expression: Any) -> Iterator[Any]:
    """The series that a query asks for."""
    if type(expression).__name__ == "VectorSelector":
        yield expression
    for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        inner = getattr(expression, name, None)
        for part in inner if isinstance(inner, list) else [inner]:
            if part is not None:
                yield from selectors(part)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The alerts' tests beside a copy of the alerts."""
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    return tmp_path


@pytest.mark.words
def test_the_alerts_fire_when_they_should_and_each_of_their_words_counts(scratch: Path) -> None:
    def problems(text: str) -> list[str]:
        (scratch / "alerts.yml").write_text(text)
        rules = yaml.safe_load(text)["groups"][0]["rules"]
        found = [problem for rule in rules for problem in query_problems(rule["expr"])]
        return found or promtool("test", "rules", scratch / TESTS.name)

    assert problems(ALERTS) == [] and promtool("check", "rules", FOLDER / "alerts.yml") == []
    rules = yaml.safe_load(ALERTS)["groups"][0]["rules"]
    told = {sentence for rule in rules for sentence in rule["annotations"].values()}
    assert unnoticed(problems, ALERTS, {"name: pqmim", *told}) == []


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    names = {rule["alert"] for rule in yaml.safe_load(ALERTS)["groups"][0]["rules"]}
    cases = [c for t in yaml.safe_load(TESTS.read_text())["tests"] for c in t["alert_rule_test"]]
    assert {c["alertname"] for c in cases if c["exp_alerts"]} == names
    assert {c["alertname"] for c in cases if not c["exp_alerts"]} == names


def scrape_problems(text: str) -> list[str]:
    """Where Ray lists its nodes, and what promtool takes for granted."""
    config = yaml.safe_load(text)
    (job,) = config["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    wrong = {
        "rule_files": not all((FOLDER / name).is_file() for name in config["rule_files"]),
        "url": discovery["url"] != "http://127.0.0.1:8265/api/prometheus/sd",
        "type": discovery["authorization"]["type"] != "Bearer",
        "token": discovery["authorization"]["credentials_file"] != "/run/pqmim/ray_token",
        "interval": config["global"]["scrape_interval"] != "15s",
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


@pytest.mark.words
def test_what_is_scraped_is_right_and_each_of_its_words_counts(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text()

    def problems(text: str) -> list[str]:
        (tmp_path / "prometheus.yml").write_text(text)
        syntax = promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yml")
        return syntax or scrape_problems(text)

    assert promtool("check", "config", FOLDER / "prometheus.yml") == []
    assert problems(text) == []
    assert unnoticed(problems, text, {"job_name: ray"}) == []


def podmonitor_problems(text: str) -> list[str]:
    """The kind and its fields as the operator's API has them; the ports are those of the pods."""
    manifest = yaml.safe_load(text)
    cluster = yaml.safe_load((INFRA / "kuberay" / "raycluster.yaml").read_text())["spec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    ports = [p["name"] for p in head["ports"] if p["name"].endswith("metrics")]
    spec = {
        "selector": {"matchLabels": {"ray.io/is-ray-node": "yes"}},  # KubeRay's, constant.go
        "podTargetLabels": ["ray.io/cluster"],
        "podMetricsEndpoints": [{"port": port, "interval": "15s"} for port in ports],
    }
    right = {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "spec": spec,
        "metadata": {"name": "pqmim", "labels": {"release": "prometheus"}},
    }  # fmt: skip
    return [name for name in {**right, **manifest} if manifest.get(name) != right.get(name)]


@pytest.mark.words
def test_the_pods_that_are_scraped() -> None:
    text = (FOLDER / "podmonitor.yaml").read_text()
    assert podmonitor_problems(text) == []
    assert unnoticed(podmonitor_problems, text) == []


DASHBOARD = (FOLDER / "dashboard.json").read_text()
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_problems(text: str) -> list[str]:
    """Members and values that Grafana knows, no panel over another, queries that mean something."""
    board = json.loads(text)
    frame = {"uid", "title", "tags", "editable", "schemaVersion", "timezone", "refresh", "time"}
    found = sorted(set(board) ^ (frame | {"templating", "panels"}))
    found += [] if board["timezone"] in ("browser", "utc") else ["timezone"]
    if board["time"] != {"from": "now-3h", "to": "now"} or board["refresh"] != "30s":
        found.append("time")
    covered: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        found += panel_problems(panel)
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        found += [f"{panel['title']} lies over another"] if cells & covered else []
        covered |= cells
    return found + variable_problems(board)


def panel_problems(panel: dict[str, Any]) -> list[str]:
    """Of one panel."""
    members = {"id", "type", "title", "description", "datasource", "gridPos", "fieldConfig"}
    found = sorted(set(panel) ^ (members | {"targets"}))
    defaults = {"unit": panel["fieldConfig"]["defaults"]["unit"], "min": 0}
    wrong = {
        "type": panel["type"] not in ("stat", "timeseries"),
        "datasource": panel["datasource"] != SOURCE,
        "unit": defaults["unit"] not in UNITS,
        "fieldConfig": panel["fieldConfig"] != {"defaults": defaults, "overrides": []},
        "gridPos": set(panel["gridPos"]) != {"x", "y", "w", "h"},
    }
    found += [name for name, is_wrong in wrong.items() if is_wrong]
    for target in panel["targets"]:
        found += sorted(set(target) ^ {"refId", "datasource", "expr", "legendFormat"})
        found += [] if target["datasource"] == SOURCE else ["datasource of a query"]
        found += query_problems(target["expr"])
        labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        found += [name for name in labels if name not in target["expr"]]
    return [f"{panel['title']}: {problem}" for problem in found]


def variable_problems(board: dict[str, Any]) -> list[str]:
    """The variables are those that the queries use."""
    query = {"name": "run", "label": "Run", "type": "query", "datasource": SOURCE, "refresh": 2}
    query |= {"query": "label_values(ray_pqmim_shards_left, run)", "sort": 2}
    query |= {"includeAll": True, "multi": True, "allValue": ".*"}
    price = {"name": "replica_hour", "label": "Price of a replica an hour", "type": "textbox"}
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource"}
    right = [source | {"query": "prometheus"}, query, price | {"query": "1"}]
    queries = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    used = set(re.findall(r"\$\w+", queries))
    return sorted(used ^ set(VARIABLES)) + ([] if board["templating"] == {"list": right} else ["?"])


@pytest.mark.words
def test_the_dashboard_is_right_and_each_of_its_words_counts() -> None:
    tools.module("promql_parser")
    assert dashboard_problems(DASHBOARD) == []
    board = json.loads(DASHBOARD)
    said = {"pqmim", board["title"]}
    for panel in board["panels"]:
        said |= {panel["title"], panel["description"]}
        said |= {target["legendFormat"] for target in panel["targets"]}
    free = {json.dumps(sentence) for sentence in said if "{{" not in sentence}
    assert unnoticed(dashboard_problems, DASHBOARD, free) == []
