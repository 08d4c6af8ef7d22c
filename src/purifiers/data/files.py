"""Image files: found below a folder, and decoded, from a file or from bytes, in this one place."""

import io
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from purifiers.errors import DataError, ImageTooLargeError
from purifiers.storage import lfs_hint

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read, by content and not by name. Pillow knows more, some of which starts other programs (EPS)."""
MAX_PIXELS = 178_956_970  # Pillow's own limit
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF; the second says whether zero is black or white
PNG = b"\x89PNG\r\n\x1a\n"
TILE = (322, 323)  # TIFF's tags of a tile's width and height
LARGEST_TILE = 2**22
"""Pixels of a TIFF's tile that are decoded, even of an image that may have fewer."""
GREY_STEPS = {"L;2": 85, "L;4": 17}  # of a PNG's grey levels of 2 and 4 bits, when they become 8
ANIMATED = "of several frames or pages (the first is used)"
DARK = "16-bit grey that uses 12 bits at most, and so nearly black (scale it to 16 bits first)"
T = TypeVar("T")
_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded image file."""

    colours: Image.Image  # RGB, 8 bits, upright; also under transparent pixels
    alpha: Image.Image | None = None  # its opacity, 8 bits, of the same size
    remarks: tuple[str, ...] = ()  # how it differs from its file: ANIMATED, DARK
    icc: bytes | None = None  # the colour profile, if it is one of RGB
    exif: bytes | None = None  # without the orientation, as that has been applied, and without the thumbnail
    dpi: tuple[float, float] | None = None  # pixels per inch, across and down
    text: dict[str, str] = field(default_factory=dict)  # the texts of a PNG

    def over_white(self) -> Image.Image:
        """RGB, 8 bits, transparency shown over white."""
        if self.alpha is None:
            return self.colours
        return Image.composite(self.colours, Image.new("RGB", self.colours.size, "white"), self.alpha)


def image_files(folder: Path, problem: Callable[[OSError], object], left_out: Counter[str]) -> list[Path]:
    """All image files below ``folder``, by their endings, sorted, without hidden files and folders and linked folders.
    ``problem`` is called with errors: a folder without permission, a link to nothing. ``left_out`` counts the rest."""
    found = []
    for home, folders, names in os.walk(folder, onerror=problem):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what os.walk then enters
        left_out["linked folders"] += sum(Path(home, name).is_symlink() for name in folders)
        for file in (Path(home, name) for name in names if not name.startswith(".")):
            try:
                if file.suffix.lower() in SUFFIXES and stat.S_ISREG(file.stat().st_mode):
                    found.append(file)
                else:
                    left_out[ascii(file.suffix.lower())[1:-1] or "without ending"] += 1
            except OSError as error:
                problem(error)
    return sorted(found)


def counted(remarks: Counter[str]) -> str:
    """What was left out or changed, and how often, in one line; empty if nothing was."""
    return "; ".join(f"{count:,} x {what}" for what, count in sorted(remarks.items()) if count)


def image_size(file: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image file as they are stored, from its header alone; raises as :func:`read_image` does."""
    file = _without_texts(file) if isinstance(file, bytes) and file.startswith(PNG) else file
    return _read(file, lambda image: image.size, max_pixels)


def text_under(file: Path, key: str) -> str:
    """The text of a PNG file under ``key``, or the comment of a JPEG that begins with it, from the header; empty if none."""

    def text(image: Image.Image) -> str:
        comment = image.info.get("comment", b"")  # a JPEG's; the text of a PNG may have that name
        name, _, rest = comment.decode(errors="replace").partition(": ") if isinstance(comment, bytes) else ("", "", "")
        return str(image.info.get(key, rest if name == key else ""))

    with suppress(DataError):
        return _read(file, text, sys.maxsize, ("PNG", "JPEG"))
    return ""


def is_whole(file: Path) -> bool:
    """Whether all of an image file, of any size, can be decoded."""
    with suppress(DataError):
        return _read(file, lambda image: image.load() is not None, sys.maxsize)
    return False


def read_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Picture:
    """Decode an image, the way it is meant to be seen.

    Turned upright by its EXIF orientation; of 12 or 16 bits the upper 8; CMYK and palettes as RGB; of an animation the
    first frame. Its format is read from its content, not from its name.

    Raises:
        ImageTooLargeError: it has more pixels than ``max_pixels``: a few kilobytes can hold a picture that fills the memory.
        DataError: it is no image of ``formats``, in Pillow's names, or a damaged one, or one of a kind that cannot be shown.
    """
    return _read(source, decoded, max_pixels, formats)


def read_rgb(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Image.Image:
    """:func:`read_image` as 8-bit RGB, transparency shown over white: what a classifier is given."""
    source = _without_texts(source) if isinstance(source, bytes) and source.startswith(PNG) else source
    return read_image(source, max_pixels=max_pixels, formats=formats).over_white()


def decoded(opened: Image.Image) -> Picture:
    """An image that Pillow has opened, the way it is meant to be seen; see :func:`read_image`. Raises DataError for pixels of
    which nothing tells what is white, and Pillow's OSError for damage."""
    image, tags = _upright(opened), getattr(opened, "tag_v2", {})
    info, bits, alpha, exif = image.info, max(tags.get(BITS, (16,))), None, None
    with suppress(Exception):  # bad metadata should not keep a picture from being read
        exif = upright.tobytes() if (upright := image.getexif()) else None
    # MPO: a photograph and its preview.
    remarks = [ANIMATED] if opened.format != "MPO" and getattr(opened, "is_animated", False) else []
    levels = np.asarray(image).astype(np.int64) if image.mode.startswith("I") else np.zeros(1, np.int64)
    unknown = "floating-point" if image.mode == "F" else "signed" if 2 in tags.get(SAMPLE_FORMAT, ()) else ""
    if unknown or bits > 16 or levels.min(initial=0) < 0 or levels.max(initial=0) > 65535:
        raise DataError(f"{unknown or '32-bit'} pixels, of which nothing says what is white; convert them to 16 or 8 bits")
    if image.mode.startswith("I"):
        if bits == 16 and 0 < levels.max(initial=0) < 2**12:  # as of many cameras
            remarks.append(DARK)
        if isinstance(clear := info.get("transparency"), int):  # the one grey level that a PNG calls transparent
            alpha = Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
        if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds up to 8 bits
            levels = 2**bits - 1 - levels
        image = Image.fromarray((levels >> bits - 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    # Bytes 16 to 19 of a profile's header are its colour space (ICC.1:2022, 7.2).
    icc = profile if (profile := info.get("icc_profile") or b"")[16:20] == b"RGB " else None
    # EXIF and the like in an older form, with the orientation that has been applied, are left out.
    text = {key: value for key, value in getattr(opened, "text", {}).items() if not key.startswith("Raw profile type")}
    text = {key: str(info.get(key, value)) for key, value in text.items()}
    return Picture(image.convert("RGB"), alpha, tuple(remarks), icc, exif, _dpi(info.get("dpi")), text)


def _read(
    source: Path | bytes, look: Callable[[Image.Image], T], max_pixels: int, formats: Sequence[str] = FORMATS, name: str = ""
) -> T:
    """What ``look`` finds in an image; raises as :func:`read_image` does, with the file's name."""
    name = name or ("" if isinstance(source, bytes) else f"{source}: ")
    try:
        with _opened(source, max_pixels, formats) as image:
            return look(image)
    except DataError as error:
        raise type(error)(f"{name}{error}") from error
    except UnidentifiedImageError as error:
        start = source[:4] if isinstance(source, bytes) else np.fromfile(source, np.uint8, 4).tobytes()
        tiff = "a damaged TIFF, or of a kind that cannot be read: save it as PNG" if start in (b"II*\0", b"MM\0*") else ""
        hint = tiff or lfs_hint(source) or f"not an image ({', '.join(formats)} can be read)"
        raise DataError(f"{name}{hint}") from error
    except Exception as error:  # decoders meet damage with errors of any kind
        if isinstance(error, ValueError) and "MAX_TEXT" in str(error):
            return _read(_without_texts(source), look, max_pixels, formats, name)
        raise DataError(f"{name}{getattr(error, 'strerror', None) or f'a damaged image: {error}'}") from error


def _opened(source: Path | bytes, max_pixels: int, formats: Sequence[str]) -> Image.Image:
    """The image with nothing read but its header."""
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise DataError("empty, 0 bytes")
    with _LIMIT:  # Pillow's own limit, which is one for the whole process and does not name an image's size, is lifted
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=tuple(formats))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = opened.size
    if width * height > max_pixels:
        opened.close()
        got = f"{width} x {height} are {width * height:,} pixels"
        raise ImageTooLargeError(f"{got}; at most {max_pixels:,} are read (--max-pixels)")
    # A tile is decoded as a whole, whatever part of it the image is.
    tile = [size for size in map(getattr(opened, "tag_v2", {}).get, TILE) if isinstance(size, int)]
    if len(tile) == 2 and tile[0] * tile[1] > max(max_pixels, LARGEST_TILE):
        opened.close()
        raise ImageTooLargeError(f"a TIFF with tiles of {tile[0]} x {tile[1]} pixels; at most {max_pixels:,} are read")
    return opened


def _without_texts(source: Path | bytes) -> bytes:
    """A PNG without its texts and profile, of which Pillow reads up to a megabyte each."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    kept, start = [content[:8]], 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")  # length, name, data, checksum
        if content[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _upright(opened: Image.Image) -> Image.Image:
    stored = next((tile[3] for tile in getattr(opened, "tile", ())), "")
    if "transparency" in opened.info and stored in GREY_STEPS:  # Pillow compares the file's level with pixels of 8 bits
        opened.info["transparency"] *= GREY_STEPS[stored]
    elif "transparency" in opened.info and stored == "RGB;16B":
        opened.info["transparency"] = tuple(level >> 8 for level in opened.info["transparency"])
    opened.load()  # damage shows here
    try:
        return ImageOps.exif_transpose(opened)
    except Exception:  # an entry of EXIF that Pillow reads and cannot write; of such, only the orientation is kept
        image, orientation = opened.copy(), Image.Exif()
        orientation[ExifTags.Base.Orientation] = opened.getexif().get(ExifTags.Base.Orientation, 1)
        image.info["exif"] = orientation.tobytes()
        return ImageOps.exif_transpose(image)


def _dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    with suppress(TypeError, ValueError, ZeroDivisionError):
        across, down = (float(value) for value in dpi or ())
        return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None
    return None
