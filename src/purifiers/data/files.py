"""Image files: which there are below a folder, and the one place that decodes them, from a file or from bytes."""

import io
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from purifiers.errors import DataError, ImageTooLargeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read, by content and not by name. Pillow knows more, some of which starts other programs (EPS)."""
_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        colours: RGB, 8 bits, upright; also what is hidden under transparent pixels.
        alpha: its opacity, 8 bits, of the same size; None if it has none.
        animated: it holds more frames or pages; this is the first.
        icc: the colour profile, if it is one of RGB.
        exif: EXIF without the orientation, as that has been applied, and without the thumbnail; None if there is none.
        dpi: pixels per inch, across and down.
        text: what a PNG says of itself.
    """

    colours: Image.Image
    alpha: Image.Image | None = None
    animated: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)

    def over_white(self) -> Image.Image:
        """RGB, 8 bits, transparency shown over white."""
        if self.alpha is None:
            return self.colours
        white = Image.new("RGB", self.colours.size, "white")
        white.paste(self.colours, mask=self.alpha)
        return white


def image_files(folder: Path, problem: Callable[[OSError], None] = lambda error: None) -> list[Path]:
    """All image files below ``folder``, by their endings, sorted; hidden files and folders are left out, linked folders not
    entered.

    Args:
        folder: where to look.
        problem: is called with what cannot be looked at: a folder without permission, a link to nothing.
    """
    found = []
    for home, folders, names in os.walk(folder, onerror=problem):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what os.walk then enters
        for file in (Path(home, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES:
                try:
                    if stat.S_ISREG(file.stat().st_mode):
                        found.append(file)
                except OSError as error:
                    problem(error)
    return sorted(found)


def image_size(file: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """Width and height of an image file as they are stored, from its header alone; raises as :func:`read_image` does."""
    with _opened(file, max_pixels, FORMATS) as opened:
        return opened.size


def png_text(file: Path, key: str) -> str:
    """What a PNG file of any size says of itself under ``key``, from its header; empty if nothing, or if it is no such file."""
    try:
        with _opened(file, sys.maxsize, ("PNG",)) as opened:
            return str(opened.info.get(key, ""))
    except DataError:
        return ""


def read_image(source: Path | bytes, *, max_pixels: int | None = None, formats: Sequence[str] = FORMATS) -> Picture:
    """Decode an image, the way it is meant to be seen.

    Turned upright by its EXIF orientation; 16-bit grey scaled, not cut off; CMYK and palettes as RGB; of an animation the
    first frame. What it is decides its content, not its name.

    Args:
        source: a file, or the content of one.
        max_pixels: width times height that are allowed; more is refused before anything is decoded, as a few kilobytes can
            hold a picture that fills the memory. None: Pillow's own limit, 179 million.
        formats: what may be read, in Pillow's names.

    Raises:
        ImageTooLargeError: it has more pixels than ``max_pixels``.
        DataError: it is not an image of these formats, or a damaged one, or one of a kind that cannot be shown.
    """
    with _opened(source, max_pixels, formats) as opened:
        try:
            return _decoded(opened)
        except DataError as error:
            raise DataError(f"{_named(source)}{error}") from error
        except Exception as error:  # decoders meet damage with errors of any kind
            raise DataError(f"{_named(source)}a damaged image: {error}") from error


def read_rgb(source: Path | bytes, *, max_pixels: int | None = None, formats: Sequence[str] = FORMATS) -> Image.Image:
    """:func:`read_image` as 8-bit RGB, transparency shown over white: what a classifier is given."""
    return read_image(source, max_pixels=max_pixels, formats=formats).over_white()


def _named(source: Path | bytes) -> str:
    return "" if isinstance(source, bytes) else f"{source}: "


@contextmanager
def _unlimited() -> Iterator[None]:
    """Pillow's own limit, which is one for the whole process and does not say how large an image is, lifted for a header."""
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _opened(source: Path | bytes, max_pixels: int | None, formats: Sequence[str]) -> Image.Image:
    """The image with nothing read but its header."""
    try:
        if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
            raise DataError(f"{_named(source)}empty, 0 bytes")
        with _unlimited() if max_pixels is not None else nullcontext():
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=tuple(formats))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{_named(source)}not an image ({', '.join(formats)} can be read)") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{_named(source)}{error}") from error
    except OSError as error:
        raise DataError(f"{_named(source)}{error.strerror or f'a damaged image: {error}'}") from error
    except Exception as error:
        raise DataError(f"{_named(source)}a damaged image: {error}") from error
    width, height = opened.size
    if max_pixels is not None and width * height > max_pixels:
        opened.close()
        raise ImageTooLargeError(
            f"{_named(source)}{width} x {height} are {width * height / 1e6:.1f} megapixels; at most {max_pixels / 1e6:g} are "
            "read (--max-pixels)"
        )
    return opened


def _decoded(opened: Image.Image) -> Picture:
    animated = opened.format != "MPO" and bool(getattr(opened, "is_animated", False))  # MPO: a photograph and its preview
    image = ImageOps.exif_transpose(opened)
    info = image.info
    text = {key: str(info.get(key, value)) for key, value in getattr(opened, "text", {}).items()}
    about: dict[str, Any] = {
        "animated": animated,
        "icc": _rgb_profile(info.get("icc_profile")),
        "exif": _exif(image),
        "dpi": _dpi(info.get("dpi")),
        # EXIF and the like in an older clothing, with the orientation that has been applied.
        "text": {key: value for key, value in text.items() if not key.startswith("Raw profile type")},
    }
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64)
        if levels.min(initial=0) < 0 or levels.max(initial=0) > 65535:
            raise DataError("32-bit grey, of which nothing says what is white; convert it to 16 or 8 bits")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise DataError("floating-point grey, of which nothing says what is white; convert it to 16 or 8 bits")
    if not image.has_transparency_data:
        return Picture(image.convert("RGB"), **about)
    image = image.convert("RGBA")
    return Picture(image.convert("RGB"), image.getchannel("A"), **about)


def _rgb_profile(profile: bytes | None) -> bytes | None:
    """The profile if its colour space, bytes 16 to 19 of its header (ICC.1:2022, 7.2), is that of the result."""
    return profile if profile and profile[16:20] == b"RGB " else None


def _exif(image: Image.Image) -> bytes | None:
    try:
        exif = image.getexif()
        return exif.tobytes() if exif else None
    except Exception:  # what is said of a picture should not keep it from being read
        return None


def _dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in dpi or (0, 0))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None
