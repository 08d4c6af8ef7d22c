import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from purifiers.data.files import ANIMATED, counted, image_files, image_size, read_image, read_rgb, text_under
from purifiers.errors import DataError, ImageTooLargeError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 10, 3), dtype=np.uint8)


def content(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes, clear: bytes = b"") -> bytes:
    """A PNG of ``kind`` 0, grey, or 2, RGB, with these rows, each after its filter, and a transparent colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    chunks = header + (chunk(b"tRNS", clear) if clear else b"") + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is that large."""
    return png(width, height, 8, 2, b"\0" * 999)


def tiff(bits: int, pixels: bytes, *, width: int = 2, sample_format: int = 1, extra: int | None = None) -> bytes:
    """A grey TIFF of one row; ``extra`` is the kind of a second channel."""
    channels = 1 if extra is None else 2
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 0, 277: channels, 278: 1, 279: len(pixels)}
    tags |= {339: sample_format} | ({} if extra is None else {338: extra})
    long = b"" if channels == 1 else struct.pack("<HH", bits, bits)  # fits into its entry
    end = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHI", tag, 3, 2) + long
        if tag == 258 and long
        else struct.pack("<HHII", tag, 4, 1, end if tag == 273 else value)
        for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def turned(exif: Image.Exif | None = None) -> Image.Exif:
    exif = exif or Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content(Image.fromarray(PIXELS)))
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(np.asarray(read_rgb(source)), PIXELS)
    assert image_size(tmp_path / "a.png") == (10, 7)


def test_pixels_are_read_as_they_are_meant_to_be_seen() -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    assert np.array_equal(np.asarray(read_rgb(content(Image.fromarray(ramp))))[..., 0], ramp >> 8)
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    assert np.asarray(read_rgb(content(Image.fromarray(clear)))).tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3] * 2]
    sideways = Image.fromarray(PIXELS)
    upright = read_rgb(content(sideways, exif=turned()))
    assert np.array_equal(np.asarray(upright), np.rot90(PIXELS, -1))
    red = Image.new("CMYK", (3, 3), (0, 255, 255, 0))
    assert np.abs(np.asarray(read_rgb(content(red, "JPEG", quality=100))).astype(int) - (255, 0, 0)).max() <= 3
    assert read_rgb(content(Image.new("1", (3, 3), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_kept_beside_the_colours_that_it_hides() -> None:
    pixels = np.dstack([PIXELS, np.arange(70, dtype=np.uint8).reshape(7, 10)])
    picture = read_image(content(Image.fromarray(pixels)))
    assert np.array_equal(np.asarray(picture.colours), PIXELS)
    assert picture.alpha is not None
    assert np.array_equal(np.asarray(picture.alpha), pixels[..., 3])
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert read_image(content(palette)).alpha is None
    picture = read_image(content(palette, transparency=1))
    assert [picture.colours.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert picture.alpha is not None
    assert picture.alpha.tobytes() == b"\xff\x00"


def test_grey_of_16_bits_is_what_the_file_says() -> None:
    levels = np.array([[0, 1000, 30000, 65535]], np.uint16)
    picture = read_image(content(Image.fromarray(levels), transparency=1000))
    assert picture.alpha is not None and np.asarray(picture.alpha).tolist() == [[255, 0, 255, 255]]
    assert np.asarray(picture.colours)[0, :, 0].tolist() == [0, 3, 117, 255]
    tiff = content(Image.fromarray(levels), "TIFF")
    black, white = (struct.pack("<HHIHH", 262, 3, 1, zero, 0) for zero in (1, 0))  # the tag PhotometricInterpretation
    assert tiff.count(black) == 1
    assert np.asarray(read_rgb(tiff.replace(black, white)))[0, :, 0].tolist() == [255, 252, 138, 0]


@pytest.mark.parametrize(
    ("rows", "levels"),
    [
        (png(4, 1, 16, 0, b"\0\0\xff\x01\xff\x80\xff\xff\x00"), [0, 1, 128, 255]),
        (png(2, 1, 16, 2, b"\0" + b"\x01\xff" * 3 + b"\xff\x00" * 3), [1, 255]),
        (tiff(16, struct.pack("<HH", 0x01FF, 0xFF00)), [1, 255]),
        (tiff(12, bytes([0xFF, 0xF0, 0x1F])), [255, 1]),
    ],
)
def test_of_more_than_8_bits_the_upper_ones_are_read(rows: bytes, levels: list[int]) -> None:
    picture = read_image(rows)
    assert np.asarray(picture.colours)[0, :, 0].tolist() == levels
    assert not picture.remarks


@pytest.mark.parametrize(
    ("image", "alpha"),
    [
        (png(4, 1, 1, 0, b"\0\xa0", struct.pack(">H", 1)), [0, 255, 0, 255]),
        (png(4, 1, 2, 0, b"\0\x1b", struct.pack(">H", 1)), [255, 0, 255, 255]),
        (png(4, 1, 4, 0, b"\0\x5a\xf0", struct.pack(">H", 5)), [0, 255, 255, 255]),
        (png(3, 1, 8, 0, b"\0\x05\x55\xff", struct.pack(">H", 5)), [0, 255, 255]),
        (png(2, 1, 16, 2, b"\0" + b"\xab\xcd" * 3 + bytes(6), struct.pack(">HHH", *[0xABCD] * 3)), [0, 255]),
    ],
)
def test_the_transparent_level_of_a_png_of_any_depth(image: bytes, alpha: list[int]) -> None:
    found = read_image(image).alpha
    assert found is not None
    assert np.asarray(found)[0].tolist() == alpha


def test_odd_but_valid_metadata_does_not_keep_a_picture_from_being_read() -> None:
    upright = np.rot90(PIXELS, -1).shape[:2]
    for kind, value in ((12, struct.pack("<d", 1.5)), (2, b"seven\0\0\0"), (10, struct.pack("<ii", -1, 0))):
        entries = struct.pack("<HHII", 0x011A, kind, 8 if kind == 2 else 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + value
        assert read_rgb(content(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == upright[::-1]
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    for options in ({"pnginfo": text}, {"icc_profile": bytes(2_000_000)}):
        assert np.array_equal(np.asarray(read_rgb(content(Image.fromarray(PIXELS), **options))), PIXELS)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError, match=r"a\.png.*LFS"):
        read_rgb(tmp_path / "a.png")


def tiled(width: int, height: int) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile of this size, without its data."""
    entries = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: width, 323: height, 324: 0, 325: 0}
    lines = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + lines + bytes(4)


def test_a_tile_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="tiles of 32768 x 16384"):
        read_image(tiled(32768, 16384), max_pixels=4_000_000)
    with pytest.raises(DataError, match="damaged"):  # as it has no pixels
        read_image(tiled(1024, 1024), max_pixels=256)


def test_texts_of_an_image_that_is_only_looked_at_are_not_read() -> None:
    texts, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for i in range(70):  # of a kilobyte each, and more than Pillow takes in all
        texts.add_itxt(str(i), "x" * 1_000_000, zip=True)
    Image.new("RGB", (2, 3)).save(buffer, "PNG", pnginfo=texts)
    assert image_size(buffer.getvalue()) == (2, 3)
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PngImagePlugin.PngStream, "chunk_iTXt", lambda self, pos, length: seen.append(length))
        assert read_rgb(buffer.getvalue()).size == (2, 3)
    assert not seen


def test_a_text_may_have_the_name_of_a_comment(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "mine")
    texts.add_text("mark", "ours")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=texts)
    assert text_under(tmp_path / "a.png", "mark") == "ours"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    picture = read_image(content(frames[0], form, save_all=True, append_images=frames[1:], **lossless))
    assert picture.remarks == (ANIMATED,)
    assert picture.colours.getpixel((0, 0)) == (255, 0, 0)
    assert not read_image(content(frames[0], form)).remarks


def test_what_is_said_of_a_picture_is_kept_but_for_what_is_no_longer_so() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = turned()
    exif[0x010F] = "Maker"
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Ada")
    text.add_itxt("Title", "\N{SNOWMAN}")
    options = {"icc_profile": profile, "exif": exif, "dpi": (300, 300), "pnginfo": text}
    picture = read_image(content(Image.fromarray(PIXELS), **options))
    assert picture.icc == profile
    assert picture.text == {"Author": "Ada", "Title": "\N{SNOWMAN}"}
    assert picture.dpi is not None
    assert picture.dpi == pytest.approx((300, 300), abs=0.1)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert dict(kept) == {0x010F: "Maker"}
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert read_image(content(Image.fromarray(PIXELS), icc_profile=grey)).icc is None


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(content(Image.fromarray(PIXELS), "JPEG"))
    assert read_rgb(tmp_path / "photo.png").size == (10, 7)
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.png: not an image \(PNG, JPEG"):
        read_rgb(tmp_path / "notes.png")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match="not an image"):
        read_rgb(tmp_path / "script.png")
    with pytest.raises(DataError, match=r"not an image \(PNG can be read\)"):
        read_rgb(content(Image.fromarray(PIXELS), "JPEG"), formats=("PNG",))


def test_too_many_pixels_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(10_000, 8_000))
    words = r"bomb\.png: 10000 x 8000 are 80,000,000 pixels; at most 50,000,000 .*--max-pixels"
    for read in (read_rgb, image_size):
        with pytest.raises(ImageTooLargeError, match=words):
            read(tmp_path / "bomb.png", max_pixels=50_000_000)
    with pytest.raises(ImageTooLargeError, match="20000 x 20000 are 400"):
        read_rgb(bomb(20_000, 20_000))
    with pytest.raises(ImageTooLargeError, match="20000 x 20000 are 400"):
        read_rgb(bomb(20_000, 20_000), max_pixels=50_000_000)
    exact = content(Image.new("RGB", (10, 10)))
    assert read_rgb(exact, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageTooLargeError):
        read_rgb(exact, max_pixels=99)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_is_told(form: str) -> None:
    whole = content(Image.fromarray(np.tile(PIXELS, (9, 9, 1))), form)
    with pytest.raises(DataError, match="empty, 0 bytes"):
        read_rgb(b"")
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(DataError, match=r"damaged image|not an image"):
            read_rgb(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (content(Image.fromarray(np.full((2, 2), 1e6, np.int32)), "TIFF"), "signed"),
        (content(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"), "floating-point"),
        (tiff(32, struct.pack("<II", 60_000, 1)), "32-bit"),
        (tiff(8, struct.pack("<bb", -1, 100), sample_format=2), "signed"),
        (tiff(16, struct.pack("<hh", -1, 300), sample_format=2), "signed"),
        (tiff(16, bytes(4), width=1, extra=2), "TIFF, or of a kind"),
        (tiff(8, bytes(2), width=1, extra=1), "TIFF, or of a kind"),
    ],
)
def test_grey_without_a_white_is_refused_and_its_kind_named(image: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(image)
    for source in (image, tmp_path / "a.tif"):
        with pytest.raises(DataError, match=kind):
            read_rgb(source)


def test_files_of_a_folder_and_what_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/x.PNG", "a.jpeg", "notes.txt", "b/y.webp", "c.HEIC", ".hidden.heic", "b/d.heic", "README"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    problems: list[OSError] = []
    left_out: Counter[str] = Counter()
    found = image_files(tmp_path, problems.append, left_out)
    assert [str(file.relative_to(tmp_path)) for file in found] == ["a.jpeg", "b/x.PNG", "b/y.webp"]
    assert sorted(Path(str(error.filename)).name for error in problems) == ["gone.png", "self.png"]
    assert left_out == {".heic": 2, ".txt": 1, "without ending": 1, "linked folders": 1, ".png": 1}
    assert "2 x .heic" in counted(left_out)
    assert not counted(Counter({"linked folders": 0}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    problems: list[OSError] = []
    assert image_files(tmp_path, problems.append, Counter()) == []
    assert [error.filename for error in problems] == [str(tmp_path / "closed")]
