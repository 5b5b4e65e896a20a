"""``pqmim info``: what a file is, by what it holds and not by its name, as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.commands import files
from pqmim.commands.files import STDIO, FileError
from pqmim.files import container
from pqmim.pictures import read as pictures
from pqmim.pictures.picture import PILLOW_ERRORS

Report = dict[str, object]

STATUS = "python -m jobs.status --archive"  # says more of an archive


def info(args: argparse.Namespace) -> int:
    """Print what a file, an archive or a name of weights is.

    Raises:
        FileError: it cannot be read, or is nothing that is known.
    """
    name, report = args.target, None
    with files.about(name):
        if "://" in name:
            raise FileError(f"{name}: not a file of this machine; of an archive: {STATUS} {name}")
        if name != STDIO and Path(name).is_dir():
            report = _archive(Path(name))
        elif name == STDIO or Path(name).exists() or Path(name).suffix:
            report = _file(name, files.read(name))
        else:
            report = _weights(name, checkpoint.read(name))
    files.say(json.dumps(report, indent=1) + "\n")
    return 0


def _file(name: str, data: bytes) -> Report:
    """What the bytes of a file are."""
    if not data:
        raise FileError(f"{files.shown(name)}: an empty file")
    if data.startswith(container.MAGIC):
        return _stream(data)
    if data[8:9] == b"{":
        return _weights(name, data)
    if data.startswith(b"PAR1"):
        return {"kind": "parquet", "bytes": len(data), "see": f"{STATUS} its archive"}
    if data[257:262] == b"ustar":
        return {"kind": "tar", "bytes": len(data), "see": "python -m jobs.encode --input it"}
    if (picture := _picture(data)) is not None:
        return picture
    raise FileError(f"{files.shown(name)}: of no kind that is known; begins with {data[:16]!r}")


def _picture(data: bytes) -> Report | None:
    """The size of a picture, from its header; None if it is none that can be read."""
    try:
        width, height, _ = pictures.probe(data)
    except PILLOW_ERRORS:
        return None
    return {"kind": "picture", "width": width, "height": height, "bytes": len(data)}


def _stream(data: bytes) -> Report:
    """What the header says; the payload is not decoded."""
    stream = container.parse(data)
    model = stream.model.hex()
    weights = str(checkpoint.find(model) or checkpoint.missing(model))
    return {
        "kind": "pqm", "version": stream.version, "model": model, "weights": weights,
        "width": stream.width, "height": stream.height, "quality": stream.quality,
        "plan": list(stream.plan), "stages": stream.stages, "stages_planned": stream.planned,
        "crc32": f"{stream.crc32:08x}", "bytes": len(data),
        "bpp": round(8 * len(data) / (stream.width * stream.height), 4),
    }  # fmt: skip


def _weights(name: str, data: bytes) -> Report:
    weights = checkpoint.parse(data, name)
    codec = Codec(weights.model, weights.fingerprint)
    parameters = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("encoder", codec.model.encoder), ("decoder", codec.model.decoder))
    }
    if weights.prior is not None:
        parameters["prior"] = sum(a.size for a in weights.prior.arrays.values())
    return {
        "kind": "weights", "fingerprint": codec.fingerprint, "bytes": len(data),
        "parameters": parameters, "stride": codec.config.stride,
        **dataclasses.asdict(codec.config),
        "bpp": {m: codec.bpp(m) for m in range(1, codec.config.subcodes + 1)},
        "prior": None if weights.prior is None else dataclasses.asdict(weights.prior.config),
    }  # fmt: skip


def _archive(folder: Path) -> Report:
    """What ``plan.json`` says, and how much is there."""
    plan = folder / "plan.json"
    if not plan.is_file():
        raise FileError(f"{folder}: a folder, and no archive: it holds no plan.json")
    with files.naming(str(plan)):
        text = plan.read_text()
    try:
        fields = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise FileError(f"{plan}: damaged: {error}") from error

    def count(pattern: str) -> int:
        return sum(1 for _ in folder.glob(pattern))

    return {
        "kind": "archive", "plan": fields, "shards_committed": count("ledger/*.json"),
        "shards_failed": count("failed/*.json"), "finished": (folder / "manifest.parquet").exists(),
        "see": f"{STATUS} {folder}",
    }  # fmt: skip
