"""Encode jobs on a Ray cluster of three nodes on this machine, and what befalls it: replicas that
die, hang or are poisoned, nodes that go and come, two drivers at once, a signal.

    python -m tests.cluster.test_nodes OUTPUT REPLICAS

is the job that the tests start: jobs.encode with faults built in, chosen by the names of shards.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import common
from jobs.common import work as works
from pipeline.archive import commit, layout, table
from pipeline.driver.pace import Limits
from pipeline.plan import Plan, Resources, ShardResult, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Replica
from tests import archives
from tests.conftest import free_ports
from tests.corpus import jpeg, make_tar

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HOLD_S = 3.0  # a shard
LIMITS = Limits(late_floor_s=1e9, hang_floor_s=8.0, stall_floor_s=3.0, start_s=250.0)
NOTICE = {  # that a node is gone is found out in a second instead of in half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}


# The job -----------------------------------------------------------------------------------------


def work(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int
) -> ShardResult:  # fmt: skip
    """Encode a shard after what its name says has happened; slowly while there is a file ``hold``
    beside it, so that the job does not end before a test has done its worst."""
    begin, hold = time.monotonic(), Path(spec.url).with_name("hold")
    while hold.exists() and time.monotonic() < begin + HOLD_S:
        time.sleep(0.1)
    if "poison" in spec.url:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in spec.url and attempt == 1:
        time.sleep(10_000)
    return encode_shard(spec, plan, store, replica, attempt)


def job(output: str, replicas: int) -> int:
    """Work off an archive that has been begun."""
    store = Store(output)
    store.probe()
    specs = table.read_listing(store.get("inputs.parquet"))
    resources = Resources(replicas=replicas, queue_bytes=16 << 20)
    return works.work_off(store, layout.read_plan(store), specs, resources, work, True, 1.0, LIMITS)


# The cluster -------------------------------------------------------------------------------------


def small() -> dict[str, Any]:
    """Options of every node.  Its ports are given, because a raylet waits 15 s at most until its
    agents have found some, which is too little on a busy machine."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
             "metrics_export_port")  # fmt: skip
    first = free_ports(len(names))
    return {
        "object_store_memory": 80_000_000, "node_ip_address": "127.0.0.2",
        "include_dashboard": False, "include_log_monitor": False,
        **{name: first + number for number, name in enumerate(names)},
    }  # fmt: skip


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node 30 s to come up, in a constant, which is too little on a busy machine."""

    def ask(*arguments: object) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return ask


class Nodes:
    """A head without replicas and worker nodes with room for one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 0, "_system_config": NOTICE, "no_monitor": True}
        self.cluster: Any = Cluster(
            initialize_head=True, connect=False, head_node_args={**options, **small()}
        )
        self.workers = [self.add(), self.add()]

    def add(self) -> Any:
        """One more node; its raylet may not survive its start on a busy machine."""
        for _ in range(3):
            with contextlib.suppress(Exception):  # Ray raises nothing narrower
                return self.cluster.add_node(num_cpus=1, **small())
        raise AssertionError("no node came up in three attempts")

    def kill(self, node: Any) -> None:
        """As when its machine loses power: its raylet goes without a word, then its workers."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.workers.remove(node)

    def close(self) -> None:
        """End everything."""
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(moto_server: str) -> Iterator[Nodes]:
    """One cluster for all tests of this file; its folder is short, as Ray's sockets are in it."""
    folder = tempfile.mkdtemp(prefix="ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_TMPDIR": folder,  # so that no ray.init() elsewhere finds it and joins
            "PYTHONPATH": str(REPOSITORY),
        }.items():
            patch.setenv(name, value)
        from ray._private import services

        patch.setattr(services, "get_node", patient(services.get_node))
        found = Nodes()
        try:
            yield found
        finally:
            found.close()
            shutil.rmtree(folder, ignore_errors=True)


class Job:
    """A job as a process, its log and its archive."""

    def __init__(self, nodes: Nodes, archive: archives.Archive, log: Path, replicas: int) -> None:
        self.archive, self.log = archive, log
        command = [sys.executable, "-m", "tests.cluster.test_nodes", archive.store.root]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(replicas)], cwd=REPOSITORY, stdout=output, stderr=output,
                env={**os.environ, "RAY_ADDRESS": nodes.cluster.address},
            )  # fmt: skip

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def done(self) -> int:
        """Shards committed so far."""
        return len(commit.committed_ids(self.archive.store))

    def until(self, pattern: str, times: int = 1, seconds: float = 250) -> re.Match[str]:
        """Wait for that many lines of the log; the last of them."""
        deadline = time.monotonic() + seconds
        while len(found := list(re.finditer(pattern, self.log.read_text()))) < times:
            assert time.monotonic() < deadline, f"no {pattern!r}: {self.log.read_text()}"
            assert self.process.poll() is None, f"ended before {pattern!r}: {self.log.read_text()}"
            time.sleep(0.05)
        return found[times - 1]

    def until_done(self, count: int, seconds: float = 250) -> None:
        """Wait for that many shards."""
        deadline = time.monotonic() + seconds
        while self.done() < count:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def replicas(self) -> dict[str, tuple[int, str]]:
        """Name, process and node of those that have come up."""
        lines = re.finditer(r"(replica-\d+) is process (\d+) on (\S+)", self.log.read_text())
        return {line[1]: (int(line[2]), line[3]) for line in lines}

    def ends(self, code: int, seconds: float = 500) -> dict[str, Any]:
        """Its summary; it must end with that exit code."""
        assert self.process.wait(timeout=seconds) == code, self.log.read_text()
        store = self.archive.store
        name = max(n for n in store.names("runs/") if n.endswith("summary.json"))
        return json.loads(store.get(name))


def begin(root: str, folder: Path, names: Sequence[str]) -> archives.Archive:
    """An archive of one small tar a name, with nothing encoded."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        entries = [(f"{name}-{i}.jpg", jpeg(48, 32, seed=10 * number + i)) for i in range(3)]
        (folder / f"{name}.tar").write_bytes(make_tar(entries))
    return archives.begin(root, [folder / f"{name}.tar" for name in names])


def check(archive: archives.Archive, undisturbed: archives.Archive, missing: int = 0) -> None:
    """Every table is there, once, byte for byte that of a run without faults."""
    assert len(list(archive.store.names("codes/"))) == len(archive.specs) - missing
    assert len(commit.committed_ids(archive.store)) == len(archive.specs) - missing
    for spec in archive.specs:
        if "poison" not in spec.url:
            name = layout.table_name(spec.shard_id)
            theirs = rows(undisturbed.store, name)
            assert rows(archive.store, name) == theirs and len(theirs) == 3


def rows(store: Store, name: str) -> list[table.Row]:
    """Of a table; its footer has times in it."""
    return list(table.read_rows(store.get(name)))


def encoded(folder: Path, archive: archives.Archive) -> archives.Archive:
    """The same shards, encoded in this process without faults."""
    sources = [Path(spec.url) for spec in archive.specs if "poison" not in spec.url]
    return archives.encoded(folder, sources)


# The tests ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_job_survives_all_that_befalls_its_cluster(nodes: Nodes, tmp_path: Path) -> None:
    names = [f"s{n:03}" for n in range(80)]
    names[40], names[70] = "s040-poison", "s070-hang"
    archive = begin(str(tmp_path / "archive"), tmp_path / "in", names)
    hold = tmp_path / "in" / "hold"
    hold.touch()
    with Job(nodes, archive, tmp_path / "log", replicas=3) as run:
        run.until("replica-. on .* up", times=2)  # the third has no room yet
        os.kill(next(iter(run.replicas().values()))[0], signal.SIGKILL)
        run.until(r"replica-\d+ on .* lost with")
        nodes.workers.append(nodes.add())
        nodes.kill(nodes.workers[1])
        hold.unlink()
        summary = run.ends(common.INCOMPLETE)
    check(archive, encoded(tmp_path / "undisturbed", archive), missing=1)
    (record,) = commit.quarantined(archive.store).values()
    assert "s040-poison" in record.url and record.attempts == 3
    assert re.search(r"lost: .*\(replica-\d+ on 127\.0\.0\.2/\w{8}\)", record.reason)
    log = run.log.read_text()
    assert "got no further in" in log and re.search(r"stuck: .*s070-hang.tar on replica-", log)
    assert len({node for _, node in run.replicas().values()}) == 3  # also the one that was added
    assert (summary["state"], summary["shards_done"]) == ("complete", len(names) - 1)
    assert summary["replicas_lost"] >= 6 and summary["quarantined"] == [record.url]


@pytest.mark.long
def test_two_drivers_on_one_prefix_both_end_and_the_archive_is_right(
    nodes: Nodes, s3: str, tmp_path: Path
) -> None:
    archive = begin(f"{s3}/archive", tmp_path / "in", [f"s{n:03}" for n in range(12)])
    with (
        Job(nodes, archive, tmp_path / "one", replicas=1) as one,
        Job(nodes, archive, tmp_path / "two", replicas=1) as two,
    ):
        summaries = [one.ends(common.OK), two.ends(common.OK)]
    check(archive, encoded(tmp_path / "undisturbed", archive))
    assert [s["state"] for s in summaries] == ["complete"] * 2


@pytest.mark.long
def test_sigterm_leaves_a_summary_and_the_same_command_ends_the_job(
    nodes: Nodes, tmp_path: Path
) -> None:
    archive = begin(str(tmp_path / "archive"), tmp_path / "in", [f"s{n:03}" for n in range(20)])
    hold = tmp_path / "in" / "hold"
    hold.touch()
    with Job(nodes, archive, tmp_path / "one", replicas=1) as run:
        run.until_done(2)
        run.process.send_signal(signal.SIGTERM)
        summary = run.ends(common.INTERRUPTED)
    # Of what is committed the driver may not have heard all.
    assert summary["state"] == "interrupted" and summary["shards_done"] < 20
    pid = run.replicas()["replica-1"][0]
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, "the replica outlives its driver"
        time.sleep(0.1)
    hold.unlink()
    with Job(nodes, archive, tmp_path / "two", replicas=1) as run:
        assert run.ends(common.OK)["shards_done"] == 20
    check(archive, encoded(tmp_path / "undisturbed", archive))


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_minutes_of_random_kills_lose_nothing(nodes: Nodes, tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    names = [f"s{n:03}" for n in range(300)]
    names[40], names[50], names[200] = "s040-hang", "s050-poison", "s200-hang"
    archive = begin(str(tmp_path / "archive"), tmp_path / "in", names)
    hold, befallen = tmp_path / "in" / "hold", 0
    hold.touch()
    with Job(nodes, archive, tmp_path / "log", replicas=3) as run:
        run.until("replica-. on .* up")
        deadline = time.monotonic() + 180
        while run.process.poll() is None and time.monotonic() < deadline:
            time.sleep(random_.uniform(3, 9))
            befall(random_, nodes, run)
            befallen += 1
        hold.unlink()
        summary = run.ends(common.INCOMPLETE, seconds=600)
    assert befallen > 5 and summary["replicas_lost"] >= 5
    # A shard that was killed with its replica three times by chance is set aside as well.
    with Job(nodes, archive, tmp_path / "calm", replicas=2) as run:
        run.ends(common.INCOMPLETE, seconds=300)
    check(archive, encoded(tmp_path / "undisturbed", archive), missing=1)
    assert [Path(q.url).stem for q in commit.quarantined(archive.store).values()] == ["s050-poison"]


def befall(random_: random.Random, nodes: Nodes, run: Job) -> None:
    """One replica killed or frozen, or a node lost and another one added."""
    up = [pid for pid, _ in run.replicas().values() if alive(pid)]
    what = random_.choice(["kill", "kill", "freeze", "node"])
    if what == "node":
        try:
            nodes.workers.append(nodes.add())
        except AssertionError:  # this machine is too busy; without it the job could not go on
            return
        nodes.kill(nodes.workers[random_.randrange(len(nodes.workers) - 1)])
    elif up:
        number = signal.SIGKILL if what == "kill" else signal.SIGSTOP
        os.kill(random_.choice(up), number)


if __name__ == "__main__":
    sys.exit(common.run(lambda: job(sys.argv[1], int(sys.argv[2]))))
