"""Gather photographs that an ImageNet classifier has not seen: 183, of five packages of Debian 12.

    for p in tuxpaint-stamps-default opencv-doc mate-backgrounds ukui-wallpapers lomiri-wallpapers-16.04; do
        apt-get download $p && mkdir -p packages/$p && dpkg -x $p*.deb packages/$p
    done
    python experiments/unseen_photographs.py packages unseen

Tux Paint's stamps are cut out, and come on white. Of each wallpaper come two square crops, of random places and sizes.
Drawings, patterns and doubles, told by eye, are left out. There are no labels: use ``--labels classifier``.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 320
STAMPS = "tuxpaint-stamps-default"
SAMPLES = "opencv-doc/usr/share/doc/opencv-doc/examples/data"
WALLPAPERS = ("mate-backgrounds/usr/share/backgrounds/mate/nature", "ukui-wallpapers", "lomiri-wallpapers-16.04")
STAMPS_LEFT_OUT = {"cartoon", "planets", "coins", "money", "symbols", "roadsigns", "seasonal", "naturalforces"}  # folders
LEFT_OUT = {
    *("Blender_Suzanne1", "Blender_Suzanne2", "aero3", "ela_modified", "graf1", "ml", "pca_test1", "pic2", "pic3", "pic4"),
    *("rubberwhale2", "smarties", "free_by_Peter_Nerlich", "desert"),
    *("starry_night", "text_defocus", "text_motion", "eye", "pizza", "feathered_hat", "sombrero", "hedgehog", "Aqua", "Wood"),
    *("analogpattern_by_Peter_Nerlich", "umang_by_Abhishek_Mudgal", "2004default", "calla", "city", "firstgeneration"),
    *("fluent-color", "focal-ubuntukylin", "goldfish", "rhythm", "rollpaper", "string", "the-mouse"),
}
SMALLEST = 20_000  # bytes; smaller files are drawings


def files(folder: Path) -> list[Path]:
    """Pictures below ``folder`` that are not left out."""
    found = [file for file in sorted(folder.rglob("*")) if file.suffix in {".jpg", ".png"} and not file.is_symlink()]
    return [file for file in found if file.stat().st_size > SMALLEST and file.stem not in LEFT_OUT]


def on_white(image: Image.Image) -> Image.Image:
    """A cut-out in the middle of a white square with a margin."""
    image, side = image.convert("RGBA"), int(max(image.size) * 1.08)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB")


def crop(image: Image.Image, rng: random.Random) -> Image.Image:
    """A random square of at least 300 pixels of ``image``, which is first reduced to 1400."""
    image = image.convert("RGB")
    image.thumbnail((1400, 1400))
    side = rng.randint(300, min(image.size))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    return image.crop((left, top, left + side, top + side))


def gather(packages: Path) -> dict[str, Image.Image]:
    """All photographs by name."""
    rng, images = random.Random(0), {}
    for file in files(packages / STAMPS):
        with Image.open(file) as image:
            if not STAMPS_LEFT_OUT & {*file.relative_to(packages).parts} and min(image.size) >= 150:
                images[f"stamp_{file.parent.name}_{file.stem}"] = on_white(image)
    for file in files(packages / SAMPLES):
        with Image.open(file) as image:
            if image.mode == "RGB" and min(image.size) >= 200:
                images[f"opencv_{file.stem}"] = image.copy()
    for package in WALLPAPERS:
        for file in files(packages / package):
            with Image.open(file) as image:
                for i in range(2 if min(image.size) >= 600 else 0):
                    images[f"wallpaper_{file.stem}_{i}"] = crop(image, rng)
    return images


def main() -> None:
    """Write the photographs as PNG files of 320 pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the packages' files, each in a folder of its name")
    parser.add_argument("output", type=Path, help="a new folder")
    chosen = parser.parse_args()
    if lacking := [package for package in (STAMPS, SAMPLES, *WALLPAPERS) if not (chosen.packages / package).is_dir()]:
        parser.error(f"{chosen.packages} lacks {', '.join(lacking)}")
    if chosen.output.exists():
        parser.error(f"{chosen.output} exists: name a new folder")
    images = gather(chosen.packages)
    chosen.output.mkdir(parents=True)
    for name, image in images.items():
        ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS).save(chosen.output / f"{name}.png")
    print(f"{len(images)} photographs in {chosen.output}")


if __name__ == "__main__":
    main()
