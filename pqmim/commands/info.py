"""``pqmim info``: what a file is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.commands import files
from pqmim.commands.files import STDIO
from pqmim.files import container

SUFFIX = ".pqm"


def info(args: argparse.Namespace) -> int:
    """Print the description of a file."""
    if args.target == STDIO or args.target.endswith(SUFFIX):
        report = _describe_stream(files.read(args.target))
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
