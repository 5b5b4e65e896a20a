"""``pqmim compress | decompress | info | eval | train``: the codec from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from pqmim import checkpoint, commands
from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.codec import Codec
from pqmim.coding import search
from pqmim.evaluation import command
from pqmim.files import container
from pqmim.prior import integers, schedule
from pqmim.prior.config import PriorConfig

if TYPE_CHECKING:
    from pqmim.training.prior import PriorRecipe

SUFFIX = ".pqm"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and call; errors that a person can act on are one line and exit code 2."""
    parser = argparse.ArgumentParser("pqmim", description="Neural image compression, PQ-MIM.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _compress_flags(verbs.add_parser("compress", help="an image to a .pqm file"))
    _decompress_flags(verbs.add_parser("decompress", help="a .pqm file to an image"))
    commands.complete_flags(verbs.add_parser("complete", help="keep some codes, draw the others"))
    _info_flags(verbs.add_parser("info", help="what a .pqm file or a weights file holds"))
    command.add_flags(verbs.add_parser("eval", help="rate and distortion on a folder of images"))
    stages = verbs.add_parser("train", help="train a model").add_subparsers(required=True)
    _train_autoencoder_flags(stages.add_parser("autoencoder", help="stage 1, the PQ-VAE"))
    _train_prior_flags(stages.add_parser("prior", help="stage 2, the entropy model of its codes"))
    args = parser.parse_args(argv)
    try:
        return int(args.call(args))
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        sys.stderr.write(f"pqmim: {' '.join(str(error).split())}\n")
        return 2


def _compress_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="PNG, JPEG, ... or - for stdin")
    parser.add_argument("output", help="the .pqm file, or - for stdout")
    parser.add_argument("--quality", type=int, help="sub-codes to keep, from 1 (all of them)")
    parser.add_argument(
        "--price", type=float, metavar="LAMBDA",
        help="squared error that a bit is worth: higher gives smaller files, 0 takes the nearest "
        f"codewords ({search.DEFAULT_PRICE})",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="fewer stages: less time, more bytes")
    parser.add_argument("--max-bytes", type=int, help="the best picture in so many bytes: 200")
    commands.model_flags(parser)
    parser.set_defaults(call=compress)


def _decompress_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="the .pqm file, or - for stdin")
    parser.add_argument("output", help="PNG, JPEG, ... by its suffix, or - for a PNG on stdout")
    parser.add_argument("--partial", action="store_true", help="show what a cut-off file still has")
    parser.add_argument(
        "--complete", choices=("mean", "draw"), nargs="?", const="mean",
        help="as --partial, and fill what was not sent: by its mean (nearest), or drawn (sharp)",
    )  # fmt: skip
    commands.rule_flags(parser)
    commands.model_flags(parser)
    parser.set_defaults(call=decompress)


def compress(args: argparse.Namespace) -> int:
    """Image file to ``.pqm``."""
    if args.max_bytes is not None and (args.fast or (args.quality, args.price) != (None, None)):
        raise ValueError("--max-bytes chooses quality, price and stages itself")
    pixels = commands.read_pixels(args.input)
    codec = Codec.load(args.weights, args.device)
    if args.max_bytes is not None:
        commands.write(args.output, codec.compress_to(pixels, args.max_bytes))
        return 0
    price = search.DEFAULT_PRICE if args.price is None else args.price
    plan = schedule.FAST_PLAN if args.fast else schedule.DEFAULT_PLAN
    commands.write(args.output, codec.compress(pixels, args.quality, plan, price=price))
    return 0


def decompress(args: argparse.Namespace) -> int:
    """``.pqm`` to image file."""
    codec = Codec.load(args.weights, args.device)
    fill = commands.rule(args) if args.complete == "draw" else args.complete
    partial = args.partial or args.complete is not None
    pixels = codec.decompress(commands.read(args.input), partial=partial, fill=fill)
    commands.write_pixels(args.output, pixels)
    return 0


def _info_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", default="default",
        help="a .pqm file, - for one on stdin, or weights by path or name (%(default)s)",
    )  # fmt: skip
    parser.set_defaults(call=info)


def info(args: argparse.Namespace) -> int:
    """Print the description of a file."""
    if args.target == commands.STDIO or args.target.endswith(SUFFIX):
        report = _describe_stream(commands.read(args.target))
    else:
        report = _describe_weights(args.target)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def _describe_stream(data: bytes) -> dict[str, object]:
    """What the header says; the payload is not decoded."""
    stream = container.parse(data)
    return {
        "version": stream.version, "model": stream.model.hex(),
        "width": stream.width, "height": stream.height, "quality": stream.quality,
        "plan": list(stream.plan), "stages": stream.stages, "stages_planned": stream.planned,
        "crc32": f"{stream.crc32:08x}", "bytes": len(data),
        "bpp": round(8 * len(data) / (stream.width * stream.height), 4),
    }  # fmt: skip


def _describe_weights(name: str) -> dict[str, object]:
    data = checkpoint.read(name)
    weights = checkpoint.parse(data, name)
    codec = Codec(weights.model, weights.fingerprint)
    parameters = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("encoder", codec.model.encoder), ("decoder", codec.model.decoder))
    }
    if weights.prior is not None:
        parameters["prior"] = sum(a.size for a in weights.prior.arrays.values())
    return {
        "fingerprint": codec.fingerprint, "bytes": len(data), "parameters": parameters,
        "stride": codec.config.stride, **dataclasses.asdict(codec.config),
        "bpp": {m: codec.bpp(m) for m in range(1, codec.config.subcodes + 1)},
        "prior": None if weights.prior is None else dataclasses.asdict(weights.prior.config),
    }  # fmt: skip


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


def _train_autoencoder_flags(parser: argparse.ArgumentParser) -> None:
    _train_flags(parser)
    parser.add_argument("--trunks", metavar="WEIGHTS", help="begin with the trunks of this model")
    parser.set_defaults(call=train_autoencoder)


def _shards(args: argparse.Namespace) -> list[Path]:
    """The tars of ``--shards``; sets the threads."""
    shards = [Path(p) for p in sorted(glob.glob(args.shards))]
    if len(shards) < 2:
        raise ValueError(
            f"--shards {args.shards} matches {len(shards)} tars, two are needed: one is held out"
        )
    torch.set_num_threads(args.threads)
    return shards


def train_autoencoder(args: argparse.Namespace) -> int:
    """Train, then write the weights beside the log."""
    from pqmim.training import autoencoder

    recipe = autoencoder.Recipe()
    if args.minutes:
        recipe = dataclasses.replace(recipe, minutes=args.minutes)
    other = Codec.load(args.trunks).model if args.trunks else None
    model = autoencoder.train(recipe, _shards(args), args.out, torch.device(args.device), other)
    sys.stdout.write(f"{checkpoint.write(model, args.out)}\n")
    return 0


def _train_prior_flags(parser: argparse.ArgumentParser) -> None:
    _train_flags(parser)
    parser.add_argument("--weights", default="default", help="autoencoder: path or name")
    parser.add_argument("--passes", type=int, default=4, help="variants of a photo (%(default)s)")
    parser.add_argument(
        "--searched", type=int, default=0, metavar="N",
        help="also N grids of codes that the entropy model of --go-on or --weights chooses "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--go-on", metavar="WEIGHTS",
        help="begin with the entropy model of these weights, at half the learning rate; that of "
        "another autoencoder's codes is translated first",
    )  # fmt: skip
    parser.set_defaults(call=train_prior)


def _prior_recipe(
    args: argparse.Namespace, codes_of: AutoencoderConfig
) -> tuple[PriorRecipe, integers.Checkpoint | None]:
    """The recipe, and the entropy model of ``--go-on``."""
    from pqmim.training.prior import PriorRecipe

    if not args.go_on:
        config = PriorConfig(subcodes=codes_of.subcodes, codewords=codes_of.codewords)
        recipe, other = PriorRecipe(model=config), None
    else:
        other = checkpoint.parse(checkpoint.read(args.go_on), args.go_on).prior
        if other is None:
            raise ValueError(f"--go-on {args.go_on}: these weights have no entropy model")
        checkpoint.check_pair(codes_of, other)
        recipe = PriorRecipe(model=dataclasses.replace(other.config, chain=True))
        recipe = dataclasses.replace(recipe, peak_lr=recipe.peak_lr / 2)
    if args.minutes:
        recipe = dataclasses.replace(recipe, minutes=args.minutes)
    return recipe, other


def train_prior(args: argparse.Namespace) -> int:
    """Encode the corpus, train, then write both halves into one weights file beside the log."""
    from pqmim.training import codes, prior_run, translate

    shards = _shards(args)
    weights = checkpoint.parse(checkpoint.read(args.weights), args.weights)
    recipe, other = _prior_recipe(args, weights.model.config)
    if other is not None:
        old, bare = Codec.load(args.go_on, args.device), Codec(weights.model, "", args.device)
        other = translate.follow(other, old, bare, shards[:-1])
    codec = Codec(weights.model, weights.fingerprint, args.device, other or weights.prior)
    train, held_out = codes.load_codes(codec, shards, args.passes, args.searched)
    device = torch.device(args.device)
    quantizer = codec.model.quantizer
    codebook, lengths = quantizer.codebook, quantizer.lengths()
    trainer = prior_run.begin(recipe, args.out, device, codebook, lengths, other)
    trained = prior_run.train(trainer, train, held_out, args.out)
    sys.stdout.write(f"{checkpoint.write(codec.model, args.out, trained)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
