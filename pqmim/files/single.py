"""Single-image files: codes into the ``.pqm`` container and back, with every check.

    codes [h,w,m] --code_stream--> payload --bitstream.pack--> file
    file --bitstream.parse, check--> payload --code_stream--> codes --checksum--> pixels

The functions behind the methods of :class:`pqmim.codec.Codec`, which stays readable without them.
What was not sent is absent in the picture, as the sub-codes of a lower quality are, or filled:
by its mean, or drawn by a rule (``pqmim.completion.draw``).  Files of version 2 are always filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.coding import payloads as code_stream
from pqmim.coding import range_coder, schedule
from pqmim.coding.range_coder import PayloadError
from pqmim.completion import filling
from pqmim.completion.filling import Fill
from pqmim.files import container
from pqmim.files.container import COMPACT, READ_PIXELS, BitstreamError, Stream
from pqmim.tokenizer import Tokenizer

Codes = NDArray[np.uint8]  # [h, w, m]


def compress_batch(
    codec: Tokenizer,
    pixels: Tensor,
    quality: int | None = None,
    plan: Sequence[int] = schedule.DEFAULT_PLAN,
    stages: int | None = None,
    price: float = schedule.DEFAULT_PRICE,
) -> list[bytes]:
    """uint8 [B,3,H,W] -> one ``.pqm`` file an image (``pqmim.files.container``).

    Args:
        codec: the model.
        pixels: RGB.
        quality: sub-codes to keep; None: all.
        plan: the stage schedule (``pqmim.coding.schedule``); more stages, fewer bytes, more time.
        stages: how many of its stages to send; None: all.
        price: squared error that a bit is worth (``pqmim.coding.search``); 0: nearest codewords.

    Raises:
        NoPriorError: the weights hold no entropy model.
        ValueError: see ``Codec.encode``; or an image or a plan that the format has no room for.
    """
    codec.needed_prior()
    height, width = pixels.shape[-2:]
    payloads = None
    if price == 0:
        codes = codec.encode(pixels, quality)
    else:
        codes, payloads = codec.search(pixels, quality, price, plan)
    if stages is not None:
        payloads = None  # of all stages
    return compress_codes(codec, codes, height, width, plan, stages, payloads)


def compress_codes(
    codec: Tokenizer,
    codes: Tensor,
    height: int,
    width: int,
    plan: Sequence[int] = schedule.DEFAULT_PLAN,
    stages: int | None = None,
    payloads: list[bytes] | None = None,
) -> list[bytes]:
    """Codes uint8 [B,h,w,m] of images of height x width -> one ``.pqm`` file an image.

    ``payloads`` is what entropy coding makes of all stages, where that is known already.

    Raises:
        NoPriorError: the weights hold no entropy model.
        ValueError: codes, an image or a plan that do not fit this model or the format.
    """
    prior = codec.needed_prior()
    if codes.ndim != 4 or tuple(codes.shape[1:3]) != codec.grid(height, width):
        raise ValueError(f"codes {tuple(codes.shape)} are not of {height} x {width} pixels")
    subcodes = codes.shape[3]
    used = schedule.filled(plan, subcodes, prior.config.group)
    total = len(schedule.stage_groups(subcodes, plan, prior.config.group))
    sent = total if stages is None else stages
    version = container.version_for(len(used))
    model = model_bytes(codec, version)
    head = Stream(model, height, width, subcodes, used, sent, b"", version=version)
    head.fields()  # refuses what the format has no room for, before the work
    images = list(codes.cpu().numpy())
    if payloads is None:
        payloads = code_stream.encode_images(prior, images, plan, sent)
    known = known_codes(codec, head, sent)
    return [
        container.pack(replace(head, payload=payload), np.where(known, image, 0).tobytes())
        for image, payload in zip(images, payloads, strict=True)
    ]


def compress_compact(
    codec: Tokenizer, codes: Codes, height: int, width: int, plan: Sequence[int],
    stages: int | None = None, payload: bytes | None = None,
) -> bytes:  # fmt: skip
    """Codes uint8 [h,w,m] of a resized image of height x width -> a ``.pqm`` file of version 2.

    ``payload`` is what ``range_coder.encode_shortest`` makes of them, where that is known already.

    Raises:
        NoPriorError: the weights hold no entropy model.
        ValueError: codes, an image or a plan that do not fit this model or the format.
    """
    prior = codec.needed_prior()
    rows, columns, subcodes = codes.shape
    used = schedule.filled(plan, subcodes, prior.config.group)
    if stages is None:
        stages = len(schedule.stage_groups(subcodes, used, prior.config.group))
    head = Stream(
        model_bytes(codec, COMPACT), height, width, subcodes, used, stages, b"",
        version=COMPACT, rows=rows, columns=columns,
    )  # fmt: skip
    coder = range_coder.encode_shortest
    if payload is None:
        (payload,) = code_stream.encode_images(prior, [codes], used, stages, coder)
    kept = np.where(known_codes(codec, head, stages), codes, 0)
    return container.pack(replace(head, payload=payload), kept.tobytes())


def decompress(
    codec: Tokenizer,
    data: bytes,
    *,
    partial: bool = False,
    fill: Fill | None = None,
    max_pixels: int = READ_PIXELS,
) -> Tensor:
    """A ``.pqm`` file -> uint8 [3,H,W].

    Args:
        codec: the model.
        data: the file.
        partial: accept a file that was cut off anywhere after its header, and show the stages
            that are whole.  Its checksum cannot be checked then: other damage goes unnoticed.
        fill: what stands where nothing was sent: "absent", "mean", or codes drawn by a rule.
            None: the mean in files of version 2, absent in others.
        max_pixels: the largest image that is wanted.

    Raises:
        NoPriorError: the weights hold no entropy model.
        BitstreamError: damaged, foreign, too large, or made with another model.
    """
    stream = parse(codec, data, max_pixels, whole=not partial)
    codes, stages = _decode_cut(codec, stream) if partial else (None, stream.stages)
    if codes is None:
        (codes,) = decode_alike(codec, [stream])
    return show(codec, codes, stream, stages, fill)


def _decode_cut(codec: Tokenizer, stream: Stream) -> tuple[Codes, int]:
    """The codes of a stream that may be cut off, and how many of its stages are whole.

    Raises:
        BitstreamError: not even the first one is.
    """
    shape = (*grid(codec, stream), stream.quality)
    payload = stream.payload
    if stream.version == COMPACT:
        try:
            return decode_alike(codec, [stream])[0], stream.stages
        except BitstreamError:  # cut off, and then only whole words are of use
            payload = range_coder.to_words(payload[: len(payload) // 4 * 4])
    codes, whole = code_stream.decode_prefix(
        codec.needed_prior(), payload, shape, stream.plan, stream.stages
    )
    if whole == 0:
        raise BitstreamError("cut off within the first stage: there is nothing to show")
    return codes, whole


def decompress_batch(
    codec: Tokenizer, files: Sequence[bytes], *, max_pixels: int = READ_PIXELS
) -> list[Tensor]:
    """``.pqm`` files of any sizes and qualities -> uint8 [3,H,W] each; all or none.

    Raises:
        NoPriorError: the weights hold no entropy model.
        BitstreamError: damaged, foreign, too large, or made with another model.
    """
    codec.needed_prior()
    streams = [parse(codec, data, max_pixels) for data in files]
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, stream in enumerate(streams):
        alike.setdefault((stream.plan, stream.stages, stream.version), []).append(i)
    images: list[Tensor | None] = [None] * len(files)
    for members in alike.values():
        decoded = decode_alike(codec, [streams[i] for i in members])
        for i, codes in zip(members, decoded, strict=True):
            images[i] = show(codec, codes, streams[i], streams[i].stages, None)
    return [image for image in images if image is not None]


def decompress_codes(codec: Tokenizer, data: bytes, *, max_pixels: int = READ_PIXELS) -> Codes:
    """A whole ``.pqm`` file -> its codes uint8 [h,w,m]; errors as :func:`decompress`."""
    return decode_alike(codec, [parse(codec, data, max_pixels)])[0]


def model_bytes(codec: Tokenizer, version: int) -> bytes:
    """What a file says of its model."""
    return bytes.fromhex(codec.fingerprint)[: container.MODEL_BYTES[version]]


def parse(codec: Tokenizer, data: bytes, max_pixels: int, *, whole: bool = True) -> Stream:
    """A file that this model can decode; errors as :func:`decompress`."""
    config = codec.needed_prior().config
    stream = container.parse(data)
    container.check(
        stream, codec.fingerprint, codec.grid(stream.height, stream.width),
        (config.subcodes, config.codewords, config.group), max_pixels, whole=whole,
    )  # fmt: skip
    return stream


def grid(codec: Tokenizer, stream: Stream) -> tuple[int, int]:
    """Rows and columns of the codes in a file."""
    if stream.version == COMPACT:
        return stream.rows, stream.columns
    return codec.grid(stream.height, stream.width)


def decode_alike(codec: Tokenizer, streams: Sequence[Stream]) -> list[Codes]:
    """The checked codes of streams of one plan."""
    shapes = [(*grid(codec, s), s.quality) for s in streams]
    payloads = [
        range_coder.to_words(s.payload) if s.version == COMPACT else s.payload for s in streams
    ]
    first = streams[0]
    try:
        decoded = code_stream.decode_images(
            codec.needed_prior(), payloads, shapes, first.plan, first.stages,
            to_end=first.version != COMPACT,  # whose payload may end anywhere in a word
        )  # fmt: skip
    except PayloadError as error:
        raise BitstreamError(str(error)) from error
    for stream, codes in zip(streams, decoded, strict=True):
        if stream.checksum(codes.tobytes()) != stream.crc32:
            raise BitstreamError("the checksum does not match: the file is damaged")
    return decoded


def known_codes(codec: Tokenizer, stream: Stream, stages: int) -> NDArray[np.bool_]:
    """[h, w, m]: which codes the first ``stages`` stages hold."""
    group = codec.needed_prior().config.group
    return schedule.stage_map(*grid(codec, stream), stream.quality, stream.plan, group) < stages


def show(codec: Tokenizer, codes: Codes, stream: Stream, stages: int, fill: Fill | None) -> Tensor:
    """Pixels [3,H,W] of codes of which the first ``stages`` stages are there."""
    size = coded = (stream.height, stream.width)
    if stream.version == COMPACT:
        coded = filling.coded_size(codec, *size, stream.rows, stream.columns)
        fill = fill or "mean"
    known = None
    if stages < stream.planned:
        known = torch.from_numpy(known_codes(codec, stream, stages))[None]
    batch = torch.from_numpy(codes)[None]
    return filling.resize(filling.picture(codec, batch, known, coded, fill or "absent"), *size)
