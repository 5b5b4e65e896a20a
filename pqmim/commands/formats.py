"""Pixels to and from image files, as the commands do it: what a file does not hold is said.

Only formats that give the picture back are written, each held by a test: exactly, or nearly (JPEG,
AVIF), which is said.  Others that Pillow writes make something else of it in silence: an .ico of
256 x 256 at most, a .gif of 256 colours.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from pqmim.commands import files
from pqmim.commands.files import STDIO, FileError
from pqmim.meter import tell
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture
from pqmim.pictures.read import read

EXACT = {
    ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".tga": "TGA",
    ".ppm": "PPM", ".pnm": "PPM", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".qoi": "QOI",
}  # fmt: skip
NEAR = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".avif": "AVIF"}
OPTIONS: dict[str, dict[str, object]] = {
    "WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}  # fmt: skip
OTHER_PICTURES = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"}
LOSSES = {
    "alpha": "transparency, laid over white", "icc": "its colour profile, converted to sRGB",
    "gain_map": "its gain map", "video": "its video",
}  # fmt: skip


def is_picture_name(name: str) -> bool:
    """Whether a name is one that picture files have."""
    suffix = Path(name).suffix.lower()
    return suffix in Image.registered_extensions() or suffix in OTHER_PICTURES


def read_pixels(name: str, *, quiet: bool = False) -> Tensor:
    """An image file, or stdin -> uint8 [3,H,W], upright, in sRGB, over white.

    Raises:
        FileError: it cannot be read, or not as an image.
    """
    try:
        picture = read(files.read(name))
    except BadPicture as error:
        raise FileError(f"{files.shown(name)}: cannot be read as an image: {error}") from error
    lost = [text for text in map(_loss, picture.dropped) if text]
    notes = [picture.note] * bool(picture.note) + [f"not held: {'; '.join(lost)}"] * bool(lost)
    for text in notes if not quiet else ():
        note(f"{files.shown(name)}: {text}")
    return picture.tensor()


def _loss(what: str) -> str:
    """An entry of ``Picture.dropped`` in words; nothing is lost by turning a picture upright."""
    kind, _, count = what.partition(":")
    if kind == "bits":
        return f"the last of {count} bits a sample"
    if kind == "frames":
        return f"all but the first of {count} pictures"
    if kind == "colour":
        return f"its colour space ({count}), taken as sRGB"
    return LOSSES.get(kind, "")


def note(text: str) -> None:
    """A line for a person, above a progress bar if there is one."""
    tell(f"note: {text}")


def format_of(name: str) -> str:
    """Pillow's name of the format that an output is to have; PNG on stdout.

    Raises:
        FileError: the suffix names no format that gives a picture back.
    """
    suffix = ".png" if name == STDIO else Path(name).suffix.lower()
    found = (EXACT | NEAR).get(suffix)
    if found is None:
        known = f"{', '.join(EXACT)}, or nearly as {', '.join(NEAR)}"
        if suffix in Image.registered_extensions():
            cause = f"{suffix} files do not hold any picture as it is"
        else:
            cause = f"no image format has the suffix {suffix!r}"
        raise FileError(f"{name}: {cause}; pictures are written as {known}")
    Image.init()
    if found not in Image.SAVE:
        raise FileError(f"{name}: this version of Pillow does not write {found}")
    return found


def image_file(name: str, pixels: Tensor, *, quiet: bool = False) -> bytes:
    """uint8 [3,H,W] -> a file of the format that the suffix of a name asks for.

    Raises:
        FileError: see :func:`format_of`; or the format cannot hold such a picture.
    """
    kind, buffer = format_of(name), io.BytesIO()
    try:
        image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
        image.save(buffer, kind, **OPTIONS.get(kind, {}))  # type: ignore[arg-type]
    except PILLOW_ERRORS as error:
        raise FileError(f"{name}: cannot be written as {kind}: {error}") from error
    if kind in NEAR.values() and not quiet:
        note(f"{name}: {kind} changes the picture a little; .png and .webp hold it as it is")
    return buffer.getvalue()
