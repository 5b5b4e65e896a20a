"""What the commands on images do: ``pqmim compress | decompress | complete | info``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.coding import payloads, schedule
from pqmim.completion import masks
from pqmim.completion.rule import Rule
from pqmim.files import container
from pqmim.meter import Meter
from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read as read_picture

STDIO = "-"
SUFFIX = ".pqm"
LARGE = 2_000_000  # pixels from which progress is shown


def rule(args: argparse.Namespace) -> Rule:
    """How codes are drawn."""
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


@contextmanager
def loaded(args: argparse.Namespace, what: str, pixels: int) -> Iterator[Codec]:
    """The codec that the flags ask for, with progress if there are many pixels."""
    codec = Codec.load(args.weights, args.device)
    meter = Meter(what, 1.0, quiet=args.quiet or pixels < LARGE)
    with payloads.watched(lambda stage, stages: meter.show(stage / stages, f"stage {stage}")):
        yield codec
    meter.close()


def compress(args: argparse.Namespace) -> int:
    """Image file to ``.pqm``."""
    if args.max_bytes is not None and (args.fast or (args.quality, args.price) != (None, None)):
        raise ValueError("--max-bytes chooses quality, price and stages itself")
    pixels = read_pixels(args.input)
    price = schedule.DEFAULT_PRICE if args.price is None else args.price
    plan = schedule.FAST_PLAN if args.fast else schedule.DEFAULT_PLAN
    with loaded(args, "compress", pixels[0].numel()) as codec:
        if args.max_bytes is not None:
            data = codec.compress_to(pixels, args.max_bytes)
        else:
            data = codec.compress(pixels, args.quality, plan, price=price)
    write(args.output, data)
    return 0


def decompress(args: argparse.Namespace) -> int:
    """``.pqm`` to image file."""
    data = read(args.input)
    fill = rule(args) if args.complete == "draw" else args.complete
    partial = args.partial or args.complete is not None
    stream = container.parse(data)
    with loaded(args, "decompress", stream.height * stream.width) as codec:
        pixels = codec.decompress(data, partial=partial, fill=fill)
    write_pixels(args.output, pixels)
    return 0


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
    sides = args.replace.split(",")
    if len(sides) != 4 or not all(side.strip().isdigit() for side in sides):
        raise ValueError(f"--replace {args.replace}: four numbers, TOP,LEFT,HEIGHT,WIDTH in pixels")
    top, left, high, wide = (int(side) for side in sides)
    return masks.outside(shape, (top, left, high, wide), codec.config.stride)


def info(args: argparse.Namespace) -> int:
    """Print the description of a file."""
    if args.target == STDIO or args.target.endswith(SUFFIX):
        report = _describe_stream(read(args.target))
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
