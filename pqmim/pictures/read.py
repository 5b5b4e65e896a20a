"""The one way to read a picture: the job, the command line, eval and training all come here.

JPEG goes to jpeg.py, the rest to raster.py; what comes back is turned upright.  EXIF orientation
5 to 8 is stored transposed.  Thread-safe, and no setting of Pillow's is touched.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

from pqmim.pictures import jpeg, raster, segments
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture, Decoded, Picture, Rules

# Peak memory of decode and of padding the picture, measured at 16 megapixels: JPEG 12.0 to 13.0,
# other formats 15.6 (PNG) to 25.2 (WebP), CMYK JPEG 17.7.
BYTES_A_PIXEL, JPEG_BYTES_A_PIXEL = 26, 14
DEFAULT = Rules()


def read(data: bytes, rules: Rules = DEFAULT) -> Picture:
    """Bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF, JPEG 2000, AVIF or PPM file -> Picture.

    Raises:
        BadPicture: its ``status`` says whether the size or the file is at fault.
    """
    if (size := segments.plain(data)) is not None:
        picture = jpeg.of_plain(data, *size, rules)
        if picture is not None:
            return picture
    if not data:
        raise BadPicture("empty file")
    return _finished((jpeg if is_jpeg(data) else raster).decode(data, rules))


def _finished(found: Decoded) -> Picture:
    """Turned upright."""
    if found.orientation == 1:
        note = "; ".join(found.notes) if found.notes else None
        return Picture(found.pixels.transpose(2, 0, 1), found.dropped, note)
    pixels = _upright(found.pixels, found.orientation)
    dropped = (*found.dropped, "rotated")
    return Picture(pixels.transpose(2, 0, 1), dropped, "; ".join(found.notes) or None)


def opened(image: Image.Image, rules: Rules = DEFAULT) -> Picture:
    """An image that Pillow has opened or made, taken as :func:`read` takes its file.

    The file itself is read, and Pillow's pixels are not asked for, if it is there: opened, of a
    format of ours, at its first frame, and not loaded, turned or cut since.  Of what is loaded,
    some of Pillow's mistakes (pqmim/pictures/tiff.py) cannot be told any more.

    Raises:
        BadPicture: damaged, or samples without a white level.
    """
    data = _file_of(image)
    return _finished(raster.of_pillow(image, rules)) if data is None else read(data, rules)


def _file_of(image: Image.Image) -> bytes | None:
    """The bytes of an image that is still to be loaded; None if they are not for us."""
    file = getattr(image, "fp", None)
    waiting = isinstance(image, ImageFile.ImageFile) and image.tile and image.tell() == 0
    if file is None or not waiting or image.format not in (*raster.FORMATS, "JPEG", "MPO"):
        return None
    at = file.tell()
    file.seek(0)
    data = bytes(file.read())
    file.seek(at)
    try:
        sides = sorted(probe(data)[:2])
    except BadPicture:
        return data  # reading it says why not
    except PILLOW_ERRORS:
        return None
    return data if sides == sorted(image.size) else None  # else a draft, of fewer pixels


def is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def probe(data: bytes) -> tuple[int, int, int]:
    """Width, height, and bytes of memory that decoding takes a pixel, from the header alone.

    Raises:
        ValueError, or another of PILLOW_ERRORS: there is no such header.
    """
    if is_jpeg(data):
        header = jpeg.read_header(data)
        cmyk = header.components == 4
        return header.width, header.height, BYTES_A_PIXEL if cmyk else JPEG_BYTES_A_PIXEL
    return *raster.size(data), BYTES_A_PIXEL


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation 1-8 of [H, W, 3]: 5-8 are stored transposed, the rest is mirroring."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
