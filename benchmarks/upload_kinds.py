"""Kinds of image file that people send, rendered from 28x28 images: the battery of benchmarks/uploads.py.

Each kind is a function (image, rng) -> `Sample`: the bytes of a file, and the ink before the file was degraded. The renderers
share no code with training/synthetic/uploads.py, so that the benchmark does not test the program with its own assumptions.
A random parameter is drawn for every file; only the property that the kind is named after is fixed.
"""

import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from app.detection.imaging.decode import Preprocess

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rng = np.random.Generator
Margin = tuple[float, float]
ROOMY: Margin = (0.25, 0.9)


class Sample(NamedTuple):
    """One file of a kind."""

    data: bytes
    ink: Floats  # [H, W] in [0, 1]: the strokes on the undamaged page
    preprocess: Preprocess = "auto"


Render = Callable[[Pixels, Rng], Sample]


def _outline(image: Pixels, rng: Rng, weight: float) -> Image.Image:
    """The strokes of an image at ten times its size, black and white (mode L), cropped. `weight` 0 = thin, 1 = bold."""
    large = Image.fromarray(image).resize((280, 280), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(4))
    values = np.asarray(large, np.float64)
    level = values.max() * (0.62 - 0.36 * weight + rng.uniform(-0.03, 0.03))
    mask = Image.fromarray(((values > level) * 255).astype(np.uint8))
    return mask.crop(mask.getbbox() or (130, 130, 150, 150))


def draw(
    image: Pixels,
    rng: Rng,
    px: float = 0,
    margin: Margin = ROOMY,
    weight: float | None = None,
    tilt: float = 4,
    aspect: float = 1,
) -> Floats:
    """Ink [H, W] in [0, 1] on a page. `px` is the longest side of the ink, `margin` the free space around it in its lengths."""
    px = px or np.exp(rng.uniform(np.log(32), np.log(160)))
    outline = _outline(image, rng, rng.uniform(0.2, 0.9) if weight is None else weight)
    outline = outline.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC, expand=True)
    outline = outline.crop(outline.getbbox())
    scale = px / max(outline.size)
    size = max(1, round(outline.width * scale)), max(1, round(outline.height * scale * aspect))
    ink = np.asarray(outline.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)) / 255
    before, after = rng.uniform(*margin, 2) * px, rng.uniform(*margin, 2) * px
    pads = [(round(before[axis]), round(after[axis])) for axis in (0, 1)]
    padded: Floats = np.pad(ink, pads)
    return padded


def tone(ink: Floats, paper: float = 250, pen: float = 25) -> Floats:
    """Grey values [H, W] of ink on flat paper."""
    return paper + ink * (pen - paper)


def random_tone(ink: Floats, rng: Rng) -> Floats:
    """Grey values of dark ink on light paper of random levels."""
    return tone(ink, rng.uniform(190, 255), rng.uniform(0, 90))


def blur(grey: Floats, radius: float) -> Floats:
    """Blur [H, W] in 0..255."""
    return np.asarray(to_image(grey).filter(ImageFilter.GaussianBlur(radius)), np.float64)


def grain(grey: Floats, rng: Rng, sigma: float) -> Floats:
    """Add camera noise."""
    return grey + rng.normal(0, sigma, grey.shape)


def to_image(values: Floats) -> Image.Image:
    """Grey [H, W] or RGB [H, W, 3] values in 0..255 as an image."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def save(image: Image.Image | Floats, kind: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's options
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else to_image(image)).save(file, kind, **options)
    return file.getvalue()


def ramp(shape: tuple[int, ...], rng: Rng) -> Floats:
    """A linear ramp [H, W] from -1 to 1 in a random direction."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    values: Floats = (np.cos(angle) * y + np.sin(angle) * x) / 1.42
    return values


# ---------------------------------------------------------------------------------------------- kinds, most with one option


def plain(image: Pixels, rng: Rng, kind: str = "PNG", options: dict[str, Any] | None = None, **drawing: Any) -> Sample:  # noqa: ANN401
    """Dark ink on light paper, as a screen shows it."""
    ink = draw(image, rng, **drawing)
    return Sample(save(random_tone(ink, rng), kind, **(options or {})), ink)


def light_on_dark(image: Pixels, rng: Rng, **drawing: Any) -> Sample:  # noqa: ANN401
    """Light ink on dark paper."""
    ink = draw(image, rng, **drawing)
    return Sample(save(255 - random_tone(ink, rng)), ink)


def scan(image: Pixels, rng: Rng, low: float, high: float) -> Sample:
    """A grey scan: slight blur, little noise."""
    ink = draw(image, rng, px=rng.uniform(low, high))
    return Sample(save(grain(blur(random_tone(ink, rng), rng.uniform(0.2, 0.6)), rng, rng.uniform(0.5, 4))), ink)


def thresholded(image: Pixels, rng: Rng, low: float, high: float, sigma: float = 3, margin: Margin = ROOMY) -> Sample:
    """A scan at one bit a pixel."""
    ink = draw(image, rng, px=rng.uniform(low, high), margin=margin)
    grey = grain(blur(tone(ink, 240, 30), rng.uniform(0.2, 0.7)), rng, sigma)
    return Sample(save(to_image(grey).point(lambda value: 255 * (value > 135)).convert("1")), ink)


def fax(image: Pixels, rng: Rng) -> Sample:
    """A fax of group 4 in its fine mode, 200 dots an inch."""
    ink = draw(image, rng, px=rng.uniform(40, 120))
    bits = to_image(grain(tone(ink), rng, 8)).point(lambda value: 255 * (value > 140)).convert("1")
    return Sample(save(bits, "TIFF", compression="group4"), ink)


def dithered(image: Pixels, rng: Rng) -> Sample:
    """Error diffusion (Floyd-Steinberg), as a viewer saves a grey image with one bit a pixel."""
    ink = draw(image, rng, px=rng.uniform(50, 160))
    return Sample(save(to_image(tone(ink, rng.uniform(225, 250), rng.uniform(10, 60))).convert("1")), ink)


def halftone(image: Pixels, rng: Rng) -> Sample:
    """A clustered-dot screen of a printer."""
    ink = draw(image, rng, px=rng.uniform(80, 180))
    y, x = np.indices(ink.shape)
    period = rng.uniform(3.5, 5)
    screen = 127 + 60 * (np.sin(2 * np.pi * (x + y) / period) + np.sin(2 * np.pi * (x - y) / period))
    return Sample(save(to_image((tone(ink, 225, 45) > screen) * 255.0).convert("1")), ink)


def ruled(image: Pixels, rng: Rng, grid: bool, level: tuple[float, float], spacing: tuple[float, float]) -> Sample:
    """Lined or squared paper; the lines cross the digit."""
    ink = draw(image, rng, px=rng.uniform(50, 120), margin=(0.3, 0.7))
    page, pen = tone(ink, rng.uniform(225, 255), rng.uniform(0, 70)), rng.uniform(*level)
    step, thick = max(ink.shape) * rng.uniform(*spacing), rng.integers(1, 3)
    for axis in range(1 + grid):
        lines = np.arange(rng.uniform(0, step), ink.shape[axis] - thick, step).astype(int)
        view = page if axis == 0 else page.T
        for start in lines:
            view[start : start + thick] = np.minimum(view[start : start + thick], pen)
    return Sample(save(grain(blur(page, 0.4), rng, 1.5)), ink)


def boxed(image: Pixels, rng: Rng, gap: Margin) -> Sample:
    """A field of a form: a frame around the digit."""
    ink = draw(image, rng, px=rng.uniform(40, 110), margin=gap)
    thick = rng.integers(1, 4)
    page = tone(ink, rng.uniform(225, 255), rng.uniform(0, 70))
    page = np.pad(np.pad(page, thick, constant_values=rng.uniform(0, 120)), rng.integers(0, 8), constant_values=245)
    ink = np.pad(ink, (page.shape[0] - ink.shape[0]) // 2)
    return Sample(save(grain(page, rng, 1.5)), ink)


def underlined(image: Pixels, rng: Rng) -> Sample:
    """A line under the digit, which does not cross the whole page."""
    ink = draw(image, rng, px=rng.uniform(50, 120), margin=(0.4, 0.8))
    page = tone(ink)
    rows = np.flatnonzero((ink > 0.5).any(axis=1))
    row = min(rows[-1] + round(0.12 * len(rows)) + 2, ink.shape[0] - 3)
    page[row : row + 2] = 60
    return Sample(save(page), ink)


def broken(image: Pixels, rng: Rng, cuts: int = 3, gap: float = 0.04) -> Sample:
    """A pen that fails: small gaps across the strokes."""
    ink = draw(image, rng, px=rng.uniform(60, 160))
    damaged = Image.fromarray((ink * 255).astype(np.uint8))
    ys, xs = np.nonzero(ink > 0.5)
    pen = ImageDraw.Draw(damaged)
    width = max(1, round(gap * max(np.ptp(ys), np.ptp(xs))))
    for at in rng.integers(0, len(xs), cuts):
        reach, angle = 0.18 * np.ptp(ys), rng.uniform(0, np.pi)
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        pen.line([(xs[at] - dx, ys[at] - dy), (xs[at] + dx, ys[at] + dy)], fill=0, width=width)
    return Sample(save(random_tone(np.asarray(damaged) / 255, rng)), ink)


def textured(image: Pixels, rng: Rng, least: float, cell: float) -> Sample:
    """Pencil, chalk or a dry marker: the ink covers the paper unevenly."""
    ink = draw(image, rng, px=rng.uniform(60, 160), weight=rng.uniform(0.4, 1))
    coarse = rng.random((round(ink.shape[0] / cell) + 1, round(ink.shape[1] / cell) + 1))
    cover = np.asarray(to_image(coarse * 255).resize(ink.shape[::-1], Image.Resampling.BICUBIC)) / 255
    return Sample(save(grain(tone(ink * (least + (1 - least) * cover), 248, 40), rng, 1)), ink)


def hairline(image: Pixels, rng: Rng) -> Sample:
    """A very thin pen: the skeleton of the strokes (Lantuejoul, 1978), three pixels wide on a large page."""
    ink = draw(image, rng, px=rng.uniform(90, 200), weight=0.5)
    left = Image.fromarray((ink * 255).astype(np.uint8)).point(lambda value: 255 * (value > 127))
    skeleton = np.zeros(ink.shape, np.uint8)
    while left.getbbox():
        eroded = left.filter(ImageFilter.MinFilter(3))
        skeleton = np.maximum(skeleton, np.asarray(left) - np.asarray(eroded.filter(ImageFilter.MaxFilter(3))))
        left = eroded
    thin = np.asarray(Image.fromarray(skeleton).filter(ImageFilter.MaxFilter(3)), np.float64)
    return Sample(save(random_tone(blur(thin, 0.6) / 255, rng)), ink)


def felt_pen(image: Pixels, rng: Rng) -> Sample:
    """A bold pen."""
    ink = draw(image, rng, px=rng.uniform(60, 160), weight=1.15)
    return Sample(save(random_tone(ink, rng)), ink)


def transparent(image: Pixels, rng: Rng, pen: tuple[int, int, int], mode: str = "RGBA") -> Sample:
    """Ink on a transparent background, as drawing apps export it."""
    ink = draw(image, rng)
    alpha = Image.fromarray((ink * 255).astype(np.uint8))
    canvas = Image.new("RGBA", alpha.size, (*pen, 0))
    canvas.putalpha(alpha)
    return Sample(save(canvas.convert(mode)), ink)


def coloured(image: Pixels, rng: Rng, paper: tuple[int, int, int], pen: tuple[int, int, int], kind: str = "PNG") -> Sample:
    """Coloured ink on coloured paper."""
    ink = draw(image, rng)
    colours = np.asarray(paper) + ink[..., None] * (np.asarray(pen, np.float64) - paper) + rng.normal(0, 4, 3)
    return Sample(save(colours, kind), ink)


def palette(image: Pixels, rng: Rng, kind: str) -> Sample:
    """A palette of 16 colours."""
    ink = draw(image, rng)
    return Sample(save(to_image(random_tone(ink, rng)).quantize(16), kind), ink)


def sixteen_bits(image: Pixels, rng: Rng) -> Sample:
    """16 bits a pixel, grey."""
    ink = draw(image, rng)
    return Sample(save(Image.fromarray((random_tone(ink, rng) * 257).clip(0, 65535).astype(np.uint16))), ink)


def photo(
    image: Pixels,
    rng: Rng,
    *,
    light: float = 0.12,
    soft: float = 0.01,
    sigma: float = 3,
    quality: int = 80,
    levels: Margin = (205, 60),
    shadow: float = 0,
    **drawing: Any,  # noqa: ANN401
) -> Sample:
    """A phone photograph: uneven light, blur (share of the side), noise, JPEG; `shadow` darkens one side by a hard edge."""
    ink = draw(image, rng, **{"px": rng.uniform(50, 170), "margin": (0.3, 0.9), **drawing})
    grey = tone(ink, levels[0] + rng.uniform(-20, 20), levels[1] + rng.uniform(-20, 20))
    slope = ramp(ink.shape, rng)
    grey = grey * (1 + light * slope)
    grey[slope > rng.uniform(-0.4, 0.4)] *= 1 - shadow
    grey = grain(blur(grey, soft * min(ink.shape)), rng, sigma)
    tint = np.asarray([1, rng.uniform(0.95, 1), rng.uniform(0.85, 1)])
    return Sample(save(grey[..., None] * tint, "JPEG", quality=quality), ink)


def neighbour(image: Pixels, rng: Rng) -> Sample:
    """Part of the next digit shows at one side."""
    ink = draw(image, rng, px=rng.uniform(50, 120), margin=(0.3, 0.6))
    other = draw(np.ascontiguousarray(image[:, ::-1]), rng, px=rng.uniform(50, 120), margin=(0, 0))
    part = other[:, : rng.integers(2, max(3, round(0.12 * ink.shape[1])))]
    page, top = ink.copy(), rng.integers(0, max(1, ink.shape[0] - part.shape[0] + 1))
    height = min(part.shape[0], page.shape[0] - top)
    page[top : top + height, page.shape[1] - part.shape[1] :] = part[:height]
    return Sample(save(grain(random_tone(page, rng), rng, 2)), ink)


def stained(image: Pixels, rng: Rng) -> Sample:
    """Coffee, dirt and paper fibres: pale blots behind the digit."""
    ink = draw(image, rng, px=rng.uniform(60, 140))
    blots = rng.normal(0, 1, (4, 4))
    pale = np.asarray(Image.fromarray(blots).resize(ink.shape[::-1], Image.Resampling.BICUBIC))
    return Sample(save(grain(tone(ink, 230, 40) - 14 * np.clip(pale, 0, 3), rng, 2), "JPEG", quality=85), ink)


def small_array(image: Pixels, rng: Rng, move: str) -> Sample:
    """A grey 28x28 PNG, bright on dark, which lies as in MNIST, in the middle by its box, or shifted."""
    if move == "none":
        return Sample(save(Image.fromarray(image)), image / 255)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = (28 - ink.shape[0]) // 2, (28 - ink.shape[1]) // 2
    if move == "shift":
        top, left = (
            int(np.clip(at + rng.choice([-2, 2]), 0, 28 - side))
            for at, side in zip((rows[0], columns[0]), ink.shape, strict=True)
        )
    canvas = np.zeros((28, 28), np.uint8)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return Sample(save(Image.fromarray(canvas)), image / 255)


def mnist_inverted(image: Pixels, rng: Rng, px: int) -> Sample:
    """An image of MNIST's kind, dark on light, resized smoothly."""
    grey = Image.fromarray(255 - image).resize((px, px), Image.Resampling.BICUBIC)
    return Sample(save(grey), np.asarray(grey.point(lambda value: 255 - value)) / 255, "digit")


TIGHT = (0.0, 0.0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

KINDS: dict[str, Render] = {
    **{f"digit of {px} px": partial(plain, px=px) for px in (12, 14, 16, 18, 20, 22, 24, 28, 32, 48)},
    "digit of 400 px": partial(plain, px=400),
    "digit of 900 px": partial(plain, px=900, margin=(0.1, 0.4)),
    "light on dark, 16 px": partial(light_on_dark, px=16),
    "light on dark": light_on_dark,
    "small JPEG, 20 px": partial(plain, px=20, kind="JPEG", options={"quality": 75}),
    "MNIST image, dark on light, 28 px": partial(mnist_inverted, px=28),
    "MNIST image, 56 px": partial(mnist_inverted, px=56),
    "MNIST image, 140 px": partial(mnist_inverted, px=140),
    "28x28 as MNIST": partial(small_array, move="none"),
    "28x28 centred by the box": partial(small_array, move="box"),
    "28x28 shifted by 2 px": partial(small_array, move="shift"),
    "scan of 75 dpi": partial(scan, low=13, high=20),
    "scan of 100 dpi": partial(scan, low=18, high=28),
    "scan of 300 dpi": partial(scan, low=60, high=90),
    "1-bit scan, 16 to 24 px": partial(thresholded, low=16, high=24),
    "1-bit scan, 30 to 60 px": partial(thresholded, low=30, high=60),
    "1-bit scan, 80 to 200 px": partial(thresholded, low=80, high=200),
    "1-bit scan, noisy": partial(thresholded, low=50, high=120, sigma=28),
    "1-bit, tight crop": partial(thresholded, low=24, high=80, margin=TIGHT),
    "fax, group 4": fax,
    "Floyd-Steinberg": dithered,
    "halftone": halftone,
    "tight crop, 24 px": partial(plain, px=24, margin=TIGHT),
    "tight crop, 32 px": partial(plain, px=32, margin=TIGHT),
    "tight crop, 48 px": partial(plain, px=48, margin=TIGHT),
    "tight crop, 64 px": partial(plain, px=64, margin=TIGHT),
    "tight crop, 150 px": partial(plain, px=150, margin=TIGHT),
    "tight crop, light on dark": partial(light_on_dark, px=40, margin=TIGHT),
    "crop with 1 px": partial(plain, px=40, margin=(0.025, 0.026)),
    "crop with 2 px": partial(plain, px=30, margin=(0.065, 0.067)),
    "crop with 5 %": partial(plain, margin=(0.05, 0.06)),
    "tight photograph": partial(photo, px=60, margin=(0.02, 0.06)),
    "pale lined paper": partial(ruled, grid=False, level=(180, 215), spacing=(0.12, 0.2)),
    "dark lined paper": partial(ruled, grid=False, level=(80, 150), spacing=(0.18, 0.3)),
    "pale squared paper": partial(ruled, grid=True, level=(185, 215), spacing=(0.1, 0.16)),
    "dark squared paper": partial(ruled, grid=True, level=(80, 150), spacing=(0.16, 0.3)),
    "form field": partial(boxed, gap=(0.1, 0.4)),
    "form field, narrow": partial(boxed, gap=(0.03, 0.08)),
    "underlined": underlined,
    "broken strokes": broken,
    "badly broken strokes": partial(broken, cuts=6, gap=0.06),
    "dry marker": partial(textured, least=0.25, cell=6),
    "pencil": partial(textured, least=0.5, cell=1.6),
    "hairline": hairline,
    "felt pen": felt_pen,
    "black on transparent": partial(transparent, pen=BLACK),
    "white on transparent": partial(transparent, pen=WHITE),
    "yellow on transparent": partial(transparent, pen=(250, 220, 40)),
    "white on transparent, grey": partial(transparent, pen=WHITE, mode="LA"),
    "blue on white": partial(coloured, paper=WHITE, pen=(30, 50, 170)),
    "yellow on white": partial(coloured, paper=WHITE, pen=(245, 215, 30)),
    "chalk on a board": partial(coloured, paper=(40, 80, 60), pen=(230, 230, 220)),
    "red on cream, WebP": partial(coloured, paper=(250, 240, 210), pen=(190, 40, 40), kind="WEBP"),
    "palette, GIF": partial(palette, kind="GIF"),
    "palette, PNG": partial(palette, kind="PNG"),
    "16 bits": sixteen_bits,
    "JPEG, quality 20": partial(plain, kind="JPEG", options={"quality": 20}),
    "JPEG, quality 90": partial(plain, kind="JPEG", options={"quality": 90}),
    "BMP": partial(plain, kind="BMP"),
    "photograph": photo,
    "photograph, small digit": partial(photo, px=24, margin=(0.5, 1.5)),
    "photograph, low contrast": partial(photo, levels=(175, 125), sigma=2),
    "faint on white": partial(coloured, paper=WHITE, pen=(222, 222, 222)),
    "photograph, hard shadow": partial(photo, shadow=0.25),
    "photograph, poor phone": partial(photo, soft=0.022, sigma=10, quality=30),
    "photograph, noisy": partial(photo, sigma=16),
    "photograph, strong light": partial(photo, light=0.4),
    "tilted by 15 degrees": partial(plain, tilt=15),
    "stretched": partial(plain, aspect=1.2, px=80),
    "part of a neighbour": neighbour,
    "stained paper": stained,
}
