"""Image files written by hand, sample by sample, in layouts that no writer at hand makes.

Used as ``from tests.picture_files import png, tiff, icc``.  The pixels that a right reader gives
are known from the samples (``shown``), not from another decoder.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(samples: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows of [H, W, C] samples, each padded to whole bytes."""
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        return [row.astype(order + "u2").tobytes() for row in flat]
    shifts = np.arange(bits - 1, -1, -1)
    ones = (flat[..., None] >> shifts & 1).reshape(len(flat), -1).astype(np.uint8)
    return [row.tobytes() for row in np.packbits(ones, axis=1)]


def png(
    samples: np.ndarray, bits: int, colour: int, before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:  # fmt: skip
    """A PNG of [H, W, C] samples; ``before`` and ``after`` are chunks around the pixels."""
    height, width = samples.shape[:2]
    body = zlib.compress(b"".join(b"\0" + row for row in packed(samples, bits)))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(*c) for c in before), chunk(b"IDAT", body)]
    parts += [*(chunk(*c) for c in after), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_page(
    samples: np.ndarray, bits: int, photometric: int, *, order: str = "<", planar: int = 1,
    compress: bool = False, tags: dict[int, tuple[int, list[int]]] | None = None,
) -> tuple[dict[int, tuple[int, list[int]]], list[bytes]]:  # fmt: skip
    """The tags, without the place of the strips, and the strips of one page."""
    height, width, channels = samples.shape
    planes = [samples] if planar == 1 else [samples[..., c : c + 1] for c in range(channels)]
    strips = [b"".join(packed(plane, bits, order)) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if compress else strips
    found = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels),
        259: (3, [8 if compress else 1]), 262: (3, [photometric]), 277: (3, [channels]),
        278: (4, [height]), 279: (4, [len(strip) for strip in strips]), 284: (3, [planar]),
    }  # fmt: skip
    return {**found, **(tags or {})}, strips


def tiff(*pages: tuple[dict[int, tuple[int, list[int]]], list[bytes]], order: str = "<") -> bytes:
    """A TIFF of pages from ``tiff_page``; tags are (3 for 16-bit, 4 for 32-bit; values)."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for tags, strips in pages:
        places = []
        for strip in strips:
            places.append(len(out))
            out += strip + b"\0" * (len(strip) % 2)
        entries = b""
        for tag, (kind, values) in sorted({**tags, 273: (4, places)}.items()):
            body = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(body) > 4:
                place, body = len(out), body + b"\0" * (len(body) % 2)
                out += body
                body = struct.pack(order + "I", place)
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
        out[link : link + 4] = struct.pack(order + "I", len(out))
        link = len(out) + 2 + len(entries)
        out += struct.pack(order + "H", len(entries) // 12) + entries + b"\0" * 4
    return bytes(out)


def bmp32(values: np.ndarray) -> bytes:
    """A BMP of [H, W, 4] RGBA with a mask for alpha (BITMAPV4HEADER), bottom row first."""
    height, width = values.shape[:2]
    body = np.ascontiguousarray(values[::-1][..., [2, 1, 0, 3]]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 0, 0, 0, 0)
    head += masks + b"BGRs" + b"\0" * 48
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body
    )


def icc(space: bytes, colorants: Sequence[Sequence[float]] = (), gamma: float = 2.2) -> bytes:
    """A version 2 profile: ``RGB `` with a matrix, or ``GRAY``; one gamma for all channels."""
    curve = b"curv" + b"\0" * 4 + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"

    def xyz(values: Sequence[float]) -> bytes:
        return b"XYZ " + b"\0" * 4 + struct.pack(">3i", *(round(v * 65536) for v in values))

    tags = [(b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    if space == b"GRAY":
        tags += [(b"kTRC", curve)]
    for name, column in zip(b"rgb", zip(*colorants, strict=True), strict=False):
        tags += [(bytes([name]) + b"XYZ", xyz(column)), (bytes([name]) + b"TRC", curve)]
    text = b"desc" + b"\0" * 4 + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags += [(b"desc", text + b"\0" * (-len(text) % 4)), (b"cprt", b"text" + b"\0" * 4 + b"none")]
    at, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags:
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    size = at + len(bodies)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def shown(samples: np.ndarray, bits: int) -> np.ndarray:
    """[H, W, C] samples of that depth as 8 bits, to the nearest."""
    white = (1 << bits) - 1
    return ((samples.astype(np.int64) * 510 + white) // (2 * white)).astype(np.uint8)


def over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 over white, to the nearest; alpha [H, W] of 255."""
    share = alpha.astype(float)[..., None] / 255
    return np.rint(values * share + 255 * (1 - share)).astype(np.uint8)


def ramp(height: int, width: int, channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """[H, W, C] samples that span the depth, smooth but for a little noise."""
    rng, white = np.random.default_rng(seed), (1 << bits) - 1
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (c + 1) / width + y * (3 - c % 3) / height) % 1.0 for c in range(channels)]
    noisy = np.stack(planes, axis=2) * white + rng.normal(0, white / 50, (height, width, channels))
    return np.clip(np.rint(noisy), 0, white).astype(np.int64)
