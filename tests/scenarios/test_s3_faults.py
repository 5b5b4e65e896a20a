"""Whole runs on S3 through a proxy that breaks requests: the tables are those of a quiet run.

The long form breaks one request in five, for many seeds, and runs the Ray job so as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import common, encode
from pipeline.archive import layout
from pipeline.store import errors, s3
from pipeline.store.storage import AccessDenied, Store, TransientStorage, retries
from tests import archives
from tests.archives import committed
from tests.crashing import WEIGHTS, job
from tests.faulty import TRANSIENT, FaultyS3, faulty_s3

CLIENT_TIMEOUT_S = 0.5
log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def _quick_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "BACKOFF_S", 0.01)
    monkeypatch.setattr(errors, "BACKOFF_MAX_S", 0.1)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", CLIENT_TIMEOUT_S)
    monkeypatch.setattr(s3, "READ_BLOCK", 4096)


@pytest.fixture
def tars(s3: str, tmp_path: Path) -> list[str]:
    """Three shards in the bucket."""
    store = Store(f"{s3}/in")
    for n in range(3):
        store.put(f"{n}.tar", archives.shard(tmp_path / f"{n}.tar", 10 * n).read_bytes())
    return [store.root]


@pytest.fixture
def quiet(s3: str, tars: list[str]) -> dict[str, bytes]:
    """The tables of a run without faults."""
    job(f"{s3}/quiet", tars)
    return tables(f"{s3}/quiet")


@pytest.fixture
def proxy(quiet: object, moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The S3 server of the environment, behind a proxy that can break requests."""
    with faulty_s3(moto_server) as server:
        server.slow_s = 2 * CLIENT_TIMEOUT_S
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def tables(root: str) -> dict[str, bytes]:
    """Code tables and the manifest, which names their checksums and row counts."""
    store = Store(root)
    names = [*store.names("codes/"), *store.names("manifest.parquet")]
    return {name: store.get(name) for name in names}


def check(root: str, quiet: dict[str, bytes]) -> int:
    """The archive is that of a quiet run; how often its ledger says that requests were repeated."""
    assert tables(root) == quiet
    store = Store(root)
    entries = committed(store)
    assert {layout.table_name(shard_id) for shard_id in entries} == set(store.names("codes/"))
    for entry in entries.values():
        info = store.info(layout.table_name(entry.shard_id))
        assert info is not None and info.etag == entry.table_etag and info.size == entry.table_bytes
    return sum(entry.retries for entry in entries.values())


@pytest.mark.parametrize("fault", TRANSIENT)
def test_each_kind_of_request_survives_each_fault(
    s3: str, tars: list[str], quiet: dict[str, bytes], proxy: FaultyS3, fault: str
) -> None:
    places = [("GET", "list-type"), ("PUT", "plan.json"), ("HEAD", "codes/"), ("HEAD", ".tar"),
              ("GET", ".tar"), ("PUT", "codes/"), ("PUT", "ledger/"), ("GET", "ledger/"),
              ("PUT", "manifest")]  # fmt: skip
    times = 2 if fault in ("reset", "lost") else 1  # aiohttp repeats such a request once by itself
    proxy.rules = [(method, part, fault) for method, part in places for _ in range(times)]
    before, root = retries(), f"{s3}/out"
    job(root, tars)
    assert not proxy.rules and retries() > before
    assert check(root, quiet) > 0


def test_a_fifth_of_all_requests_faulty_gives_the_tables_of_a_quiet_run(
    s3: str, tars: list[str], quiet: dict[str, bytes], proxy: FaultyS3
) -> None:
    errors.take_retries()
    before, root = retries(), f"{s3}/out"
    proxy.at_random(0.2, seed=7)
    job(root, tars)
    proxy.at_random(0.0, seed=0)
    counted = check(root, quiet)
    assert 0 < counted == retries() - before - errors.take_retries()
    assert proxy.injected.total() > 5


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_expired_credentials_end_the_run_at_once_and_new_ones_resume_it(
    s3: str, tars: list[str], quiet: dict[str, bytes], proxy: FaultyS3, share: float
) -> None:
    before = retries()
    job(f"{s3}/counted", tars)
    usual = len(proxy.log) - (retries() - before)  # a slow machine has repeated some
    proxy.expires_at, root = len(proxy.log) + share * usual, f"{s3}/out"
    before = retries()
    with pytest.raises(AccessDenied, match=r"s3://.*expired.*run the same command again"):
        job(root, tars)
    assert retries() == before, "trying again does not help"
    proxy.expires_at = float("inf")
    job(root, tars)
    check(root, quiet)


def test_a_store_that_never_answers_is_given_up_in_bounded_time(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "RETRY_S", 2.0)
    monkeypatch.setattr(errors, "ATTEMPTS", 1000)
    store = Store(s3)
    store.put("x", b"data")
    proxy.at_random(1.0, seed=0, faults=["slow"])
    begin = time.monotonic()
    with pytest.raises(TransientStorage, match=r"s3://.*/x.*gave up after .* attempts"):
        store.get("x")
    assert time.monotonic() - begin < 100  # and not the 1000 attempts, 500 s at least


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_fifth_of_all_requests_faulty_for_many_seeds(
    s3: str, tars: list[str], quiet: dict[str, bytes], proxy: FaultyS3
) -> None:
    counted = 0
    for seed in range(40):
        proxy.at_random(0.2, seed)
        job(f"{s3}/{seed}", tars)
        proxy.at_random(0.0, 0)
        counted += check(f"{s3}/{seed}", quiet)
    log.info("40 runs: %d retries, faults %s", counted, dict(proxy.injected))
    assert counted > 40


@pytest.mark.chaos
@pytest.mark.ray
def test_the_job_with_a_fifth_of_all_requests_faulty(
    s3: str, tars: list[str], moto_server: str, ray_here: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(WEIGHTS)
    flags = ["--input", *tars, "--weights", str(model), "--quality", "3", "--store", "codes",
             "--device", "cpu", "--cpus-per-replica", "0.5", "--max-bad-images", "1"]  # fmt: skip
    assert encode.main([*flags, "--output", f"{s3}/quiet-job"]) == common.OK
    before = retries()
    with faulty_s3(moto_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.at_random(0.2, seed=3, faults=[f for f in TRANSIENT if f != "slow"])
        assert encode.main([*flags, "--output", f"{s3}/out"]) == common.OK
        proxy.at_random(0.0, 0)
    counted = check(f"{s3}/out", tables(f"{s3}/quiet-job"))
    log.info("%d retries in the replicas, %d in the driver", counted, retries() - before)
    assert counted + retries() > before
