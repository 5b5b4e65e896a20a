"""What ``pqmim train autoencoder`` and ``pqmim train prior`` do."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import sys
from pathlib import Path

import torch

from pqmim import checkpoint
from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.codec import Codec
from pqmim.meter import Meter
from pqmim.prior import integers
from pqmim.prior.config import PriorConfig
from pqmim.training import autoencoder, codes, prior_run, translate
from pqmim.training.prior import PriorRecipe


def _shards(args: argparse.Namespace) -> list[Path]:
    """The tars of ``--input``."""
    shards = [Path(p) for p in sorted(glob.glob(args.input))]
    if len(shards) < 2:
        raise ValueError(
            f"--input {args.input} matches {len(shards)} tars, two are needed: one is held out"
        )
    return shards


def train_autoencoder(args: argparse.Namespace) -> int:
    """Train, then write the weights beside the log."""
    recipe = autoencoder.Recipe()
    if args.minutes:
        recipe = dataclasses.replace(recipe, minutes=args.minutes)
    other = Codec.load(args.trunks).model if args.trunks else None
    meter = Meter("train autoencoder", recipe.minutes, "minutes", quiet=args.quiet)
    device = torch.device(args.device)
    model = autoencoder.train(recipe, _shards(args), args.output, device, other, meter)
    meter.close()
    sys.stdout.write(f"{checkpoint.write(model, args.output)}\n")
    return 0


def _prior_recipe(
    args: argparse.Namespace, codes_of: AutoencoderConfig
) -> tuple[PriorRecipe, integers.Checkpoint | None]:
    """The recipe, and the entropy model of ``--go-on``."""
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
    shards = _shards(args)
    weights = checkpoint.parse(checkpoint.read(args.weights), args.weights)
    recipe, other = _prior_recipe(args, weights.model.config)
    if other is not None:
        old, bare = Codec.load(args.go_on, args.device), Codec(weights.model, "", args.device)
        other = translate.follow(other, old, bare, shards[:-1])
    codec = Codec(weights.model, weights.fingerprint, args.device, other or weights.prior)
    meter = Meter("train prior", recipe.minutes, "minutes", quiet=args.quiet)
    meter.say(f"encoding the photographs of {len(shards)} shards, {args.passes} times")
    train, held_out = codes.load_codes(codec, shards, args.passes, args.searched)
    device = torch.device(args.device)
    quantizer = codec.model.quantizer
    codebook, lengths = quantizer.codebook, quantizer.lengths()
    trainer = prior_run.begin(recipe, args.output, device, codebook, lengths, other)
    trained = prior_run.train(trainer, train, held_out, args.output, meter=meter)
    meter.close()
    sys.stdout.write(f"{checkpoint.write(codec.model, args.output, trained)}\n")
    return 0
