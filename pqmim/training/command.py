"""What ``pqmim train autoencoder`` and ``pqmim train prior`` do."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import sys
from pathlib import Path

import torch
from torch import Tensor

from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.meter import Meter
from pqmim.training.photographs import autoencoder, entropy, photos, runs
from pqmim.training.photographs.corpus import priced

MINUTES = 60.0  # unless told otherwise
HELD_OUT_OF, HELD_OUT = 20, 64  # of a folder: one photograph of so many, and at most so many


def _images(args: argparse.Namespace, smallest: int) -> tuple[list[Tensor], list[Tensor]]:
    """The photographs to train on, and those that are held out.

    Raises:
        ValueError: too few of them.
    """
    if args.images is not None:
        every = photos.load(args.images, smallest)
        left_out = list(range(0, len(every), HELD_OUT_OF))[:HELD_OUT]
        if len(every) < 2:
            raise ValueError(f"--images {args.images}: one photograph; one more is to be held out")
        kept = [image for i, image in enumerate(every) if i not in left_out]
        return kept, [every[i] for i in left_out]
    shards = [Path(p) for p in sorted(glob.glob(args.input))]
    if len(shards) < 2:
        raise ValueError(
            f"--input {args.input} matches {len(shards)} tars, two are needed: one is held out"
        )
    return photos.load(shards[:-1], smallest), photos.load(shards[-1:], smallest)


def train_autoencoder(args: argparse.Namespace) -> int:
    """Train, then write the weights beside the log."""
    device, minutes = torch.device(args.device), args.minutes or MINUTES
    recipe = autoencoder.Recipe.on(device, args.size, minutes)
    other = None
    if args.go_on:
        other = checkpoint.parse(checkpoint.read(args.go_on), args.go_on).model
        if other.config.layers:
            recipe = dataclasses.replace(recipe, model=other.config)
    images, held_out = _images(args, max(recipe.crop, runs.HELD_OUT_SIZE))
    meter = Meter("train autoencoder", minutes, "minutes", quiet=args.quiet)
    model = runs.train_autoencoder(recipe, images, held_out, args.output, device, other, meter)
    meter.close()
    sys.stdout.write(f"{checkpoint.write(model, args.output)}\n")
    return 0


def train_prior(args: argparse.Namespace) -> int:
    """Train on the codes of the photographs, then write both halves beside the log."""
    device, minutes = torch.device(args.device), args.minutes or MINUTES
    weights = checkpoint.parse(checkpoint.read(args.weights), args.weights)
    config = weights.model.config
    model, other = entropy.sized(args.size, config.subcodes, config.codewords), None
    if args.go_on:
        other = checkpoint.parse(checkpoint.read(args.go_on), args.go_on).prior
        if other is None:
            raise ValueError(f"--go-on {args.go_on}: these weights have no entropy model")
        checkpoint.check_pair(config, other)
        model = other.config
    recipe = entropy.PriorRecipe.on(device, model, minutes)
    if other is not None:
        recipe = dataclasses.replace(recipe, peak_lr=recipe.peak_lr / 2)
    images, held_out = _images(args, 16 * config.stride)
    meter = Meter("train prior", minutes, "minutes", quiet=args.quiet)
    codec = Codec(weights.model, weights.fingerprint, device)
    codec.model = priced(codec.model, images, recipe.seed)
    trained = runs.train_prior(
        recipe, codec.model, images, held_out, args.output, device, other, meter
    )
    meter.close()
    sys.stdout.write(f"{checkpoint.write(codec.model, args.output, trained)}\n")
    return 0
