"""A second opinion: our reader against libvips and Pillow on files of every format and layout.

Sources are verified with the decoder that encoded them, so both make the same mistake; these do
not.  Files are drawn at random from all combinations of format, depth, layout, transparency,
profile and orientation.  Each difference that is more than rounding must be one of EXPLAINED, which
says who is right and why; and where the samples are known, ours must be what they show.

    pytest -m chaos tests/pqmim/test_pictures_differential.py     2,000 files; 300 in the short form
"""

from __future__ import annotations

import collections
import io
import re
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageOps

from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read
from tests.picture_files import (
    GREY,
    GREY_ALPHA,
    P3,
    PALETTE,
    RGB,
    RGB_ALPHA,
    bmp32,
    icc,
    over_white,
    png,
    ramp,
    shown,
    tiff,
    tiff_page,
)

pyvips = pytest.importorskip("pyvips")

SHORT, LONG = 300, 2000
ROUNDING = 3  # levels; of 16 bits to 8, of profiles and of transparency
EXPLAINED = (  # whose pixels differ from ours, kinds of file, why
    ("Pillow", "PNG|WebP .*alpha|TIFF RGB .*alpha|BMP 32|GIF transparent", "convert('RGB') drops "
     "transparency, where the colour below it shows; ours is over white"),
    ("Pillow", "PNG grey 16|TIFF (grey|white-is-zero) 16", "convert('RGB') clips 16 bits at 255; "
     "ours is scaled"),
    ("Pillow", "TIFF white-is-zero 16", "Pillow shows the negative (Pillow PR 6642)"),
    ("Pillow", "PNG grey [24] one level transparent", "Pillow compares the level with scaled "
     "samples (#9281)"),
    ("Pillow", "profile of", "convert('RGB') ignores profiles"),
    ("libvips", "(JPEG|TIFF) CMYK", "libvips converts CMYK without a profile by one of its own, "
     "ours by complement, as Pillow and browsers do"),
    ("libvips", "TIFF RGB .*spare", "libvips takes a further sample of no declared meaning for "
     "alpha, ours leaves it out, as TIFF 6.0 says"),
    ("libvips", "TIFF (grey|white-is-zero) [124] planes", "libvips reads separate planes as 8-bit "
     "samples; one plane is the picture itself"),
    ("libvips", "AVIF 4:2:0", "libheif and libavif interpolate chroma differently; where there is "
     "no chroma to interpolate (4:4:4) they agree"),
    ("libvips", "(BMP|JPEG2000|PPM).*: refused", "pyvips-binary is built without these"),
    ("ours", "TIFF .* 16 .*planes.*: refused by name", "Pillow takes the planes for 8-bit ones"),
    ("ours", "TIFF RGB 8 spare planes uncompressed: refused by name", "the same"),
    ("ours", "TIFF grey [124] planes uncompressed: refused by name", "the same"),
    ("ours", "TIFF white-is-zero [1248] planes uncompressed: refused by name", "the same"),
    ("ours", "TIFF white-is-zero 16 .*big-endian: refused by name", "Pillow has no such mode"),
)  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file, what kind of difference it may show, and the right pixels where they are known."""

    data: bytes
    kind: str
    truth: np.ndarray | None = None  # [H, W, 3], upright


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] upright, as the EXIF standard has it: where row 0 and column 0 of the file are."""
    row, column = [("top", "left"), ("top", "right"), ("bottom", "right"), ("bottom", "left"),
                   ("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom"),
                   ][orientation - 1]  # fmt: skip
    if row in ("left", "right"):
        values, row, column = values.swapaxes(0, 1), column, row
    values = values[::-1] if row == "bottom" else values
    return values[:, ::-1] if column == "right" else values


def exif(orientation: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + b"\0" * 4


def three(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., :1], 3, axis=2) if values.shape[2] < 3 else values[..., :3]


def make_png(rng: np.random.Generator) -> File:
    colour = int(rng.choice([GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA]))
    depths = {GREY: [1, 2, 4, 8, 16], PALETTE: [1, 2, 4, 8]}.get(colour, [8, 16])
    bits, turn = int(rng.choice(depths)), int(rng.integers(1, 9))
    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}[colour]
    samples = ramp(*size(rng), channels, bits, int(rng.integers(1 << 30)))
    before, clear = [(b"eXIf", exif(turn))], bool(rng.integers(2))
    kind = {GREY: "grey", RGB: "RGB", PALETTE: "palette"}.get(colour, "alpha") + f" {bits}"
    if colour == PALETTE:
        colours = rng.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        alphas = rng.integers(0, 256, 1 << bits, dtype=np.uint8)
        before.append((b"PLTE", colours.tobytes()))
        truth = colours[samples[..., 0]]
        if clear:
            before.append((b"tRNS", alphas.tobytes()))
            truth = over_white(truth, alphas[samples[..., 0]])
    else:
        values = shown(samples, bits)
        truth = three(values)
        truth = over_white(truth, values[..., -1]) if channels in (2, 4) else truth
        if clear and channels in (1, 3) and (colour, bits) != (RGB, 16):
            level = samples[0, 0]
            before.append((b"tRNS", struct.pack(f">{channels}H", *level)))
            truth = np.where((samples == level).all(2, keepdims=True), 255, truth)
            kind += " one level transparent"
    return File(png(samples, bits, colour, before), f"PNG {kind}", turned(truth, turn))


def make_png_with_profile(rng: np.random.Generator) -> File:
    grey = bool(rng.integers(2))
    values = ramp(*size(rng), 1 if grey else int(rng.choice([3, 4])), 8, int(rng.integers(1 << 30)))
    image = Image.fromarray((values[..., 0] if grey else values).astype(np.uint8))
    gamma = float(rng.choice([1.8, 2.2]))
    profile = icc(b"GRAY", gamma=gamma) if grey else icc(b"RGB ", P3, gamma)
    return File(saved(image, "PNG", icc_profile=profile), f"profile of {'grey' if grey else 'RGB'}")


def make_tiff(rng: np.random.Generator) -> File:
    photometric = int(rng.choice([0, 1, 2, 5]))
    bits = int(rng.choice([1, 2, 4, 8, 16] if photometric < 2 else [8, 16]))
    extra = int(rng.choice([-1, 0, 2])) if photometric == 2 else -1
    channels = {0: 1, 1: 1, 2: 3, 5: 4}[photometric] + (extra >= 0)
    order, planar = str(rng.choice(["<", ">"])), int(rng.integers(1, 3))
    compress, turn = bool(rng.integers(2)), int(rng.integers(1, 9))
    samples = ramp(*size(rng), channels, bits, int(rng.integers(1 << 30)))
    values = shown(samples, bits)
    truth = three(values)
    if photometric == 5:
        truth = (255 - values[..., :3].astype(int)) * (255 - values[..., 3:].astype(int)) // 255
    truth = over_white(truth, values[..., 3]) if extra == 2 else truth
    stored = (1 << bits) - 1 - samples if photometric == 0 else samples
    tags = {274: (3, [turn]), **({338: (3, [extra])} if extra >= 0 else {})}
    page = tiff_page(stored, bits, photometric, order=order, planar=planar, compress=compress,
                     tags=tags)  # fmt: skip
    name = {0: "white-is-zero", 1: "grey", 2: "RGB", 5: "CMYK"}[photometric]
    layout = f" planes{'' if compress else ' uncompressed'}" if planar == 2 else ""
    spare = {0: " spare", 2: " alpha"}.get(extra, "")
    end = " big-endian" if order == ">" and bits == 16 else ""
    kind = f"TIFF {name} {bits}{spare}{layout}{end}"
    return File(tiff(page, order=order), kind, turned(truth, turn))


def make_jpeg(rng: np.random.Generator) -> File:
    mode, turn = str(rng.choice(["L", "RGB", "CMYK"])), int(rng.integers(1, 9))
    values = ramp(*size(rng), {"L": 1, "RGB": 3, "CMYK": 4}[mode], 8, int(rng.integers(1 << 30)))
    image = Image.fromarray((values[..., 0] if mode == "L" else values).astype(np.uint8), mode)
    options = {"quality": int(rng.integers(30, 101)), "progressive": bool(rng.integers(2)),
               "subsampling": int(rng.integers(3)), "exif": b"Exif\0\0" + exif(turn)}  # fmt: skip
    return File(saved(image, "JPEG", **options), f"JPEG {mode}")


def make_webp(rng: np.random.Generator) -> File:
    alpha, turn = bool(rng.integers(2)), int(rng.integers(1, 9))
    values = ramp(*size(rng), 4 if alpha else 3, 8, int(rng.integers(1 << 30))).astype(np.uint8)
    lossless = bool(rng.integers(2))
    data = saved(Image.fromarray(values), "WEBP", lossless=lossless, exact=True, exif=exif(turn))
    truth = over_white(values[..., :3], values[..., 3]) if alpha else values
    kind = f"WebP{' lossless' if lossless else ''}{' alpha' if alpha else ''}"
    return File(data, kind, turned(truth, turn) if lossless else None)


def make_gif(rng: np.random.Generator) -> File:
    frames = [
        Image.fromarray(ramp(40, 50, 3, 8, int(rng.integers(1 << 30))).astype(np.uint8)).quantize(
            32
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    clear = {"transparency": int(rng.integers(32))} if rng.integers(2) else {}
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], **clear)
    truth = np.array(frames[0].convert("RGB"))
    if clear:
        truth[np.array(frames[0]) == clear["transparency"]] = 255
    return File(data, f"GIF{' transparent' if clear else ''}", None if clear else truth)


def make_other(rng: np.random.Generator) -> File:
    format = str(rng.choice(["BMP", "BMP 32", "PPM", "JPEG2000", "AVIF"]))
    channels = int(rng.choice([1, 3]))
    values = ramp(*size(rng), channels, 8, int(rng.integers(1 << 30))).astype(np.uint8)
    if format == "BMP 32":
        values = ramp(*size(rng), 4, 8, int(rng.integers(1 << 30))).astype(np.uint8)
        empty = bool(rng.integers(2))
        if empty:
            values[..., 3] = 0
        truth = values[..., :3] if empty else over_white(values[..., :3], values[..., 3])
        return File(bmp32(values), f"BMP 32{' alpha 0' if empty else ' alpha'}", truth)
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    if format == "AVIF":
        chroma = str(rng.choice(["4:2:0", "4:4:4"]))
        return File(saved(image, format, subsampling=chroma), f"AVIF {chroma}")
    return File(saved(image, format), format, three(values))


MAKERS = (make_png, make_png, make_png_with_profile, make_tiff, make_tiff, make_jpeg, make_webp,
          make_gif, make_other)  # fmt: skip


def size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(17, 70, 2)
    return int(height), int(width)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def by_vips(data: bytes) -> np.ndarray:
    image = pyvips.Image.new_from_buffer(data, "", fail_on="error").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="perceptual")
    else:
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    return np.asarray(image.cast("uchar").numpy()).reshape(image.height, image.width, 3)


def by_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def compare(count: int) -> collections.Counter:
    """Differences by who and kind; every other is an assertion that fails."""
    seen: collections.Counter = collections.Counter()
    for number in range(count):
        rng = np.random.default_rng(number)
        file = MAKERS[number % len(MAKERS)](rng)
        try:
            ours = read(file.data).pixels.transpose(1, 2, 0).astype(int)
        except BadPicture as error:
            assert "is not converted" in str(error), (number, error)
            seen["ours", f"{file.kind}: refused by name"] += 1
            continue
        seen["ours", "read"] += 1
        if file.truth is not None:
            assert ours.shape == file.truth.shape, (number, file.kind)
            assert np.abs(ours - file.truth).max() <= ROUNDING, (number, file.kind)
            seen["ours", "as the samples show"] += 1
        for who, other in (("libvips", by_vips), ("Pillow", by_pillow)):
            try:
                theirs = other(file.data)
            except (pyvips.Error, OSError, ValueError):
                seen[who, f"{file.kind}: refused"] += 1
                continue
            if theirs.shape != ours.shape or np.abs(ours - theirs).max() > ROUNDING:
                seen[who, file.kind] += 1
            else:
                seen[who, "same"] += 1
    return seen


def reasons(key: tuple[str, str]) -> list[str]:
    """The patterns that explain a difference."""
    who, kind = key
    return [f"{w} {p}" for w, p, _ in EXPLAINED if w == who and re.match(p, kind)]


def test_every_difference_is_explained():
    check(compare(SHORT))


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_every_difference_is_explained_in_2000_files():
    seen = check(compare(LONG))
    assert seen["ours", "read"] > 0.9 * LONG and seen["ours", "as the samples show"] > 1000
    used = {reason for key in seen for reason in reasons(key)}
    assert used == {f"{who} {pattern}" for who, pattern, _ in EXPLAINED}


def check(seen: collections.Counter) -> collections.Counter:
    """Fail for every kind of difference that is not explained."""
    agreed = ("same", "read", "as the samples show")
    assert not [(key, n) for key, n in seen.items() if key[1] not in agreed and not reasons(key)]
    return seen
