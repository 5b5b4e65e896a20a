"""The flags that several jobs have, with one meaning each.

``--archive`` is what is read, ``--output`` what is written, ``--input`` shards of images,
``--weights`` a model; ``--threads`` are torch threads of one process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from jobs import common
from jobs.common import UsageError
from pipeline import logs
from pipeline.plan import ICC, STORES, Plan, Resources
from pqmim.coding.schedule import DEFAULT_PRICE


def parser_of(job: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a job: its docstring is the description, with the examples."""
    parser = argparse.ArgumentParser(
        f"python -m jobs.{job}", description=(description or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress; warnings and the result")
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default=os.environ.get(logs.FORMAT, "text"),
        help="of the log on standard error, replicas' own too (%(default)s)",
    )  # fmt: skip
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with ``--quiet`` and ``--log-format`` in force."""
    args = parser.parse_args(argv)
    logs.use(args.log_format)
    if args.quiet:
        common.be_quiet()
    return args


def add_archive_flag(parser: argparse.ArgumentParser) -> None:
    """The archive that is read."""
    parser.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that decide the output: they are frozen in the archive's plan."""
    _add_input_flags(parser.add_argument_group("input"))
    _add_codes_flags(parser.add_argument_group("codes"))


def _add_input_flags(group: argparse._ArgumentGroup) -> None:
    """Which shards, and which of their members and images."""
    group.add_argument(
        "--input", nargs="+", required=True, metavar="SHARDS",
        help="WebDataset tars, also .tar.gz and .tar.zst: paths or URLs with {000..123} or *, "
        "folders, prefixes, @list.txt",
    )  # fmt: skip
    group.add_argument(
        "--image-key", nargs="+", default=list(Plan.image_keys), metavar="EXT",
        help="extensions of the image member, best first (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--keep", nargs="*", default=[], metavar="COLUMN",
        help="members to pass through: txt caption.txt json.label:int32",
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
        "--icc", choices=ICC, default=Plan.icc,
        help="colour profiles: to sRGB, taken as sRGB, or rows 'decode_error' (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--strict-images", action="store_true",
        help="images whose decoder warns become rows 'decode_error', not rows with a note",
    )  # fmt: skip


def _add_codes_flags(group: argparse._ArgumentGroup) -> None:
    """What is done with an image, and what is kept of it."""
    add_weights_flag(group)
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
    group.add_argument(
        "--local", action="store_true",
        help="processes of this machine, without Ray; so too for one replica without RAY_ADDRESS",
    )  # fmt: skip
    add_device_flags(group)
    group.add_argument(
        "--gpus-per-replica", type=float, metavar="G", help="with Ray: a fraction shares a GPU (1)"
    )
    group.add_argument(
        "--cpus-per-replica", type=float, default=1.0, metavar="C",
        help="with Ray: CPUs that are reserved for a replica (%(default)s)",
    )  # fmt: skip
    return group


def add_weights_flag(group: argparse._ArgumentGroup) -> None:
    """Which model."""
    group.add_argument("--weights", default="default", help="path or name (%(default)s)")


def add_device_flags(group: argparse._ArgumentGroup) -> None:
    """Where a model runs."""
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cuda or cpu")
    group.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")


def resources_of(args: argparse.Namespace) -> Resources:
    """The resources that the flags describe."""
    if args.replicas < 1 or args.threads < 1 or args.decode_threads < 1:
        raise UsageError("--replicas, --threads and --decode-threads must be 1 or more")
    return Resources(
        replicas=args.replicas,
        device=args.device,
        gpus_per_replica=args.gpus_per_replica,
        local=args.local or (args.replicas == 1 and not os.environ.get("RAY_ADDRESS")),
        cpus_per_replica=args.cpus_per_replica,
        threads=args.threads,
        decode_threads=args.decode_threads,
        queue_bytes=args.queue_mb << 20,
    )
