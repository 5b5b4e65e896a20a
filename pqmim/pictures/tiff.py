"""TIFF: which page is the picture, and layouts that are refused by name because Pillow, which reads
the others, takes them wrongly or takes them as they come.

A page that says it is a thumbnail or a mask is not the picture.  JPEG in a TIFF is decoded by
libtiff, which goes on after damage without a word: its strips are decoded strictly beforehand, so
they cost double.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pqmim.pictures import ifd, jpeg
from pqmim.pictures.picture import BadPicture

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

SUBFILE, OLD_SUBFILE, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 258, 259, 262
FILL_ORDER, STRIPS, STRIP_SIZES, TILES, TILE_SIZES = 266, 273, 279, 324, 325
SAMPLES, PLANAR = 277, 284
INK_SET, SAMPLE_FORMAT, JPEG_TABLES = 332, 339, 347
THUMBNAIL, MASK, OLD_THUMBNAIL = 1, 4, 2
OLD_JPEG, JPEG = 6, 7
WHITE_IS_ZERO, CMYK = 0, 5
LAYOUTS = {  # photometric interpretation -> name, bits a sample
    0: ("white-is-zero grey", {1, 2, 4, 8, 16}),
    1: ("grey", {1, 2, 4, 8, 12, 16}),
    2: ("RGB", {8, 16}),
    3: ("palette", {1, 2, 4, 8}),
    5: ("CMYK", {8, 16}),
    6: ("YCbCr", {8}),
}


def pages(data: bytes) -> list[int]:
    """The numbers of the pages that are pictures of their own.

    Raises:
        BadPicture: there are pages, and all of them are thumbnails or masks.
    """
    found, number = [], -1
    for number, directory in enumerate(ifd.directories(data)):
        kind = ifd.number(directory, SUBFILE)
        thumbnail = kind & THUMBNAIL or ifd.number(directory, OLD_SUBFILE) == OLD_THUMBNAIL
        if not thumbnail and not kind & MASK:
            found.append(number)
    if number >= 0 and not found:
        raise BadPicture(
            "TIFF: every page says that it is a thumbnail or a mask; the picture, if there is one, "
            "is in a sub-directory, as in a camera's raw file: convert it"
        )
    return found or [0]


def check(image: TiffImageFile, data: bytes) -> int:
    """Bits a sample, of a layout that Pillow is known to take rightly.

    Raises:
        BadPicture: another one, by name.
    """
    tags = image.tag_v2
    photometric, planar = tags.get(PHOTOMETRIC, -1), tags.get(PLANAR, 1)
    bits = {*tags.get(BITS, (1,))}
    compression, samples = tags.get(COMPRESSION, 1), tags.get(SAMPLES, 1)
    if photometric not in LAYOUTS:
        raise BadPicture(f"TIFF of photometric interpretation {photometric} is not converted")
    name, depths = LAYOUTS[photometric]
    if {*tags.get(SAMPLE_FORMAT, (1,))} != {1}:
        raise BadPicture("TIFF with signed or floating-point samples: no defined white level")
    if len(bits) != 1 or not bits <= depths:
        named = "/".join(map(str, sorted(bits)))
        raise BadPicture(f"TIFF of {name} with {named} bits a sample is not converted")
    depth = int(bits.pop())
    if depth > 8 and ((planar == 2 and samples > 1) or tags.get(FILL_ORDER, 1) != 1):
        how = "in separate planes" if planar == 2 else "of reversed bit order"
        raise BadPicture(f"TIFF of {name} with {depth} bits {how} is not converted")
    if photometric == CMYK and tags.get(INK_SET, 1) != 1:
        raise BadPicture("TIFF of inks other than cyan, magenta, yellow and black")
    if compression == OLD_JPEG:
        raise BadPicture("TIFF with JPEG of the old style (6), which is not decoded strictly")
    if compression == JPEG:
        _check_jpeg(image, data)
    return depth


def _check_jpeg(image: TiffImageFile, data: bytes) -> None:
    """Every strip or tile is a JPEG whose tables may stand apart."""
    tags = image.tag_v2
    places, sizes = (TILES, TILE_SIZES) if TILES in tags else (STRIPS, STRIP_SIZES)
    tables = bytes(tags.get(JPEG_TABLES, b""))
    head = tables[:-2] if tables.endswith(b"\xff\xd9") else b"\xff\xd8"
    for at, size in zip(tags.get(places, ()), tags.get(sizes, ()), strict=False):
        try:
            jpeg.strict(head + data[at + 2 : at + size], "RGB")
        except ValueError as error:
            raise BadPicture(f"TIFF: a strip or tile of JPEG: {error}") from error
