"""What the jobs share: exit codes, logging, the Ray connection, and flags that several have.

Exit codes: 0 all done; 1 crash; 2 bad arguments, plan mismatch or unusable storage; 3 finished with
failed, damaged or missing shards, or stopped; 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.archive.table import BadTable
from pipeline.plan import STORES, Plan, PlanMismatch, Resources, ShardSpec, listing_digest, shard_id
from pipeline.store import storage
from pqmim.checkpoint import CheckpointError
from pqmim.codec import Codec
from pqmim.coding.search import DEFAULT_PRICE

OK, CRASH, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130


class UsageError(Exception):
    """Something that the person who typed the command can put right."""


def setup_logging() -> None:
    """One format for every job, on standard error."""
    level = os.environ.get("PQMIM_LOG", "INFO").upper()
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level, format=form, stream=sys.stderr)
    for noisy in ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run(main: Callable[[], int]) -> int:
    """Call a job; errors that a person can act on become one line and an exit code."""
    setup_logging()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return main()
    except (UsageError, PlanMismatch, storage.StorageError, BadTable, CheckpointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to resume\n")
        return INTERRUPTED


def _interrupt(*_: object) -> None:
    """Ctrl-C and SIGTERM are the same.  Raised here: Ray's job manager leaves SIGINT blocked.  What
    is open is closed on the way out; a second signal does not wait for that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def run_id() -> str:
    """A sortable, unique name for one submission."""
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y%m%dT%H%M%S.%fZ-") + secrets.token_hex(3)


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that decide the output: they are frozen in the archive's plan."""
    _add_input_flags(parser.add_argument_group("input"))
    _add_codes_flags(parser.add_argument_group("codes"))


def _add_input_flags(group: argparse._ArgumentGroup) -> None:
    """Which shards, and which of their members and images."""
    group.add_argument(
        "--input", nargs="+", required=True, metavar="SHARDS",
        help="WebDataset tars: paths or URLs with {000..123} or *, folders, prefixes, @list.txt",
    )  # fmt: skip
    group.add_argument(
        "--image-key", nargs="+", default=list(Plan.image_keys), metavar="EXT",
        help="extensions of the image member, best first (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--keep", nargs="*", default=[], metavar="COLUMN",
        help="members to pass through: txt json.label:int32",
    )  # fmt: skip
    group.add_argument(
        "--min-side", type=int, default=Plan.min_side, metavar="PIXELS",
        help="smaller images become rows 'too_small' (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-pixels", type=int, default=Plan.max_pixels, metavar="N",
        help="larger images become rows 'too_large' (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--icc", choices=["convert", "ignore", "refuse"], default=Plan.icc,
        help="colour profiles: to sRGB, taken as sRGB, or rows 'decode_error' (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--strict-images", action="store_true",
        help="images whose decoder warns become rows 'decode_error', not rows with a note",
    )  # fmt: skip


def _add_codes_flags(group: argparse._ArgumentGroup) -> None:
    """What is done with an image, and what is kept of it."""
    group.add_argument("--model", default="default", help="weights: path or name (%(default)s)")
    group.add_argument(
        "--quality", type=int, default=16, metavar="M",
        help="sub-codes kept, 1..32 with the shipped model; raw codes take M/32 bpp (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--price", type=float, metavar="LAMBDA",
        help="squared error that a bit is worth: higher gives smaller files; 0: nearest codewords "
        f"({DEFAULT_PRICE} for bitstreams, 0 for --store codes)",
    )  # fmt: skip
    group.add_argument("--resize", type=int, metavar="PIXELS", help="shorter side (native size)")
    group.add_argument("--crop", type=int, metavar="PIXELS", help="centre square after --resize")
    add_store_flag(group, default=Plan.store)
    group.add_argument("--hash", action="store_true", help="keep the sha256 of the source image")
    group.add_argument(
        "--measure", choices=["none", "psnr"], default="none",
        help="decode at once and keep the PSNR in dB (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch-pixels", type=int, default=Plan.batch_pixels, metavar="N",
        help="pixels of a batch (%(default)s; a large GPU likes 4 to 16 million)",
    )  # fmt: skip


def add_store_flag(group: argparse._ArgumentGroup, default: str | None = None) -> None:
    """What the tables hold of an image."""
    group.add_argument(
        "--store",
        choices=STORES,
        default=default,
        required=default is None,
        help="entropy-coded codes, raw ones (larger, readable without the model), or both"
        + (" (%(default)s)" if default else ""),
    )


def add_imageless_flags(parser: argparse.ArgumentParser) -> None:
    """Resources and failure policy of a job that writes code tables and reads no images."""
    add_replica_flags(parser)
    parser.set_defaults(decode_threads=1, queue_mb=0)
    group = parser.add_argument_group("failure policy")
    group.add_argument("--retry-failed", action="store_true", help="try quarantined shards again")


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that decide the speed of encoding and nothing else."""
    group = add_replica_flags(parser)
    group.add_argument("--decode-threads", type=int, default=2, help="a replica (%(default)s)")
    group.add_argument(
        "--queue-mb",
        type=int,
        default=256,
        metavar="MB",
        help="images read ahead, a shard in flight (%(default)s)",
    )


def add_replica_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of the replicas, whatever they do."""
    group = parser.add_argument_group("resources")
    group.add_argument("--replicas", type=int, default=1, help="copies of the model (%(default)s)")
    group.add_argument("--device", default="cuda", help="'cuda' or 'cpu' (%(default)s)")
    group.add_argument(
        "--gpus-per-replica",
        type=float,
        metavar="G",
        help="a fraction shares a GPU (1 with --device cuda, else 0)",
    )
    group.add_argument(
        "--cpus-per-replica",
        type=float,
        default=1.0,
        metavar="C",
        help="CPUs that Ray reserves for a replica (%(default)s)",
    )
    group.add_argument(
        "--threads", type=int, default=1, help="torch threads a replica (%(default)s)"
    )
    return group


def check_store(store: str, codec: Codec) -> None:
    """Find out now whether the model can make bitstreams, if they are wanted.

    Raises:
        UsageError: its weights hold no entropy model.
    """
    if store != "codes" and codec.prior is None:
        raise UsageError(
            f"--store {store}: model {codec.fingerprint[:16]} has no entropy model, which "
            "bitstreams need; give --store codes, or weights that hold one"
        )


def plan_of(args: argparse.Namespace, specs: list[ShardSpec], codec: Codec) -> Plan:
    """The plan that the flags describe."""
    if not 1 <= args.quality <= codec.config.subcodes:
        raise UsageError(f"--quality {args.quality}: this model has 1..{codec.config.subcodes}")
    check_store(args.store, codec)
    try:
        return Plan(
            model=codec.fingerprint,
            quality=args.quality,
            stride=codec.config.stride,
            codewords=codec.config.codewords,
            inputs=len(specs),
            inputs_digest=listing_digest(specs),
            store=args.store,
            price=price_of(args),
            image_keys=tuple(k.lower().lstrip(".") for k in args.image_key),
            keep=tuple(args.keep),
            resize=args.resize,
            crop=args.crop,
            min_side=args.min_side,
            max_pixels=args.max_pixels,
            icc=args.icc,
            strict_images=args.strict_images,
            hash=args.hash,
            measure=args.measure,
            batch_pixels=args.batch_pixels,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def price_of(args: argparse.Namespace) -> float:
    """The price of a bit; raw codes have a fixed length, so bits cost nothing there."""
    if args.price is None:
        return 0.0 if args.store == "codes" else DEFAULT_PRICE
    if args.price and args.store == "codes":
        raise UsageError(f"--price {args.price}: --store codes has no bits to save; leave it out")
    return float(args.price)


def resources_of(args: argparse.Namespace) -> Resources:
    """The resources that the flags describe."""
    gpus = args.gpus_per_replica
    if gpus is None:
        gpus = 1.0 if args.device.startswith("cuda") else 0.0
    if args.replicas < 1 or args.threads < 1 or args.decode_threads < 1:
        raise UsageError("--replicas, --threads and --decode-threads must be 1 or more")
    return Resources(
        replicas=args.replicas,
        device=args.device,
        gpus_per_replica=gpus,
        cpus_per_replica=args.cpus_per_replica,
        threads=args.threads,
        decode_threads=args.decode_threads,
        queue_bytes=args.queue_mb << 20,
    )


def list_shards(inputs: list[str]) -> list[ShardSpec]:
    """Expand ``--input`` into shards, sorted by URL."""
    found = storage.expand(inputs)
    return [ShardSpec(shard_id(o.url), o.url, o.size, o.etag) for o in found]


def connect(resources: Resources) -> None:
    """Join the Ray cluster that RAY_ADDRESS names, or start one on this machine; find out now if
    it has no GPU.  ``ray job submit`` sets RAY_ADDRESS."""
    import ray  # here, so that the jobs without replicas start quickly

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        _join_or_start(os.environ.get("RAY_ADDRESS") or "local")
    has = ray.cluster_resources()
    if resources.device.startswith("cuda") and not has.get("GPU"):
        raise UsageError(
            "this Ray cluster has no GPU; give --device cpu to encode on the CPU (slow: tens of "
            "images a second and core), or add GPU nodes"
        )


def _join_or_start(address: str) -> None:
    """``local`` starts a Ray of our own, on loopback, also where another one runs already."""
    import ray

    options: dict[str, Any] = {}
    if address == "local":
        options["include_dashboard"] = False
        if sys.platform == "linux":  # elsewhere only 127.0.0.1 exists, and Ray replaces that one
            options["_node_ip_address"] = "127.0.0.2"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, configure_logging=False, **options)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"RAY_ADDRESS {address}: {error}") from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it by sys.exit(15)
