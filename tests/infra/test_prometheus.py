"""A real Prometheus at a real Ray head, while a job runs there that meets a bad image and loses a
replica: every panel of the dashboard has data, and the sums are those of the run's summary."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.observe import metrics
from tests.cluster.test_ray_jobs import environment_of, start_command, wait_for
from tests.conftest import free_ports
from tests.corpus import jpeg, make_tar
from tests.infra import tools
from tests.infra.spelling import INFRA, ROOT
from tests.infra.test_monitoring import DASHBOARD, VARIABLES
from tests.models import tiny_bytes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

SHARDS = 3000  # more than are done before every panel has data; then the run is stopped
SIDE = 800  # pixels
PATIENCE_S = 400.0


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[Any]:
    """A process that is ended with the block."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(timeout=60)
        finally:
            started.kill()


def until(found: Callable[[], Any], log: Path) -> Any:
    """What is found, once it is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.5)
    return result


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes as infra/monitoring/prometheus.yml says, every second."""

    url: str

    def ask(self, query: str) -> dict[str, float]:
        """Value by label (beside ``run``), of what is a number."""
        text = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{text}", timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        values = {}
        for series in found:
            labels = {k: v for k, v in series["metric"].items() if k != "run"}
            values[next(iter(labels.values()), "")] = float(series["value"][1])
        return {label: value for label, value in values.items() if value == value}

    def total(self, metric: metrics.Metric) -> dict[str, float]:
        """Of a counter, over all processes that have counted."""
        by = f"by ({metric.label})" if metric.label else ""
        return self.ask(f"sum {by} ({metric.series})")


@dataclass(frozen=True)
class Cluster:
    """A Ray head, its Prometheus, and what a job there needs."""

    prometheus: Prometheus
    environment: dict[str, str]


def ray_head(folder: Path, first: int, environment: dict[str, str]) -> list[str]:
    """The command; the ports that Ray would take for its metrics are free ones."""
    environment["AUTOSCALER_METRIC_PORT"] = str(first + 4)
    environment["DASHBOARD_METRIC_PORT"] = str(first + 5)
    often = '--system-config={"metrics_report_interval_ms":1000}'
    return [*start_command(folder, first), f"--metrics-export-port={first + 6}", often]


def configured(folder: Path, dashboard: str, token: str) -> Path:
    """infra/monitoring/prometheus.yml for the ports and the patience of a test."""
    config = yaml.safe_load((INFRA / "monitoring" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(INFRA / "monitoring" / "alerts.yml")]
    (discovery,) = config["scrape_configs"][0]["http_sd_configs"]
    discovery["url"] = discovery["url"].replace("http://127.0.0.1:8265", dashboard)
    discovery["refresh_interval"] = "1s"
    discovery["authorization"]["credentials_file"] = token
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with two CPUs and a Prometheus."""
    program = tools.command("prometheus")
    folder = Path(tempfile.mkdtemp(prefix="prom"))  # short: Ray's sockets in it have a limit
    environment, first = environment_of(folder), free_ports(8)
    dashboard, log = f"http://127.0.0.1:{first + 1}", folder / "head.log"
    config = configured(folder, dashboard, environment["RAY_AUTH_TOKEN_PATH"])
    server = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
              f"--web.listen-address=127.0.0.1:{first + 7}"]  # fmt: skip
    try:
        with process(ray_head(folder, first, environment), log, environment) as head:
            wait_for(dashboard, head, log)
            with process(server, folder / "prometheus.log", environment):
                address = f"127.0.0.2:{first}"
                yield Cluster(
                    Prometheus(f"http://127.0.0.1:{first + 7}"),
                    environment | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
                )
    finally:
        shutil.rmtree(folder)


def encode_command(folder: Path) -> list[str]:
    """A job of SHARDS shards with an image and one that is none."""
    shards = folder / "shards"
    shards.mkdir()
    (folder / "one.tar").write_bytes(
        make_tar([("a.jpg", jpeg(SIDE, SIDE)), ("b.jpg", b"no picture")])
    )
    for number in range(SHARDS):
        (shards / f"{number:04}.tar").hardlink_to(folder / "one.tar")
    (folder / "tiny.safetensors").write_bytes(tiny_bytes())
    return [sys.executable, "-m", "jobs.encode", "--input", str(shards), "--device", "cpu",
            "--output", str(folder / "archive"), "--quality", "3", "--store", "codes",
            "--replicas", "2", "--max-bad-images", "1",
            "--weights", str(folder / "tiny.safetensors")]  # fmt: skip


def queries() -> dict[str, str]:
    """Of every panel of the dashboard, by what it is called."""
    found = {}
    for panel in json.loads(DASHBOARD)["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = query
    return found


def test_every_panel_has_data_and_the_sums_are_those_of_the_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    log, ask = tmp_path / "job.log", cluster.prometheus.ask
    with process(encode_command(tmp_path), log, cluster.environment) as job:
        pid = until(lambda: re.search(r"replica-1 is process (\d+)", log.read_text()), log)[1]
        until(lambda: cluster.prometheus.total(metrics.IMAGES).get("ok"), log)
        os.kill(int(pid), signal.SIGKILL)
        # In no panel without storage that fails and shards that are late: what has not happened yet
        # has no series.
        silent = {"Tried again B", "Tried again C"}
        empty = [""]

        def all_there() -> bool:
            empty[:] = [name for name, q in queries().items() if not ask(q) and name not in silent]
            assert job.poll() is None, log.read_text()[-3000:]
            return not empty

        try:
            until(all_there, log)
        except AssertionError as error:
            raise AssertionError(f"no data in {empty}") from error
        job.send_signal(signal.SIGTERM)
        job.wait(60)
    (path,) = (tmp_path / "archive").glob("runs/*/summary.json")
    summary = json.loads(path.read_text())

    def counted() -> bool:
        return cluster.prometheus.total(metrics.SHARDS) == {"done": summary["shards_done"]}

    until(counted, log)
    assert cluster.prometheus.total(metrics.IMAGES) == summary["rows"]
    assert cluster.prometheus.total(metrics.CODES) == {"": summary["code_bytes"]}
    assert cluster.prometheus.total(metrics.LOST) == {"died": 1} and summary["replicas_lost"] == 1
