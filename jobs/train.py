"""Train: the entropy model on the codes of an archive, or either stage on photographs.

    python -m jobs.train --recipe prior --archive s3://bucket/arch --output run --minutes 60
    python -m jobs.train --recipe prior --archive arch --output run --start-from scratch --workers 4
    python -m jobs.train --recipe autoencoder --input 'photos/*.tar' --output run

With ``--archive`` no image is read: the archive's raw codes and the model that it carries are
enough (jobs.transcode makes raw codes of bitstreams, jobs.finish the manifest).  What comes out is
a weights file for jobs.encode --weights, jobs.generate and pqmim.  The same command again goes on
from ``<output>/checkpoint.pt``, also with more ``--minutes``.  ``--input`` runs the loop of ``pqmim
train``, in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags
from pipeline import keep
from pipeline.plan import Plan, Resources

if TYPE_CHECKING:
    from pipeline.codes.query import Filter
    from pipeline.learn.learner import Task

STARTS = ("shipped", "scratch")  # of the entropy model
NUMBERS = {"width": "int32", "height": "int32", "grid_w": "int32", "grid_h": "int32"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check the archive, train, name the weights file."""
    args = parse(argv)
    from jobs.common.pools import local_device
    from pipeline.archive.manifest import DatasetError
    from pqmim import cli
    from pqmim.autoencoder.config import ConfigError
    from pqmim.training.prior_run import RunError

    if args.workers == 1:
        args.device = local_device(args.device)
    if args.input:
        return cli.main(_photograph_arguments(args))
    try:
        path = train(args)
    except (DatasetError, ConfigError, RunError) as error:
        raise common.UsageError(str(error)) from error
    sys.stdout.write(f"{path}\n")
    return common.OK


def train(args: argparse.Namespace) -> Path:
    """Train on the codes of an archive, in this process or in several."""
    from pipeline.archive import layout
    from pipeline.learn import learner
    from pipeline.store.storage import Store, absolute

    store = Store(args.archive)
    learner.read_model(store, args.start_from)
    task = learner.Task(
        absolute(args.archive), str(Path(args.output).resolve()), args.start_from, args.minutes,
        filters(args.where, layout.read_plan(store)), args.device, args.threads,
    )  # fmt: skip
    if args.workers > 1:
        return _train_by_workers(task, args.workers)
    path = learner.learn(task)
    assert path is not None  # this is worker 0
    return path


def _train_by_workers(task: Task, workers: int) -> Path:
    """On the Ray cluster that RAY_ADDRESS names, or one of our own."""
    try:
        from pipeline.learn import workers as several  # imports Ray Train
    except ImportError as error:
        raise common.UsageError(
            f"--workers {workers} needs Ray Train ({error}): pip install 'pqmim[train]'"
        ) from error
    from jobs.common.pools import connect

    found = connect(Resources(workers, task.device, cpus_per_replica=float(task.threads)))
    try:
        return several.train(replace(task, device=found.device), workers)
    except several.WorkersFailed as error:
        raise common.UsageError(str(error)) from error


def filters(where: Sequence[str], plan: Plan) -> tuple[Filter, ...]:
    """``COLUMN=VALUE`` as filters of the stream, the value of the column's type.

    Raises:
        jobs.common.UsageError: not of that form, or not of that type.
    """
    types = NUMBERS | {k.name: k.type for k in plan.kept}
    found: list[Filter] = []
    for text in where:
        column, equals, value = text.partition("=")
        kind = types.get(column, "string")
        try:
            typed = value if kind == "string" else keep.TYPES[kind](value)  # type: ignore[call-overload]
        except ValueError:
            equals = ""
        if not equals or not column:
            raise common.UsageError(f"--where {text}: write COLUMN=VALUE; {column} is of {kind}")
        found.append((column, "=", typed))
    return tuple(found)


def _photograph_arguments(args: argparse.Namespace) -> list[str]:
    """The command line of ``pqmim train``."""
    given = ["train", args.recipe, "--input", args.input, "--output", args.output,
             "--device", args.device, "--threads", str(args.threads)]  # fmt: skip
    return given + (["--minutes", str(args.minutes)] if args.minutes else [])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("train", __doc__)
    parser.add_argument("--recipe", required=True, choices=["prior", "autoencoder"])
    group = parser.add_argument_group("data, one of the two")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", metavar="URI", help="an archive with raw codes; prior only")
    source.add_argument(
        "--input", metavar="SHARDS", help="WebDataset tars, a glob; the last is held out"
    )
    group.add_argument("--where", nargs="+", default=[], metavar="COLUMN=VALUE", help="with "
                       "--archive: images of that label alone; all must hold")  # fmt: skip
    group = parser.add_argument_group("run")
    group.add_argument("--output", required=True, metavar="DIR",
                       help="folder of the run; goes on if it exists")  # fmt: skip
    group.add_argument("--start-from", choices=STARTS, default="shipped", help="with "
                       "--archive: the archive's entropy model, or a new one")  # fmt: skip
    group.add_argument("--minutes", type=float, help="of training (60 with --archive, else the "
                       "recipe's)")  # fmt: skip
    group = parser.add_argument_group("resources")
    group.add_argument("--workers", type=int, default=1, metavar="W",
                       help="processes that share the work (%(default)s)")  # fmt: skip
    flags.add_device_flags(group)
    args = flags.parse(parser, argv)
    if args.archive and args.recipe == "autoencoder":
        parser.error("--recipe autoencoder needs images: --input")
    if args.input and (args.where or args.workers != 1):
        parser.error("--where and --workers go with --archive")
    if min(args.workers, args.threads) < 1 or (args.minutes or 1) <= 0:
        parser.error("--workers and --threads must be 1 or more, --minutes above 0")
    args.minutes = args.minutes or (60.0 if args.archive else None)
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
