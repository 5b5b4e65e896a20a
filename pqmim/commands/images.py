"""``pqmim compress | decompress | complete``: one file to another, or many to a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim import tiles
from pqmim.codec import Codec
from pqmim.coding import payloads, schedule
from pqmim.commands import files, formats, many
from pqmim.commands.files import FileError, Output
from pqmim.commands.many import Job
from pqmim.commands.weights import Shelf
from pqmim.completion import masks
from pqmim.completion.rule import Rule
from pqmim.files import container
from pqmim.meter import Meter

LARGE = 2_000_000  # pixels from which progress is shown


def rule(args: argparse.Namespace) -> Rule:
    """How codes are drawn."""
    return Rule(args.steps, args.temperature, args.seed)


@dataclass(frozen=True)
class How:
    """What ``compress`` is asked for, of any picture."""

    quality: int | None
    price: float
    plan: tuple[int, ...]
    max_bytes: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> How:
        """From the flags.

        Raises:
            ValueError: flags that exclude each other.
        """
        chosen = args.fast or (args.quality, args.price) != (None, None)
        if args.max_bytes is not None and chosen:
            raise ValueError("--max-bytes chooses quality, price and stages itself")
        price = schedule.DEFAULT_PRICE if args.price is None else args.price
        plan = schedule.FAST_PLAN if args.fast else schedule.DEFAULT_PLAN
        return cls(args.quality, price, plan, args.max_bytes)

    def file(self, codec: Codec, pixels: Tensor) -> bytes:
        """The ``.pqm`` file of a picture."""
        if self.max_bytes is not None:
            return codec.compress_to(pixels, self.max_bytes)
        return codec.compress(pixels, self.quality, self.plan, price=self.price)


def compress(args: argparse.Namespace) -> int:
    """Image files to ``.pqm`` files."""
    how = How.of(args)
    if args.output is not None and formats.is_picture_name(args.output):
        raise FileError(
            f"{args.output}: compress writes .pqm files, and this is a picture's name; the outputs "
            "of several pictures go to --output-dir"
        )

    jobs = _jobs(args, ".pqm")
    codec = Codec.load(args.weights, args.device)

    def one(job: Job, quiet: bool) -> None:
        pixels = formats.read_pixels(job.input, quiet=args.quiet)
        with progress("compress", pixels[0].numel(), quiet=quiet):
            job.output.write(how.file(codec, pixels))

    return _make(args, "compress", jobs, one)


def decompress(args: argparse.Namespace) -> int:
    """``.pqm`` files to image files."""
    if args.output is not None:
        formats.format_of(args.output)  # before any work
    fill = rule(args) if args.complete == "draw" else args.complete
    partial = args.partial or args.complete is not None
    most = container.READ_PIXELS if args.max_pixels is None else args.max_pixels
    jobs, shelf = _jobs(args, ".png"), Shelf(args.weights, args.device)

    def one(job: Job, quiet: bool) -> None:
        data = files.read(job.input)
        stream = container.parse(data)
        codec = shelf.of(stream.model)
        with progress("decompress", stream.height * stream.width, quiet=quiet):
            pixels = codec.decompress(data, partial=partial, fill=fill, max_pixels=most)
        job.output.write(formats.image_file(job.output.name, pixels, quiet=args.quiet))

    return _make(args, "decompress", jobs, one)


def _jobs(args: argparse.Namespace, suffix: str) -> list[Job]:
    """What there is to make, with the one output checked before anything is loaded."""
    if args.output_dir is not None:
        return many.jobs_of(args.inputs, args.output_dir, suffix, force=args.force)
    output = Output(args.output, args.force)
    output.check(args.inputs)
    return [Job(args.inputs[0], output)]


def _make(
    args: argparse.Namespace, what: str, jobs: list[Job], one: Callable[[Job, bool], None]
) -> int:
    """Make the one file, or the many; ``one`` takes a job, and whether its progress is nobody's."""

    def work(job: Job) -> None:
        with files.about(job.input):
            job.output.check([job.input])
            one(job, args.quiet or args.output_dir is not None)

    if args.output_dir is None:
        work(jobs[0])
        return 0
    return many.each(jobs, work, args.threads, Meter(what, len(jobs), "files", quiet=args.quiet))


@contextmanager
def progress(what: str, pixels: int, *, quiet: bool) -> Iterator[None]:
    """Show how far the work in the block is, if there are many pixels: the transform's windows are
    a third of it, first when compressing and last when decompressing, the stages the rest."""
    meter = Meter(what, 1.0, quiet=quiet or pixels < LARGE)
    starts = {"windows": 0.0, "stages": 1 / 3} if what == "compress" else {"stages": 0.0}
    starts.setdefault("windows", 2 / 3)

    def window(done: int, count: int) -> None:
        meter.show(starts["windows"] + done / count / 3, f"window {done + 1} of {count}")

    def stage(done: int, count: int) -> None:
        meter.show(starts["stages"] + done / count * 2 / 3, f"stage {done + 1} of {count}")

    try:
        with tiles.WATCH.told(window), payloads.WATCH.told(stage):
            yield
    finally:
        meter.close()


def complete(args: argparse.Namespace) -> int:
    """Image file to image file by way of its codes, some of them replaced."""
    how, output = rule(args), Output(args.output, args.force)
    formats.format_of(args.output)
    output.check([args.input])
    with files.about(args.input):
        pixels = formats.read_pixels(args.input, quiet=args.quiet)
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
        output.write(formats.image_file(args.output, shown[0], quiet=args.quiet))
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
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError(f"--replace {args.replace}: four numbers, TOP,LEFT,HEIGHT,WIDTH in pixels")
    top, left, high, wide = (int(side) for side in sides)
    return masks.outside(shape, (top, left, high, wide), codec.config.stride)
