"""Train: the entropy model on the codes of an archive, or either stage on photographs.

    python -m jobs.train --recipe prior --codes s3://bucket/arch --out run --minutes 60
    python -m jobs.train --recipe prior --codes arch --out run --start-from scratch --workers 4
    python -m jobs.train --recipe autoencoder --shards 'photos/*.tar' --out run

With ``--codes`` no image is read: the archive's raw codes and the model that it carries are enough
(jobs.transcode makes raw codes of bitstreams, jobs.finish the manifest).  What comes out is a
weights file for jobs.encode --model, jobs.generate and pqmim.  The same command again goes on from
``<out>/checkpoint.pt``, also with more ``--minutes``.  ``--shards`` runs the loop of ``pqmim
train``, in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs import common
from pipeline import keep
from pipeline.archive import commit
from pipeline.archive.manifest import DatasetError
from pipeline.codes.query import Filter
from pipeline.learn import learner
from pipeline.learn.learner import Task
from pipeline.plan import Plan, Resources
from pipeline.store.storage import Store, absolute
from pqmim import cli
from pqmim.autoencoder.config import ConfigError
from pqmim.training.prior_run import RunError

NUMBERS = {"width": "int32", "height": "int32", "grid_w": "int32", "grid_h": "int32"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check the archive, train, name the weights file."""
    args = parse(argv)
    if args.shards:
        return cli.main(_photograph_arguments(args))
    try:
        path = train(args)
    except (DatasetError, ConfigError, RunError) as error:
        raise common.UsageError(str(error)) from error
    sys.stdout.write(f"{path}\n")
    return common.OK


def train(args: argparse.Namespace) -> Path:
    """Train on the codes of an archive, in this process or in several."""
    store = Store(args.codes)
    learner.read_model(store, args.start_from)
    task = Task(
        absolute(args.codes), str(Path(args.out).resolve()), args.start_from, args.minutes,
        filters(args.where, commit.read_plan(store)), args.device, args.threads,
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
    on_gpu = float(task.device.startswith("cuda"))
    common.connect(Resources(workers, task.device, on_gpu, float(task.threads)))
    try:
        return several.train(task, workers)
    except several.WorkersFailed as error:
        raise common.UsageError(str(error)) from error


def filters(where: Sequence[str], plan: Plan) -> tuple[Filter, ...]:
    """``COLUMN=VALUE`` as filters of the stream, the value of the column's type.

    Raises:
        jobs.common.UsageError: not of that form, or not of that type.
    """
    types = NUMBERS | {k.name: k.type for k in map(keep.parse, plan.keep)}
    found = list[Filter]()
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
    given = ["train", args.recipe, "--shards", args.shards, "--out", args.out,
             "--device", args.device, "--threads", str(args.threads)]  # fmt: skip
    return given + (["--minutes", str(args.minutes)] if args.minutes else [])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.train", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", required=True, choices=["prior", "autoencoder"])
    group = parser.add_argument_group("data, one of the two")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--codes", metavar="URI", help="an archive with raw codes; prior only")
    source.add_argument("--shards", help="WebDataset tars, a glob; the last is held out")
    group.add_argument("--where", nargs="+", default=[], metavar="COLUMN=VALUE", help="with "
                       "--codes: images of that label alone; all must hold")  # fmt: skip
    group = parser.add_argument_group("run")
    group.add_argument("--out", required=True, metavar="DIR",
                       help="folder of the run; goes on if it exists")  # fmt: skip
    group.add_argument("--start-from", choices=learner.STARTS, default="shipped", help="with "
                       "--codes: the entropy model of the archive's weights, or none")  # fmt: skip
    group.add_argument("--minutes", type=float, help="of training (60 with --codes, else the "
                       "recipe's)")  # fmt: skip
    group = parser.add_argument_group("resources")
    group.add_argument("--workers", type=int, default=1, metavar="W",
                       help="processes that share the work (%(default)s)")  # fmt: skip
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.add_argument("--threads", type=int, default=1, help="of torch, each (%(default)s)")
    args = parser.parse_args(argv)
    if args.codes and args.recipe == "autoencoder":
        parser.error("--recipe autoencoder needs images: --shards")
    if args.shards and (args.where or args.workers != 1):
        parser.error("--where and --workers go with --codes")
    if min(args.workers, args.threads) < 1 or (args.minutes or 1) <= 0:
        parser.error("--workers and --threads must be 1 or more, --minutes above 0")
    args.minutes = args.minutes or (60.0 if args.codes else None)
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
