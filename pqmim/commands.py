"""What the commands on images share, and ``pqmim complete``."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pqmim.codec import Codec
from pqmim.completion import masks
from pqmim.completion.draw import Rule
from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read as read_picture
from pqmim.prior import schedule

STDIO = "-"


def model_flags(parser: argparse.ArgumentParser) -> None:
    """Which weights, and where they run."""
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")
    parser.add_argument("--device", default="cpu", help="%(default)s")


def rule_flags(parser: argparse.ArgumentParser) -> None:
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


def rule(args: argparse.Namespace) -> Rule:
    """The rule of :func:`rule_flags`."""
    return Rule(args.steps, args.temperature, args.seed)


def read(name: str) -> bytes:
    """A file, or stdin."""
    return sys.stdin.buffer.read() if name == STDIO else Path(name).read_bytes()


def write(name: str, data: bytes) -> None:
    """To a file, or stdout."""
    if name == STDIO:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(name).write_bytes(data)


def read_pixels(name: str) -> Tensor:
    """An image file, or stdin -> uint8 [3,H,W], upright, in sRGB, over white.

    Raises:
        ValueError: it cannot be read as an image.
    """
    try:
        picture = read_picture(read(name))
    except BadPicture as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if picture.note:
        sys.stderr.write(f"note: {name}: {picture.note}\n")
    return picture.tensor()


def write_pixels(name: str, pixels: Tensor) -> None:
    """uint8 [3,H,W] to a file of the format that its suffix names, or a PNG to stdout.

    Raises:
        ValueError: no format has that suffix.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    suffix = ".png" if name == STDIO else Path(name).suffix.lower()
    formats = Image.registered_extensions()
    if suffix not in formats:
        raise ValueError(f"{name}: no image format has the suffix {suffix!r}")
    buffer = io.BytesIO()
    image.save(buffer, formats[suffix])
    write(name, buffer.getvalue())


def complete_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``pqmim complete``."""
    parser.add_argument("input", help="PNG, JPEG, ... or - for stdin")
    parser.add_argument("output", help="PNG, JPEG, ... by its suffix, or - for a PNG on stdout")
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--keep-stages", type=int, metavar="N", help="the first stages of a stream")
    kept.add_argument("--keep-subcodes", type=int, metavar="N", help="the first ones everywhere")
    kept.add_argument("--keep-share", type=float, metavar="P", help="positions at random, 0..1")
    kept.add_argument(
        "--replace", metavar="TOP,LEFT,HEIGHT,WIDTH", help="all but a rectangle of pixels"
    )
    parser.add_argument("--mean", action="store_true", help="the mean of the others; no drawing")
    rule_flags(parser)
    model_flags(parser)
    parser.set_defaults(call=complete)


def complete(args: argparse.Namespace) -> int:
    """Image file to image file by way of its codes, some of them replaced."""
    how = rule(args)
    pixels = read_pixels(args.input)
    height, width = pixels.shape[1:]
    codec = Codec.load(args.weights, args.device)
    codes = codec.encode(pixels[None])
    known = torch.from_numpy(_kept(args, codec, codes))[None]
    if args.mean:
        shown = codec.preview(codes, known, height, width)
    else:
        filled = codec.complete(
            codes, known, steps=how.steps, temperature=how.temperature, seed=how.seed
        )
        shown = codec.decode(filled, height, width)
    write_pixels(args.output, shown[0])
    return 0


def _kept(args: argparse.Namespace, codec: Codec, codes: Tensor) -> NDArray[np.bool_]:
    """The mask that the flags ask for."""
    _, rows, columns, subcodes = codes.shape
    shape = (rows, columns, subcodes)
    if args.keep_stages is not None:
        group = codec.needed_prior().config.group
        return masks.first_stages(shape, schedule.DEFAULT_PLAN, group, args.keep_stages)
    if args.keep_subcodes is not None:
        return masks.first_subcodes(shape, args.keep_subcodes)
    if args.keep_share is not None:
        return masks.random_share(shape, args.keep_share, args.seed)
    sides = args.replace.split(",")
    if len(sides) != 4 or not all(side.strip().isdigit() for side in sides):
        raise ValueError(f"--replace {args.replace}: four numbers, TOP,LEFT,HEIGHT,WIDTH in pixels")
    top, left, high, wide = (int(side) for side in sides)
    return masks.outside(shape, (top, left, high, wide), codec.config.stride)
