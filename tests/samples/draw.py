"""Draws the sample images beside this file: `python tests/samples/draw.py`. Strokes and code, nobody's photographs."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HERE = Path(__file__).parent

# Pen strokes on a page of 1 x 1, as polylines; the pen is lifted between them.
SEVEN = [[(0.24, 0.26), (0.45, 0.24), (0.75, 0.22), (0.66, 0.42), (0.55, 0.62), (0.46, 0.86)]]
THREE = [
    [(0.3, 0.24), (0.48, 0.16), (0.66, 0.24), (0.64, 0.4), (0.45, 0.48)],
    [(0.45, 0.48), (0.66, 0.54), (0.72, 0.7), (0.56, 0.84), (0.3, 0.8)],
]
TWO = [[(0.3, 0.32), (0.4, 0.18), (0.6, 0.18), (0.68, 0.34), (0.56, 0.54), (0.3, 0.82), (0.48, 0.78), (0.76, 0.82)]]
FOUR = [[(0.36, 0.18), (0.28, 0.56), (0.74, 0.52)], [(0.66, 0.2), (0.6, 0.86)]]
CAT = [
    [(0.28, 0.5), (0.26, 0.16), (0.42, 0.32), (0.58, 0.32), (0.74, 0.16), (0.72, 0.5)],
    [(0.72, 0.5), (0.7, 0.72), (0.5, 0.84), (0.3, 0.72), (0.28, 0.5)],
    [(0.4, 0.5), (0.42, 0.5)],
    [(0.58, 0.5), (0.6, 0.5)],
    [(0.46, 0.64), (0.5, 0.68), (0.54, 0.64)],
    [(0.1, 0.6), (0.38, 0.64)],
    [(0.1, 0.72), (0.38, 0.68)],
    [(0.9, 0.6), (0.62, 0.64)],
    [(0.9, 0.72), (0.62, 0.68)],
]
FIVE = [[(0.68, 0.2), (0.36, 0.2), (0.32, 0.46), (0.52, 0.42), (0.68, 0.56), (0.62, 0.76), (0.44, 0.82), (0.28, 0.74)]]
SIX = [[(0.6, 0.16), (0.44, 0.3), (0.34, 0.54), (0.38, 0.78), (0.56, 0.82), (0.64, 0.66), (0.52, 0.54), (0.37, 0.64)]]
EIGHT = [
    [(0.62, 0.26), (0.5, 0.16), (0.38, 0.26), (0.46, 0.42), (0.6, 0.56), (0.62, 0.74), (0.48, 0.84), (0.36, 0.72), (0.44, 0.54),
     (0.58, 0.4), (0.62, 0.26)],
]  # fmt: skip
NINE = [[(0.62, 0.32), (0.48, 0.18), (0.36, 0.32), (0.46, 0.48), (0.62, 0.36), (0.62, 0.3), (0.6, 0.58), (0.52, 0.84)]]


def drawing(strokes, side, *, width, ink, paper):
    """The strokes with a round pen, anti-aliased: an RGB image of side x side; `width` as a share of the side."""
    scale = 4
    canvas = Image.new("RGB", (side * scale, side * scale), paper)
    pen = ImageDraw.Draw(canvas)
    radius = width * side * scale / 2
    for stroke in strokes:
        points = [(x * side * scale, y * side * scale) for x, y in smooth(stroke)]
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def smooth(points):
    """A Catmull-Rom curve through the points."""
    knots = np.array([points[0], *points, points[-1]], float)
    curve = []
    for p0, p1, p2, p3 in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        for t in np.linspace(0, 1, 60):
            steps = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
            curve.append(tuple(steps / 2))
    return curve


def on_paper(image, seed):
    """As a phone would photograph it: shade from one side, grain, a little blur."""
    random = np.random.RandomState(seed)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), float)
    height, width, _ = pixels.shape
    shade = 1 - 0.35 * np.linspace(0, 1, width)[None, :, None] - 0.1 * np.linspace(0, 1, height)[:, None, None]
    grainy = pixels * shade + random.normal(0, 5, pixels.shape)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


def centred(image):
    """The centre of mass of bright ink in the middle, as in MNIST."""
    pixels = np.asarray(image, float)
    y, x = np.indices(pixels.shape)
    middle = [round(13.5 - float((axis * pixels).sum() / pixels.sum())) for axis in (y, x)]
    return Image.fromarray(np.roll(pixels, middle, (0, 1)).astype(np.uint8))


def landscape(side, seed):
    """Photo-like: sky, hills and a sun, with grain and no outline."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    pixels = np.stack([90 + 120 * y, 140 + 70 * y, 230 - 60 * y], axis=-1)
    for level, colour in ((0.55, (90, 120, 90)), (0.68, (60, 95, 55)), (0.82, (40, 60, 30))):
        ridge = level + 0.06 * np.sin(7 * x + 20 * level) + 0.03 * np.sin(19 * x + 9 * level)
        pixels[y > ridge] = colour
    pixels[(x - 0.72) ** 2 + (y - 0.22) ** 2 < 0.008] = (250, 240, 190)
    pixels += random.normal(0, 8, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


def main():
    tablet = {"width": 0.07, "ink": (20, 20, 30), "paper": "white"}
    pen = {"width": 0.045, "ink": (35, 50, 120), "paper": (222, 216, 203)}
    drawing(SEVEN, 280, **tablet).save(HERE / "seven.png")
    drawing(THREE, 280, **tablet).save(HERE / "three.png")
    on_paper(drawing(TWO, 320, **pen), 2).save(HERE / "two.jpg", quality=85)
    on_paper(drawing(FOUR, 320, **pen), 4).save(HERE / "four.jpg", quality=85)
    drawing(CAT, 280, **tablet).save(HERE / "cat.png")
    on_paper(drawing(FIVE, 320, **pen), 5).save(HERE / "five.webp", quality=85)
    drawing(SIX, 120, **tablet).save(HERE / "six.gif")
    drawing(EIGHT, 160, **tablet).convert("1", dither=Image.Dither.NONE).save(HERE / "eight.tif", compression="group4")
    centred(drawing(NINE, 28, width=0.1, ink="white", paper="black").convert("L")).save(HERE / "nine.bmp")  # as in MNIST
    landscape(320, 7).save(HERE / "landscape.jpg", quality=85)
    Image.new("L", (280, 280), 255).save(HERE / "blank.png")


if __name__ == "__main__":
    main()
