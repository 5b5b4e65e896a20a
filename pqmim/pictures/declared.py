"""Colour that a file declares by numbers, as an ICC profile: one way to sRGB for both.

PNG has gAMA and cHRM; PNG, AVIF and video have the code points of ITU-T H.273 (cICP, nclx).  A
display ignores them at the price of wrong colours as it does a profile.  Transfer functions for
other ranges of light (PQ, HLG) have no sRGB without a choice of brightness: they are named.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import numpy as np

Pair = tuple[float, float]
D65, DCI, C = (0.3127, 0.3290), (0.314, 0.351), (0.310, 0.316)
D50 = np.array([0.9642, 1.0, 0.8249])  # white of a profile's own space, XYZ
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


class Primaries(NamedTuple):
    """Chromaticities x, y."""

    white: Pair
    red: Pair
    green: Pair
    blue: Pair


SRGB = Primaries(D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_SMPTE = Primaries(D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
PRIMARIES = {  # H.273, table 2
    1: SRGB, 2: SRGB,  # 2: not said
    4: Primaries(C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: Primaries(D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _SMPTE, 7: _SMPTE,
    8: Primaries(C, (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: Primaries(D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Primaries(DCI, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Primaries(D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Primaries(D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}  # fmt: skip
# Table 3.  The curves of television (1, 6, 14, 15) are for light, not for display: shown as sRGB.
GAMMAS = {**dict.fromkeys((1, 2, 6, 13, 14, 15), 0.0), 4: 2.2, 5: 2.8, 8: 1.0}
OTHER_LIGHT = {16: "pq", 18: "hlg"}
PLAIN_GAMMA = (0.4325, 0.4775)  # of gAMA: within 5 % of 1 / 2.2, which is written for sRGB


def by_code_points(primaries: int, transfer: int) -> tuple[bytes, str]:
    """Of H.273 -> a profile, none for sRGB; or what cannot be converted."""
    if transfer in OTHER_LIGHT:
        return b"", OTHER_LIGHT[transfer]
    if primaries not in PRIMARIES or transfer not in GAMMAS:
        return b"", f"cicp-{primaries}-{transfer}"
    return profile(PRIMARIES[primaries], GAMMAS[transfer]), ""


def by_png(gama: bytes, chrm: bytes) -> tuple[bytes, str]:
    """Of the bodies of gAMA and cHRM -> a profile, none for sRGB; or what cannot be converted."""
    stored = struct.unpack(">I", gama)[0] / 100_000 if len(gama) == 4 else 0.0
    gamma = 0.0 if stored == 0 or PLAIN_GAMMA[0] < stored < PLAIN_GAMMA[1] else 1 / stored
    points = SRGB
    if len(chrm) == 32:
        values = [value / 100_000 for value in struct.unpack(">8I", chrm)]
        points = Primaries(*zip(values[::2], values[1::2], strict=True))
    try:
        return profile(points, gamma), ""
    except (ZeroDivisionError, np.linalg.LinAlgError, struct.error, OverflowError, ValueError):
        return b"", "chrm"


@functools.lru_cache(maxsize=64)
def profile(points: Primaries, gamma: float) -> bytes:
    """A display profile, version 4: a matrix and one curve; gamma 0 is sRGB's own.

    Empty for sRGB itself, or what is written for it with few digits.

    Raises:
        one of the errors that by_png takes: primaries that span no colours.
    """
    near = np.abs(np.array(points) - np.array(SRGB)).max() < 0.002
    if near and gamma == 0:
        return b""
    curve = b"para" + b"\0" * 4
    if gamma == 0:
        curve += struct.pack(">HH", 3, 0) + _fixed(
            2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
        )
    else:
        curve += struct.pack(">HH", 0, 0) + _fixed(gamma)
    text = struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 28, 28)
    name = b"mluc" + b"\0" * 4 + text + "declared space".encode("utf-16-be")
    tags = [(b"desc", name), (b"cprt", name), (b"wtpt", _xyz(D50))]
    for letter, column in zip(b"rgb", _matrix(points).T, strict=True):
        tags += [(bytes([letter]) + b"XYZ", _xyz(column)), (bytes([letter]) + b"TRC", curve)]
    return _assembled(tags)


def _assembled(tags: list[tuple[bytes, bytes]]) -> bytes:
    at, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags:
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    head = struct.pack(">I4sI", at + len(bodies), b"\0" * 4, 0x04300000) + b"mntrRGB XYZ "
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def _matrix(points: Primaries) -> np.ndarray:
    """[3, 3]: linear light of the primaries to XYZ of D50 (Bradford)."""
    white, *colours = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in points)
    columns = np.stack(colours, axis=1)
    to_xyz = columns * np.linalg.solve(columns, white)
    cones = np.diag(BRADFORD @ D50 / (BRADFORD @ white))
    return np.asarray(np.linalg.solve(BRADFORD, cones @ BRADFORD) @ to_xyz)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + b"\0" * 4 + _fixed(*values)
