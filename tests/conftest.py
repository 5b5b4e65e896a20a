"""Object stores for the tests: an in-process S3 server, and Ceph's gateway for tests marked ``s3``.

Both listen on loopback only.  The environment of the in-process server is set for the whole
session, so that worker processes inherit it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests import properties  # noqa: F401, its profile is for all tests

INFRA = Path(__file__).resolve().parent.parent / "infra"
CEPH = ("radosgw", "ceph-mon", "ceph-osd", "ceph")
INSTALL = "apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _environment(port: int, key: str, secret: str, region: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _new_bucket() -> str:
    """URL of an empty bucket on the server of the environment."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    region = {"LocationConstraint": os.environ["AWS_DEFAULT_REGION"]}
    connection = _connection(os.environ["AWS_ENDPOINT_URL"])
    connection.call_s3("create_bucket", Bucket=name, CreateBucketConfiguration=region)
    return f"s3://{name}"


@functools.cache
def _connection(endpoint: str) -> s3fs.S3FileSystem:
    """One for all tests; each costs half a second."""
    return s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """Endpoint of an in-process S3 server, which the AWS_* environment names."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in _environment(port, "testkey", "testsecret", "us-west-2").items():
            patch.setenv(name, value)
        yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(moto_server: str) -> str:
    """URL of an empty bucket of the in-process server."""
    return _new_bucket()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Prefix of an archive that does not exist yet, local and on S3."""
    if request.param == "local":
        return str(tmp_path / "archive")
    return request.getfixturevalue("s3") + "/some/archive"


@dataclass(frozen=True)
class Gateway:
    """Ceph's RADOS Gateway and an empty prefix on it."""

    folder: str
    port: int
    url: str = ""

    def kill(self, name: str, number: signal.Signals) -> None:
        """Send a signal to ``rgw`` or ``osd``."""
        os.kill(int(Path(self.folder, f"{name}.pid").read_text()), number)

    def restart(self) -> None:
        """Start the gateway after it was killed, and wait until it answers."""
        _rgw_script("gateway", self.folder)


def _use_gateway(patch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in _environment(port, "testkey", "testsecret", "default").items():
        patch.setenv(name, value)


def _rgw_script(*arguments: str) -> None:
    # Output to a file: daemons that hold a pipe would keep it open, and us waiting.
    with tempfile.TemporaryFile("w+") as output:
        command = ["bash", str(INFRA / "rgw.sh"), *arguments]
        done = subprocess.run(command, stdout=output, stderr=output, timeout=300)
        output.seek(0)
        assert done.returncode == 0, f"{' '.join(command)} failed: {output.read()}"


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that are free now, in a range from which neither
    the kernel nor Ray's workers take theirs: one that polls such a port can connect to itself."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first


@pytest.fixture(scope="session")
def rgw_server() -> Iterator[Gateway]:
    """Ceph's gateway, started once for all tests that need it."""
    missing = [name for name in CEPH if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; to enable: apt-get update && {INSTALL}")
    folder = tempfile.mkdtemp(prefix="rgw-")
    port = free_ports(3)
    try:
        _rgw_script("start", folder, str(port))
        with pytest.MonkeyPatch.context() as patch:
            _use_gateway(patch, port)
            # One for all: a new bucket takes 30 s after a gateway was killed, until Ceph knows it.
            bucket = _new_bucket()
        yield Gateway(folder, port, bucket)
    finally:
        _rgw_script("stop", folder)
        shutil.rmtree(folder)


@pytest.fixture
def rgw(rgw_server: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The gateway as the S3 server of the environment, and an empty prefix on it."""
    _use_gateway(monkeypatch, rgw_server.port)
    return replace(rgw_server, url=f"{rgw_server.url}/{uuid.uuid4().hex[:12]}")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas of jobs are this process; see tests/pools.py."""
    from jobs.common import work
    from tests.pools import open_here

    monkeypatch.setattr(work, "open_pool", open_here)


@pytest.fixture(scope="session")
def ray_here(moto_server: str) -> Iterator[None]:
    """Ray on this machine, loopback only; its workers know the in-process S3 server."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        _node_ip_address="127.0.0.2",
        configure_logging=False,
    )
    yield
    ray.shutdown()
