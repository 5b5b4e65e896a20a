"""TIFF: which page is the picture, and layouts that are refused by name because Pillow, which reads
the others, takes them wrongly or takes them as they come.

A page that says it is a thumbnail or a mask is not the picture.  JPEG in a TIFF is decoded by
libtiff, which goes on after damage without a word: its strips are decoded strictly beforehand, so
they cost double.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pqmim.pictures import ifd, jpeg
from pqmim.pictures.picture import BadPicture, Rules, check_size, doubt

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION = 254, 255, 256, 257, 258, 259
PHOTOMETRIC, FILL_ORDER, STRIPS, SAMPLES, ROWS, STRIP_SIZES = 262, 266, 273, 277, 278, 279
PLANAR, COLOURS, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 284, 320, 322, 323, 324, 325
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, CHROMA = 332, 338, 339, 347, 530
THUMBNAIL, MASK, OLD_THUMBNAIL = 1, 4, 2
RAW, OLD_JPEG, JPEG = 1, 6, 7
# LZW, Deflate in two ways, PackBits, LZMA, Zstandard; wheels of Pillow have no WebP or JPEG 2000
READ = {RAW, 2, 3, 4, 5, OLD_JPEG, JPEG, 8, 32946, 32773, 34925, 50000}
FAX = {2, 3, 4}  # compressions of libtiff that go on after damage
WHITE_IS_ZERO, PALETTE, CMYK, YCBCR = 0, 3, 5, 6
LAYOUTS = {  # photometric interpretation -> name, bits a sample
    0: ("white-is-zero grey", {1, 2, 4, 8, 16}),
    1: ("grey", {1, 2, 4, 8, 12, 16}),
    2: ("RGB", {8, 16}),
    3: ("palette", {1, 2, 4, 8}),
    5: ("CMYK", {8, 16}),
    6: ("YCbCr", {8}),
}


DEFAULT = Rules()


@dataclass(frozen=True)
class Layout:
    """The page that is the picture."""

    page: int
    pages: int  # pictures in the file
    width: int  # as stored
    height: int
    name: str
    bits: int  # a sample
    inverted: bool  # 0 is white
    orientation: int  # EXIF
    tags: ifd.Directory
    notes: tuple[str, ...] = ()  # what may be wrong with its pixels


def read(data: bytes, rules: Rules = DEFAULT) -> Layout:
    """Find the picture, and make sure that Pillow takes it rightly.

    Raises:
        BadPicture: there is none, or its layout is one that is refused, by name.
    """
    found = [(n, page) for n, page in enumerate(ifd.directories(data))]
    pictures = [(n, page) for n, page in found if not _is_small(page)]
    if not found:
        raise BadPicture("TIFF: a damaged directory of tags")
    if not pictures:
        raise BadPicture(
            "TIFF: every page says that it is a thumbnail or a mask; the picture, if there is one, "
            "is in a sub-directory, as in a camera's raw file: convert it"
        )
    number, page = pictures[0]
    bits = _check(page)
    notes = tuple(doubt(f"TIFF: {said}", rules) for said in _doubts(page, bits))
    photometric = ifd.number(page, PHOTOMETRIC)
    return Layout(
        number, len(pictures), ifd.number(page, WIDTH), ifd.number(page, HEIGHT),
        f"{LAYOUTS[photometric][0]} with {bits} bits a sample", bits,
        photometric == WHITE_IS_ZERO, ifd.number(page, ifd.ORIENTATION, 1), page,
        notes,
    )  # fmt: skip


def _is_small(page: ifd.Directory) -> bool:
    kind = ifd.number(page, SUBFILE)
    return bool(kind & (THUMBNAIL | MASK)) or ifd.number(page, OLD_SUBFILE) == OLD_THUMBNAIL


def _check(page: ifd.Directory) -> int:
    """Bits a sample, of a layout that is known to be taken rightly."""
    photometric, compression = ifd.number(page, PHOTOMETRIC, -1), ifd.number(page, COMPRESSION, 1)
    depths = {*ifd.numbers(page, BITS)} or {1}
    if photometric not in LAYOUTS:
        raise BadPicture(f"TIFF of photometric interpretation {photometric} is not converted")
    name, known = LAYOUTS[photometric]
    if {*ifd.numbers(page, SAMPLE_FORMAT)} - {1}:
        raise BadPicture("TIFF with signed or floating-point samples: no defined white level")
    if len(depths) != 1 or not depths <= known:
        named = "/".join(map(str, sorted(depths)))
        raise BadPicture(f"TIFF of {name} with {named} bits a sample is not converted")
    bits = depths.pop()
    if ifd.number(page, PLANAR, 1) == 2:
        _check_planes(page, name, bits)
    if bits > 8 and ifd.number(page, FILL_ORDER, 1) != 1:
        raise BadPicture(f"TIFF of {name} with {bits} bits of reversed order is not converted")
    if photometric == CMYK and ifd.number(page, INK_SET, 1) != 1:
        raise BadPicture("TIFF of inks other than cyan, magenta, yellow and black")
    if compression not in READ:
        raise BadPicture(f"TIFF of compression {compression} is not read")
    if compression == OLD_JPEG:
        raise BadPicture("TIFF with JPEG of the old style (6), which is not decoded strictly")
    _check_pieces(page, photometric, compression)
    return bits


def _check_pieces(page: ifd.Directory, photometric: int, compression: int) -> None:
    """Raises:
    BadPicture: strips that are not there, or that Pillow takes for something else.
    """
    if photometric == PALETTE and max(ifd.numbers(page, COLOURS), default=0) < 256:
        raise BadPicture("TIFF of a palette whose colours have 8 bits instead of 16")
    if photometric == YCBCR and compression == RAW and {*ifd.numbers(page, CHROMA)} != {1}:
        raise BadPicture(
            "TIFF of YCbCr with fewer samples of colour, uncompressed, is not converted"
        )
    needed = _pieces(page)
    have = len(ifd.numbers(page, TILES if TILES in page else STRIPS))
    if have < needed:
        raise BadPicture(f"TIFF: {have} strips or tiles of {needed}")


def _pieces(page: ifd.Directory) -> int:
    """Strips or tiles that the picture takes."""
    width, height = ifd.number(page, WIDTH), ifd.number(page, HEIGHT)
    planes = ifd.number(page, SAMPLES, 1) if ifd.number(page, PLANAR, 1) == 2 else 1
    if TILES in page:
        across, down = ifd.number(page, TILE_WIDTH), ifd.number(page, TILE_HEIGHT)
        return planes * -(-width // max(1, across)) * -(-height // max(1, down))
    return planes * -(-height // (_rows(page) or 1))


def _rows(page: ifd.Directory) -> int:
    """Of a strip."""
    height = ifd.number(page, HEIGHT)
    return min(ifd.number(page, ROWS, height), height)


def _doubts(page: ifd.Directory, bits: int) -> list[str]:
    """What may be wrong with the pixels, and would not be said by the decoder."""
    compression, sizes = ifd.number(page, COMPRESSION, 1), ifd.numbers(page, STRIP_SIZES)
    if compression in FAX:
        return ["fax, whose decoder's warnings are not heard"]
    if compression != RAW or TILES in page or not sizes:
        return []
    samples = 1 if ifd.number(page, PLANAR, 1) == 2 else ifd.number(page, SAMPLES, 1)
    row = (ifd.number(page, WIDTH) * samples * bits + 7) // 8
    strips = -(-ifd.number(page, HEIGHT) // (_rows(page) or 1))
    rest = ifd.number(page, HEIGHT) - (strips - 1) * _rows(page)
    wanted = [row * (rest if n % strips == strips - 1 else _rows(page)) for n in range(len(sizes))]
    short = sum(size < need for size, need in zip(sizes, wanted, strict=True))
    return [f"{short} of {len(sizes)} strips have fewer bytes than their rows"] if short else []


def _check_planes(page: ifd.Directory, name: str, bits: int) -> None:
    """Samples in separate planes: libtiff puts those of 8 bits together; uncompressed ones are read
    by the first letters of Pillow's mode, which is right for these and wrong for all others."""
    if ifd.number(page, COMPRESSION, 1) != RAW:
        right = bits <= 8 or ifd.number(page, SAMPLES, 1) == 1
    else:
        extra = ifd.numbers(page, EXTRA_SAMPLES) in ((), (2,))
        first = ifd.number(page, FILL_ORDER, 1) == 1
        right = bits == 8 and extra and first and "white-is-zero" not in name
    if not right:
        raise BadPicture(f"TIFF of {name} with {bits} bits in separate planes is not converted")


def check_jpeg(layout: Layout, data: bytes, rules: Rules) -> None:
    """Decode every strip or tile of JPEG, whose tables may stand apart, strictly.

    Raises:
        BadPicture: one is damaged.
    """
    page = layout.tags
    if ifd.number(page, COMPRESSION, 1) != JPEG:
        return
    places, sizes = (TILES, TILE_SIZES) if TILES in page else (STRIPS, STRIP_SIZES)
    tables = page.get(JPEG_TABLES, ("", b""))[1]
    head = tables[:-2] if tables.endswith(b"\xff\xd9") else b"\xff\xd8"
    for at, size in zip(ifd.numbers(page, places), ifd.numbers(page, sizes), strict=False):
        strip = head + data[at + 2 : at + size]
        header = jpeg.read_header(strip)
        check_size(header.width, header.height, replace(rules, min_side=1))
        try:
            jpeg.strict(strip, "RGB")
        except ValueError as error:
            raise BadPicture(f"TIFF: a strip or tile of JPEG: {error}") from error
