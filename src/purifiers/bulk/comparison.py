"""Pictures that show what a purifier changes."""

import numpy as np
from PIL import Image, ImageDraw

AMPLIFY = 10
SMALLEST, LARGEST = 192, 1024
"""Of a panel's longer side, in pixels: small images are magnified by a whole factor, large ones reduced."""
GAP, BAND = 4, 16


def side_by_side(original: Image.Image, purified: Image.Image) -> Image.Image:
    """The original, what became of it, and the difference around grey, amplified, with the factor written above.

    Args:
        original, purified: RGB, 8 bits, of one size.
    """
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
    longer = max(image.size)
    if longer > LARGEST:
        width, height = (max(1, round(side * LARGEST / longer)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BOX)
    factor = max(1, SMALLEST // longer)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
