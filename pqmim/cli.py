"""``pqmim info | eval | train``: the codec from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pqmim import checkpoint
from pqmim.codec import Codec


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and call; errors that a person can act on are one line and exit code 2."""
    parser = argparse.ArgumentParser("pqmim", description="Neural image compression, PQ-MIM.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _info_flags(verbs.add_parser("info", help="what a weights file holds"))
    _eval_flags(verbs.add_parser("eval", help="rate and distortion on a folder of images"))
    stages = verbs.add_parser("train", help="train a model").add_subparsers(required=True)
    _train_flags(stages.add_parser("autoencoder", help="stage 1, the PQ-VAE"))
    args = parser.parse_args(argv)
    try:
        return int(args.call(args))
    except (checkpoint.CheckpointError, ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"pqmim: {error}\n")
        return 2


def _info_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", nargs="?", default="default", help="path or name (%(default)s)")
    parser.set_defaults(call=info)


def info(args: argparse.Namespace) -> int:
    """Print a model's description."""
    data = checkpoint.read(args.weights)
    codec = Codec.from_bytes(data, name=args.weights)
    parameters = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("encoder", codec.model.encoder), ("decoder", codec.model.decoder))
    }
    report = {
        "fingerprint": codec.fingerprint, "bytes": len(data), "parameters": parameters,
        "stride": codec.config.stride, **dataclasses.asdict(codec.config),
        "bpp": {m: codec.bpp(m) for m in range(1, codec.config.subcodes + 1)},
    }  # fmt: skip
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="PNG, JPEG, ... images")
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.set_defaults(call=evaluate)


def evaluate(args: argparse.Namespace) -> int:
    """Print the model's curve beside JPEG's."""
    from pqmim.evaluation import rd

    ours, jpeg, count = rd.compare(Codec.load(args.weights, args.device), args.folder)
    sys.stdout.write(f"{count} images of {args.folder}\n{rd.table(ours, jpeg)}")
    return 0


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shards", required=True, help="WebDataset tars, a glob; the last is held out"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; resumes if it exists"
    )
    parser.add_argument("--minutes", type=float, help="time budget (the recipe's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.set_defaults(call=train_autoencoder)


def train_autoencoder(args: argparse.Namespace) -> int:
    """Train, then write the weights beside the log."""
    from pqmim.training import autoencoder

    shards = [Path(p) for p in glob.glob(args.shards)]
    if len(shards) < 2:
        raise ValueError(
            f"--shards {args.shards} matches {len(shards)} tars, two are needed: one is held out"
        )
    torch.set_num_threads(args.threads)
    recipe = autoencoder.Recipe()
    if args.minutes:
        recipe = dataclasses.replace(recipe, minutes=args.minutes)
    model = autoencoder.train(recipe, shards, args.out, torch.device(args.device))
    sys.stdout.write(f"{checkpoint.write(model, args.out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
