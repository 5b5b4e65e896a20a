"""What exactly-once costs: shards through the commit protocol against plain PUTs, on an S3 server.

    python -m benchmarks.protocol [--shards 200] [--server rgw]

Both runs encode the same shards (the example photographs, 29 a shard, as 256 x 256) with the
shipped model.  One looks for what is committed and commits each shard; the other writes each table
by one PUT, and neither checks nor keeps a ledger.  They take turns shard by shard, the first turn
alternating, so that a machine whose speed drifts slows both.  One shard at a time: a replica that
has two in flight hides these round trips behind the model, so this is an upper bound.  The time
inside storage calls is measured as well: on a busy machine the ratio of the whole is noise.
``rgw`` is Ceph's gateway, ``moto`` a server in Python that competes for the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from jobs import common, encode
from pipeline import commit, encoder, s3
from pipeline.plan import Plan, ShardSpec, listing_digest, shard_id
from pipeline.replica import Replica
from pipeline.storage import ObjectInfo, Store, expand
from pqmim import checkpoint
from pqmim.codec import Codec

ROOT = Path(__file__).parent.parent
SHARDS = sorted((ROOT / "examples" / "shards").glob("*.tar"))
SIDE = 256  # pixels
REALISTIC = {"60 images/s (CPU)": 60.0, "1,500 images/s (GPU)": 1500.0}
T = TypeVar("T")


class TimedStore(Store):
    """Adds up the seconds in its calls."""

    seconds = 0.0

    def _timed(self, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds += time.perf_counter() - begin

    def info(self, name: str) -> ObjectInfo | None:
        return self._timed(lambda: super(TimedStore, self).info(name))

    def get(self, name: str) -> bytes:
        return self._timed(lambda: super(TimedStore, self).get(name))

    def create(self, name: str, data: bytes) -> ObjectInfo | None:
        return self._timed(lambda: super(TimedStore, self).create(name, data))


class PlainStore(TimedStore):
    """One unconditional PUT a table, no ledger, no questions."""

    def info(self, name: str) -> ObjectInfo | None:
        return None

    def create(self, name: str, data: bytes) -> ObjectInfo | None:
        if not name.startswith("ledger/"):
            self._timed(lambda: self.put(name, data))
        return ObjectInfo(self.url(name), len(data), "")


def main() -> int:
    """Encode every shard twice, in turns; print what the protocol took."""
    args = parse()
    torch.set_num_threads(1)
    with server(args.server):
        _make_bucket("bench")
        upload(Store("s3://bench/in"), args.shards)
        measure(args)
    return 0


def measure(args: argparse.Namespace) -> None:
    """Both runs over all shards."""
    weights = checkpoint.read("default")
    replica = Replica(Codec.from_bytes(weights))
    specs = [ShardSpec(shard_id(o.url), o.url, o.size, o.etag) for o in expand(["s3://bench/in"])]
    plan = Plan(
        model=replica.codec.fingerprint, quality=8, stride=replica.codec.config.stride,
        codewords=replica.codec.config.codewords, inputs=len(specs), store="codes",
        inputs_digest=listing_digest(specs), resize=SIDE, crop=SIDE,
    )  # fmt: skip
    warm = PlainStore("s3://bench/warm")
    images = sum(encoder.encode_shard(specs[0], plan, warm, replica).rows.values())
    safe, plain = TimedStore("s3://bench/safe"), PlainStore("s3://bench/plain")
    begin = time.perf_counter()
    encode.begin(safe, plan, specs, weights)
    commit.committed_ids(safe)
    start_s = time.perf_counter() - begin
    safe.seconds, walls = 0.0, {safe: 0.0, plain: 0.0}
    for number, spec in enumerate(specs):
        for store in (safe, plain) if number % 2 else (plain, safe):
            begin = time.perf_counter()
            encoder.encode_shard(spec, plan, store, replica)
            walls[store] += time.perf_counter() - begin
    begin = time.perf_counter()
    assert commit.committed_ids(safe) == {spec.shard_id for spec in specs}
    start_s += time.perf_counter() - begin
    count = len(specs)
    extra_s = (safe.seconds - plain.seconds) / count
    print(f"{count} shards of about {images} images, {args.server}, one shard at a time")
    print(f"wall a shard: {walls[safe] / count:.3f} s safe, {walls[plain] / count:.3f} s plain, "
          f"ratio {walls[safe] / walls[plain]:.4f}")  # fmt: skip
    print(f"in storage calls: {1e3 * safe.seconds / count:.1f} ms safe, "
          f"{1e3 * plain.seconds / count:.1f} ms plain, extra {1e3 * extra_s:.1f} ms a shard = "
          f"{extra_s * count / walls[plain]:.2%} of the plain run")  # fmt: skip
    print(f"plan, listing, weights, two listings of the ledger: {start_s:.2f} s, once")
    for name, speed in REALISTIC.items():
        print(f"share of a shard of 1,000 images at {name}: {extra_s * speed / 1000:.2%}")


def upload(store: Store, count: int) -> None:
    """The example shards under ``count`` names."""
    for number in range(count):
        store.put(f"{number:06d}.tar", SHARDS[number % len(SHARDS)].read_bytes())


def _make_bucket(name: str) -> None:
    region = {"LocationConstraint": os.environ["AWS_DEFAULT_REGION"]}
    connection = s3._s3fs()
    connection.call_s3("create_bucket", Bucket=name, CreateBucketConfiguration=region)


@contextmanager
def server(kind: str) -> Iterator[None]:
    """An S3 server in processes of its own, named by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update({
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "default" if kind == "rgw" else "us-west-2",
    })  # fmt: skip
    folder = tempfile.mkdtemp(prefix="rgw-")
    script = ["bash", str(ROOT / "infra" / "rgw.sh")]
    if kind == "rgw":
        subprocess.run([*script, "start", folder, str(port)], check=True, stdout=sys.stderr)
    else:
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(moto, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(port)
    try:
        yield
    finally:
        if kind == "rgw":
            subprocess.run([*script, "stop", folder], check=True)
        else:
            process.terminate()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int) -> None:
    """Until something listens there; gives up after a minute."""
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"no S3 server came up on port {port}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.protocol", description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=200, help="%(default)s")
    parser.add_argument("--server", choices=["rgw", "moto"], default="rgw", help="%(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(common.run(main))
