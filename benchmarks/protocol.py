"""What exactly-once costs: shards through the commit protocol against plain PUTs, on an S3 server.

    python -m benchmarks.protocol [--shards 200] [--server rgw]

Both runs encode the same shards (the example photographs, 29 a shard, as 256 x 256) with the
shipped model, as a replica does: two shards in flight, one thread of torch.  One looks for what is
committed and commits each shard; the other writes each table by one PUT, and neither checks nor
keeps a ledger.  They take turns, ten shards each, the first turn alternating, so that a machine
whose speed drifts slows both; the figure is the median over the turns, with its quartiles.  The
plan, the listing, the weights and two listings of the ledger are timed apart and added.

The second figure, the seconds inside storage calls, is what one shard at a time would wait: an
upper bound, which two in flight hide.  ``rgw`` is Ceph's gateway, ``moto`` a server in Python that
competes for the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from jobs import common
from jobs.common import work
from pipeline.archive import resume
from pipeline.driver.fleet import IN_FLIGHT
from pipeline.plan import Plan, ShardSpec, listing_digest
from pipeline.store import s3
from pipeline.store.shard_names import shard_id
from pipeline.store.storage import ObjectInfo, Store, expand
from pipeline.work import encoder
from pipeline.work.replica import Replica
from pqmim import checkpoint
from pqmim.codec import Codec

ROOT = Path(__file__).parent.parent
SHARDS = sorted((ROOT / "examples" / "shards").glob("*.tar"))
SIDE = 256  # pixels
TURN = 10  # shards
REALISTIC = {"60 images/s (CPU)": 60.0, "1,500 images/s (GPU)": 1500.0}
T = TypeVar("T")


class TimedStore(Store):
    """Adds up the seconds in its calls, over threads."""

    seconds = 0.0
    lock = threading.Lock()

    def _timed(self, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        try:
            return call()
        finally:
            with self.lock:
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
    work.begin(safe, plan, specs, weights)
    resume.find_left(safe, specs, retry_failed=False)
    once_s = time.perf_counter() - begin
    safe.seconds, turns = 0.0, list[tuple[float, float]]()
    for number, first in enumerate(range(0, len(specs), TURN)):
        part = specs[first : first + TURN]
        order = (safe, plain) if number % 2 else (plain, safe)
        walls = {store: turn(part, plan, store, replica) for store in order}
        turns.append((walls[safe], walls[plain]))
    begin = time.perf_counter()
    assert not resume.find_left(safe, specs, retry_failed=False).todo
    once_s += time.perf_counter() - begin
    report(args, images, turns, once_s, safe.seconds - plain.seconds)


def turn(specs: Sequence[ShardSpec], plan: Plan, store: Store, replica: Replica) -> float:
    """Seconds to encode these shards, as many in flight as a replica has."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(lambda spec: encoder.encode_shard(spec, plan, store, replica), specs))
    return time.perf_counter() - begin


def report(
    args: argparse.Namespace, images: int, turns: Sequence[tuple[float, float]], once_s: float,
    extra_s: float,
) -> None:  # fmt: skip
    """Print what the protocol took."""
    safe_s, plain_s = (sum(walls) for walls in zip(*turns, strict=True))
    low, middle, high = statistics.quantiles([s / p - 1 for s, p in turns], n=4)
    print(f"{args.shards} shards of about {images} images, {args.server}, {IN_FLIGHT} in flight")
    print(f"{safe_s:.1f} s safe, {plain_s:.1f} s plain: {safe_s / plain_s - 1:+.2%}; "
          f"by turns of {TURN} {middle:+.2%}, quartiles {low:+.2%} and {high:+.2%}")  # fmt: skip
    print(f"plan, listing, weights, resuming from nothing and from all: {once_s:.2f} s, once = "
          f"{once_s / plain_s:.2%}")  # fmt: skip
    print(f"extra in storage calls: {1e3 * extra_s / args.shards:.1f} ms a shard")
    for name, speed in REALISTIC.items():
        share = extra_s / args.shards * speed / 1000
        print(f"share of a shard of 1,000 images at {name}, nothing hidden: {share:.2%}")


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
