"""``pqmim compress | decompress | complete | info | eval | train | jobs``: the command line.

The parsers alone: what a verb does is imported when it is asked for, so that ``--help`` comes at
once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from pqmim import __version__
from pqmim.coding import schedule
from pqmim.commands import files
from pqmim.completion.rule import Rule
from pqmim.meter import tell

USAGE, INTERRUPTED = 2, 130  # exit codes; 3: some of many files were not made
MAX_THREADS = 1024  # PyTorch crashes of many more


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and call; errors that a person can act on are one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    files.open_closed_streams()
    if argv[:1] == ["jobs"]:
        from pqmim.commands import jobs

        return jobs.main(argv[1:])
    args = parse(argv)
    logging.basicConfig(
        level=logging.ERROR if args.quiet else logging.WARNING, format="pqmim: %(message)s"
    )
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of bad files, we say
    warnings.filterwarnings("ignore", module="PIL")
    import torch

    from pqmim.commands import errors

    torch.set_num_threads(args.threads)
    module, _, name = args.call.partition(":")
    try:
        args.device = errors.device_of(args.device)
        code = int(getattr(importlib.import_module(module), name)(args))
        files.say("")  # and what is waiting, while an error can still be told
        return code
    except KeyboardInterrupt:
        tell("pqmim: interrupted")
        return INTERRUPTED
    except Exception as error:
        text = errors.sentence(error)
        if text is None:
            raise
        tell(f"pqmim: {text}")
        return USAGE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("pqmim", description="Neural image compression, PQ-MIM.")
    parser.add_argument("--version", action="version", version=f"pqmim {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _compress_flags(verbs.add_parser("compress", help="an image to a .pqm file"))
    _decompress_flags(verbs.add_parser("decompress", help="a .pqm file to an image"))
    _complete_flags(verbs.add_parser("complete", help="keep some codes, draw the others"))
    _info_flags(verbs.add_parser("info", help="what a .pqm file or a weights file holds"))
    _eval_flags(verbs.add_parser("eval", help="rate and distortion on a folder of images"))
    stages = verbs.add_parser("train", help="train a model").add_subparsers(required=True)
    _train_autoencoder_flags(stages.add_parser("autoencoder", help="stage 1, the PQ-VAE"))
    _train_prior_flags(stages.add_parser("prior", help="stage 2, the entropy model of its codes"))
    verbs.add_parser("jobs", help="the batch jobs: pqmim jobs encode --help", add_help=False)
    args, more = parser.parse_known_args(argv)
    if any(len(name) > 1 and name.startswith("-") for name in more) or (
        more and "files" not in args
    ):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if not 1 <= args.threads <= MAX_THREADS:
        parser.error(f"--threads {args.threads}: 1 to {MAX_THREADS}")
    if args.verb in ("compress", "decompress"):
        args.files += more  # names behind an option: argparse takes those before it alone
        _one_or_many(verbs.choices[args.verb], args)
    return args


def _one_or_many(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """INPUT and OUTPUT, or with --output-dir inputs alone -> ``inputs`` and ``output``."""
    args.inputs, args.output = args.files, None
    if args.output_dir is None:
        if len(args.files) != 2:
            several = "the outputs of several go to --output-dir DIR"
            parser.error(f"one INPUT and one OUTPUT, not {len(args.files)} names; {several}")
        args.inputs, args.output = args.files[:1], args.files[1]


def _run_flags(parser: argparse.ArgumentParser, call: str) -> None:
    """Where it runs, and what it says."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress, and no warnings")
    parser.set_defaults(call=call)


def _weights_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")


def _file_flags(parser: argparse.ArgumentParser, help: str) -> None:
    """One file, or many."""
    parser.usage = f"{parser.prog} [options] INPUT OUTPUT | INPUT ... --output-dir DIR"
    parser.add_argument("files", nargs="+", metavar="FILE", help=help)
    parser.add_argument(
        "--output-dir", metavar="DIR",
        help="every FILE is an input; outputs of the same names go here, --threads at a time",
    )  # fmt: skip
    _force_flag(parser)


def _force_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace outputs that are there")


def _compress_flags(parser: argparse.ArgumentParser) -> None:
    _file_flags(
        parser, "INPUT: PNG, JPEG, ... or - for stdin; OUTPUT: the .pqm file, or - for stdout"
    )
    parser.add_argument("--quality", type=int, help="sub-codes to keep, from 1 (all of them)")
    parser.add_argument(
        "--price", type=float, metavar="LAMBDA",
        help="squared error that a bit is worth: higher gives smaller files, 0 takes the nearest "
        f"codewords ({schedule.DEFAULT_PRICE})",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="fewer stages: less time, more bytes")
    parser.add_argument("--max-bytes", type=int, help="the best picture in so many bytes: 200")
    _weights_flag(parser)
    _run_flags(parser, "pqmim.commands.images:compress")


def _decompress_flags(parser: argparse.ArgumentParser) -> None:
    _file_flags(
        parser, "INPUT: the .pqm file, or - for stdin; OUTPUT: PNG, JPEG, ... by its suffix, or - "
        "for a PNG on stdout",
    )  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="show what a cut-off file still has")
    parser.add_argument(
        "--complete", choices=("mean", "draw"), nargs="?", const="mean",
        help="as --partial, and fill what was not sent: by its mean (nearest), or drawn (sharp)",
    )  # fmt: skip
    _rule_flags(parser)
    parser.add_argument(
        "--max-pixels", type=int, metavar="N",
        help="refuse files of larger pictures, which a few bytes can ask for (2^26)",
    )  # fmt: skip
    parser.add_argument("--weights", help="path or name (those that a file names)")
    _run_flags(parser, "pqmim.commands.images:decompress")


def _rule_flags(parser: argparse.ArgumentParser) -> None:
    """How codes are drawn."""
    rule = Rule()
    parser.add_argument(
        "--steps", type=int, default=rule.steps, help="passes a group of sub-codes (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=rule.temperature,
        help="0, the most probable codes, to 16 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another one, another image")


def _complete_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="PNG, JPEG, ... or - for stdin")
    parser.add_argument("output", help="PNG, JPEG, ... by its suffix, or - for a PNG on stdout")
    _force_flag(parser)
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--keep-stages", type=int, metavar="N", help="the first stages of a stream")
    kept.add_argument("--keep-subcodes", type=int, metavar="N", help="the first ones everywhere")
    kept.add_argument(
        "--replace", metavar="TOP,LEFT,HEIGHT,WIDTH", help="all but a rectangle of pixels"
    )
    parser.add_argument("--mean", action="store_true", help="the mean of the others; no drawing")
    _rule_flags(parser)
    _weights_flag(parser)
    _run_flags(parser, "pqmim.commands.images:complete")


def _info_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", default="default",
        help="a .pqm file, - for one on stdin, or weights by path or name (%(default)s)",
    )  # fmt: skip
    _run_flags(parser, "pqmim.commands.info:info")


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="PNG, JPEG, ... images")
    parser.add_argument(
        "--codecs", metavar="NAME,...",
        help="to compare with: jpeg, webp, avif, jxl, ... (all that are installed)",
    )  # fmt: skip
    parser.add_argument(
        "--published", metavar="FILE",
        help="compare with published curves: a JSON file, or 'default' for those of Kodak",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="+", metavar="Q[:PRICE]",
        help="operating points: sub-codes, and the price of a bit (a spread over all)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="JSON, CSV and a page go there")
    parser.add_argument("--rates", action="store_true", help="what the entropy model saves instead")
    parser.add_argument(
        "--perceptual", choices=("texture", "features"),
        help="realism at equal bytes instead: without a network, or with EfficientNet-lite0 too",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="fewer stages")
    _weights_flag(parser)
    _run_flags(parser, "pqmim.evaluation.command:evaluate")


def _train_flags(parser: argparse.ArgumentParser, call: str) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", metavar="SHARDS", help="WebDataset tars, a glob; the last is held out"
    )
    source.add_argument(
        "--images", type=Path, metavar="FOLDER", help="photographs; one of 20 is held out"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the run; resumes if it exists"
    )
    parser.add_argument("--minutes", type=float, help="time budget (60)")
    parser.add_argument(
        "--size", choices=("small", "base", "large"), default="small",
        help="of a new model: quality against time (%(default)s)",
    )  # fmt: skip
    _run_flags(parser, call)
    parser.set_defaults(device="auto")


def _train_autoencoder_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--go-on", metavar="WEIGHTS",
        help="begin with these weights: all of them, or the trunks where sub-codes have no layers",
    )  # fmt: skip
    _train_flags(parser, "pqmim.training.command:train_autoencoder")


def _train_prior_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="default", help="autoencoder: path or name")
    parser.add_argument(
        "--go-on", metavar="WEIGHTS",
        help="begin with the entropy model of these weights, at half the learning rate",
    )  # fmt: skip
    _train_flags(parser, "pqmim.training.command:train_prior")
