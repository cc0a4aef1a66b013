"""Drawings as polylines on a paper of 1 x 1, for a mouse to draw: the ten digits in several hands, and things that are none."""

import numpy as np


def arc(x, y, rx, ry, start, end, count=14):
    """Points of an ellipse around (x, y), from angle `start` to `end` in degrees; 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, end, count))
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


DIGITS = {
    0: [arc(0.5, 0.5, 0.2, 0.32, -80, -445)],
    1: [[(0.42, 0.3), (0.52, 0.18), (0.5, 0.84)]],
    2: [[*arc(0.48, 0.34, 0.17, 0.16, -170, 30), (0.52, 0.6), (0.3, 0.82), (0.5, 0.81), (0.72, 0.8)]],
    3: [[*arc(0.47, 0.33, 0.17, 0.16, -150, 80), *arc(0.47, 0.65, 0.2, 0.17, -85, 150)]],
    4: [[(0.4, 0.18), (0.3, 0.54), (0.72, 0.54)], [(0.6, 0.3), (0.57, 0.86)]],
    5: [[(0.66, 0.2), (0.4, 0.2), (0.37, 0.46), *arc(0.47, 0.63, 0.19, 0.19, -110, 140)]],
    6: [[(0.6, 0.16), (0.42, 0.36), (0.35, 0.6), *arc(0.5, 0.67, 0.16, 0.16, 180, -190)]],
    7: [[(0.28, 0.22), (0.5, 0.21), (0.72, 0.2), (0.6, 0.48), (0.47, 0.86)]],
    8: [[*arc(0.5, 0.34, 0.14, 0.15, -60, -270), *arc(0.5, 0.66, 0.17, 0.17, -90, 270), *arc(0.5, 0.34, 0.14, 0.15, 90, -60)]],
    9: [[*arc(0.49, 0.35, 0.15, 0.16, -20, -340), (0.64, 0.3), (0.62, 0.56), (0.55, 0.86)]],
}

STRANGE = {
    "cat": [
        [(0.28, 0.5), (0.26, 0.16), (0.42, 0.32), (0.58, 0.32), (0.74, 0.16), (0.72, 0.5)],
        [(0.72, 0.5), (0.7, 0.72), (0.5, 0.84), (0.3, 0.72), (0.28, 0.5)],
        [(0.1, 0.6), (0.38, 0.64)], [(0.1, 0.72), (0.38, 0.68)], [(0.9, 0.6), (0.62, 0.64)], [(0.9, 0.72), (0.62, 0.68)],
    ],
    "house": [
        [(0.18, 0.48), (0.5, 0.14), (0.82, 0.48)], [(0.24, 0.48), (0.24, 0.86), (0.76, 0.86), (0.76, 0.48)],
        [(0.42, 0.86), (0.42, 0.62), (0.58, 0.62), (0.58, 0.86)], [(0.24, 0.48), (0.76, 0.48)],
    ],
    "grid": [[(x, 0.15), (x, 0.85)] for x in (0.2, 0.4, 0.6, 0.8)] + [[(0.15, y), (0.85, y)] for y in (0.2, 0.4, 0.6, 0.8)],
    "star": [[(0.5, 0.12), (0.72, 0.85), (0.14, 0.4), (0.86, 0.4), (0.28, 0.85), (0.5, 0.12)]],
    "tree": [
        [(0.5, 0.9), (0.5, 0.5)], [(0.5, 0.12), (0.2, 0.5), (0.8, 0.5), (0.5, 0.12)], [(0.5, 0.3), (0.25, 0.66), (0.75, 0.66)],
    ],
    "sun": [arc(0.5, 0.5, 0.16, 0.16, 0, 360)]
    + [[(0.5 + 0.24 * np.cos(a), 0.5 + 0.24 * np.sin(a)), (0.5 + 0.4 * np.cos(a), 0.5 + 0.4 * np.sin(a))]
       for a in np.arange(8) * np.pi / 4],
    "scribble": [[(0.2 + 0.6 * (i % 2), 0.15 + 0.05 * i) for i in range(15)]],
    "word": [
        [(0.08, 0.3), (0.08, 0.7)], [(0.08, 0.5), (0.26, 0.5)], [(0.26, 0.3), (0.26, 0.7)],
        [(0.4, 0.3), (0.4, 0.7)], [(0.56, 0.3), (0.56, 0.7), (0.7, 0.7)], [(0.8, 0.3), (0.8, 0.7), (0.94, 0.7)],
    ],
    "spiral": [[(0.5 + 0.02 * t * np.cos(t), 0.5 + 0.02 * t * np.sin(t)) for t in np.linspace(0, 6 * np.pi, 60)]],
    "fish": [
        [*arc(0.42, 0.5, 0.3, 0.2, 40, 320, 20), (0.88, 0.72), (0.88, 0.28), (0.65, 0.62)],
        arc(0.28, 0.45, 0.03, 0.03, 0, 360, 8),
    ],
}  # fmt: skip


def in_hand(strokes, *, slant=0.0, width=1.0, height=1.0, wobble=0.0, seed=0):
    """The strokes as another hand writes them: slanted, narrower or lower, and with corners that miss their place."""
    random = np.random.RandomState(seed)
    lines = []
    for stroke in strokes:
        x, y = (np.array(stroke) - 0.5).T
        points = np.stack([0.5 + width * x - slant * height * y, 0.5 + height * y], axis=1)
        lines.append([tuple(point) for point in points + random.normal(0, wobble, points.shape)])
    return lines


HANDS = {
    "upright": {},
    "slanted": {"slant": 0.3, "wobble": 0.008, "seed": 1},
    "small and narrow": {"width": 0.7, "height": 0.72, "slant": -0.08, "wobble": 0.006, "seed": 2},
}
