"""Against a real S3 server, Ceph's RADOS Gateway: races, stalls, kills, and a whole job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import common, finish, verify
from pipeline.store import s3
from pipeline.store.storage import NotWritable, Store, expand, open_read, retries
from tests.conftest import Gateway
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

pytestmark = pytest.mark.s3
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def store(rgw: Gateway) -> Store:
    """An archive on the gateway."""
    return Store(f"{rgw.url}/archive")


def test_probe_trusts_the_gateway(store: Store) -> None:
    assert store.probe()
    assert list(store.names()) == []


def test_probe_names_a_missing_bucket(rgw: Gateway) -> None:
    with pytest.raises(NotWritable, match="no-such-bucket-here"):
        Store("s3://no-such-bucket-here/archive").probe()


def test_of_24_writers_one_wins(store: Store) -> None:
    for i in range(8):
        with ThreadPoolExecutor(24) as pool:
            won = list(pool.map(lambda k, n=f"x{i}": store.put_if_absent(n, b"%d" % k), range(24)))
        assert won.count(True) == 1
        assert store.get(f"x{i}") == b"%d" % won.index(True)


def test_shards_are_listed_and_read(store: Store) -> None:
    data = {f"s-{i:02}.tar": os.urandom(100_000) for i in range(12)}
    for name, body in data.items():
        store.put(name, body)
    found = expand([f"{store.root}/s-{{00..11}}.tar"])
    assert found == expand([store.root]) == expand([f"{store.root}/s-[01]*.tar"])
    for info in found:
        with open_read(info.url, info) as stream:
            assert stream.read() == data[info.url.rpartition("/")[2]]


def test_a_stalled_disk_delays_a_read_and_no_more(rgw: Gateway, store: Store) -> None:
    data = os.urandom(16 << 20)
    store.put("a.tar", data)
    with open_read(store.url("a.tar")) as stream:
        head = stream.read(1000)
        rgw.kill("osd", signal.SIGSTOP)
        timer = threading.Timer(3.0, rgw.kill, ("osd", signal.SIGCONT))
        timer.start()
        begin = time.monotonic()
        try:
            assert head + stream.read() == data
        finally:
            timer.join()
    assert time.monotonic() - begin > 2.5, "the read did not wait for the disk"


def test_a_gateway_killed_in_the_middle_of_a_read_costs_a_retry(
    rgw: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_BLOCK", 4 << 20)
    data = os.urandom(48 << 20)
    store.put("a.tar", data)
    before = retries()
    parts = []
    with open_read(store.url("a.tar")) as stream:
        parts.append(stream.read(1 << 20))
        rest = ThreadPoolExecutor(1).submit(stream.read)  # one GET of the 47 MiB that are left
        time.sleep(0.02)
        rgw.kill("rgw", signal.SIGKILL)
        rgw.restart()
        parts.append(rest.result(timeout=300))
    assert b"".join(parts) == data
    assert retries() > before, "the gateway was not killed in the middle of the read"


def test_a_gateway_killed_while_objects_are_written_leaves_each_once(
    rgw: Gateway, store: Store
) -> None:
    def write(i: int) -> bool:
        return store.put_if_absent(f"codes/{i:03}", b"%d" % i * 1000)

    with ThreadPoolExecutor(8) as pool:
        wins = pool.map(write, range(200))
        time.sleep(0.1)
        rgw.kill("rgw", signal.SIGKILL)
        rgw.restart()
        assert all(wins)
    assert list(store.names("codes/")) == [f"codes/{i:03}" for i in range(200)]
    assert all(store.get(f"codes/{i:03}") == b"%d" % i * 1000 for i in range(0, 200, 17))


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A job as a process, whose replica knows the gateway."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, env=environment, cwd=REPOSITORY, text=True, capture_output=True, timeout=500
    )


def test_a_whole_job_on_the_gateway(rgw: Gateway, store: Store, tmp_path: Path) -> None:
    shards, model = Store(f"{rgw.url}/in"), tmp_path / "tiny.safetensors"
    for number in range(6):
        images = [(f"{number}-{i}.jpg", jpeg(48, 32, seed=9 * number + i)) for i in range(4)]
        shards.put(f"{number:02}.tar", make_tar(images))
    model.write_bytes(tiny_bytes())
    encode = ["jobs.encode", "--input", f"{shards.root}/{{00..05}}.tar", "--output", store.root,
              "--weights", str(model), "--quality", "3", "--store", "codes",
              "--device", "cpu"]  # fmt: skip
    done = job(*encode)
    assert done.returncode == common.OK, done.stderr
    assert "6 of 6 shards committed, 24 images" in done.stdout
    assert len(list(store.names("codes/"))) == len(list(store.names("ledger/"))) == 6
    again = job(*encode)
    assert again.returncode == common.OK and "6 committed, 0 quarantined, 0 to do" in again.stderr
    assert finish.main(["--archive", store.root]) == common.OK
    assert verify.main(["--archive", store.root, "--device", "cpu", "--min-psnr", "0"]) == common.OK
