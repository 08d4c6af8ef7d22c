"""Pictures that show what a purifier changes."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

AMPLIFY = 10
SMALLEST, LARGEST = 192, 1024
"""Of a panel's longer side, in pixels: small images are magnified by a whole factor, large ones reduced."""
GAP, BAND = 4, 16


def side_by_side(original: Image.Image, purified: Image.Image) -> Image.Image:
    """Two pictures, RGB, 8 bits, of one size, and their amplified difference around grey, with titles."""
    before, after = (np.asarray(image).astype(np.int16) for image in (original, purified))
    difference = Image.fromarray((128 + AMPLIFY * (after - before)).clip(0, 255).astype(np.uint8))
    titles = ("original", "purified", f"difference x {AMPLIFY} (grey: none)")
    panels = [_scaled(image) for image in (original, purified, difference)]
    width, height = max(SMALLEST, panels[0].width), panels[0].height
    sheet = Image.new("RGB", (3 * width + 2 * GAP, BAND + height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        draw.text((i * (width + GAP) + 2, 2), title, fill="black")
        sheet.paste(panel, (i * (width + GAP), BAND))
    return sheet


def _scaled(image: Image.Image) -> Image.Image:
    if max(image.size) > LARGEST:
        share = LARGEST / max(image.size)
        return image.resize([max(1, round(share * side)) for side in image.size], Image.Resampling.BOX)
    return ImageOps.scale(image, max(1, SMALLEST // max(image.size)), Image.Resampling.NEAREST)
