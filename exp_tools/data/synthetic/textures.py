"""Elements that synthetic lesions are drawn with: smooth noise, outlines, networks, globules, vessels, streaks.

Every pattern is a float32 map [BOX, BOX] centred on the lesion, at half the size of the picture: the eye does not
miss the rest, and drawing takes a quarter of the time.
"""

import cv2
import numpy as np

BOX = 256
"""Side of the square that holds a lesion, in half-size pixels."""

_ROWS, _COLUMNS = np.mgrid[:BOX, :BOX].astype(np.float32) - (BOX - 1) / 2
_SUBPIXEL_BITS = 4


def smooth_noise(rng: np.random.Generator, cell: float, size: int = BOX) -> np.ndarray:
    """Noise of roughly zero mean and unit variance, float32 [size, size], whose bumps are about `cell` pixels wide."""
    count = int(2 * size / cell) + 6
    coarse = cv2.GaussianBlur(rng.standard_normal((count, count), dtype=np.float32), (5, 5), 1.0) * 3.4
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def fractal_noise(rng: np.random.Generator, cell: float, octaves: int = 4, size: int = BOX) -> np.ndarray:
    """Noise of unit variance, float32 [size, size], with bumps of `cell` pixels and finer ones on top of them."""
    noise = smooth_noise(rng, cell, size)
    for octave in range(1, octaves):
        noise += 0.6**octave * smooth_noise(rng, max(cell / 2**octave, 3), size)
    return noise / noise.std()


def step(values: np.ndarray, softness: float) -> np.ndarray:
    """0 where values are well below zero, 1 well above, linear over `softness` to each side of zero."""
    return np.clip(values / (2 * softness) + 0.5, 0, 1)


def outline(
    rng: np.random.Generator, *, radius: float, elongation: float, asymmetry: float, roughness: float
) -> tuple[np.ndarray, np.ndarray]:
    """The shape of a lesion.

    Parameters
    ----------
    radius : mean radius in half-size pixels
    elongation : long axis over short axis, 1 is round
    asymmetry : amplitude of the harmonics of the outline (2 to 5), 0 is a perfect ellipse
    roughness : how ragged the border is at finer scales, as a share of the radius

    Returns
    -------
    depth : float32 [BOX, BOX], 1 at the centre, 0 on the border, negative outside (in units of the radius)
    angle : float32 [BOX, BOX], direction from the centre in radians, 0 to 2 pi
    """
    turn = rng.uniform(0, np.pi)
    along = np.cos(turn) * _COLUMNS + np.sin(turn) * _ROWS
    across = np.cos(turn) * _ROWS - np.sin(turn) * _COLUMNS
    distance, angle = cv2.cartToPolar(along / np.sqrt(elongation), across * np.sqrt(elongation))
    directions = np.linspace(0, 2 * np.pi, 721)
    border = np.ones_like(directions)
    for harmonic in range(2, 6):
        amplitude = asymmetry / np.sqrt(harmonic - 1) * rng.normal()
        border += amplitude * np.cos(harmonic * directions + rng.uniform(0, 2 * np.pi))
    border = np.clip(border, 0.5, 1.3)
    reach = border[np.round(angle * (720 / (2 * np.pi))).astype(np.intp)]
    depth = reach - distance / radius + roughness * fractal_noise(rng, radius / 2.5)
    # Nothing may touch the frame of the box, whatever the harmonics add up to.
    frame = (BOX / 2 - np.maximum(np.abs(_ROWS), np.abs(_COLUMNS))) / radius - 0.12
    return np.minimum(depth, frame).astype(np.float32), angle


def cells(rng: np.random.Generator, *, spacing: float, jitter: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide the box into cells around the points of a hexagonal grid.

    Parameters
    ----------
    spacing : distance of neighbouring points in half-size pixels
    jitter : how far a point strays from the grid, in units of the spacing; 0 is a honeycomb

    Returns
    -------
    to_centre, to_wall : float32 [BOX, BOX], distance to the centre of the cell and to its nearest wall in pixels
    strength : float32 [BOX, BOX], a random number in 0..1 for each cell
    """
    rows = int(BOX / (spacing * 0.866)) + 2
    columns = int(BOX / spacing) + 2
    row, column = np.mgrid[:rows, :columns].astype(np.float32)
    points = np.stack([row * 0.866, column + 0.5 * (row % 2)], axis=-1).reshape(-1, 2) * spacing
    points += rng.normal(scale=jitter * spacing, size=points.shape) - rng.uniform(0, spacing, size=2)
    turn = rng.uniform(0, np.pi / 3)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (points - BOX / 2) @ rotation.T + BOX / 2
    points = np.round(points).astype(np.intp)
    points = points[((points >= 0) & (points < BOX)).all(axis=1)]
    background = np.full((BOX, BOX), 255, np.uint8)
    background[points[:, 0], points[:, 1]] = 0
    to_centre, label = cv2.distanceTransformWithLabels(background, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    wall = np.zeros((BOX, BOX), bool)
    wall[:-1] |= label[:-1] != label[1:]
    wall[:, :-1] |= label[:, :-1] != label[:, 1:]
    to_wall = cv2.distanceTransform(np.where(wall, 0, 255).astype(np.uint8), cv2.DIST_L2, 3)
    strength = rng.random(label.max() + 1, dtype=np.float32)[label]
    # Bent a little: nothing in skin is ruled with a straightedge.
    bend = 0.25 * spacing
    across = _COLUMNS + BOX / 2 + bend * smooth_noise(rng, 2.5 * spacing)
    down = _ROWS + BOX / 2 + bend * smooth_noise(rng, 2.5 * spacing)
    maps = np.dstack([to_centre, cv2.GaussianBlur(to_wall, (0, 0), 0.8), strength])
    return cv2.split(cv2.remap(maps, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def network(rng: np.random.Generator, *, spacing: float, jitter: float, width: float, variation: float) -> np.ndarray:
    """Pigment network: 1 on the lines, 0 in the holes; `variation` of line width and strength makes it atypical."""
    _, to_wall, _ = cells(rng, spacing=spacing, jitter=jitter)
    widths = width * np.exp(np.clip((0.12 + 0.4 * variation) * smooth_noise(rng, 18), -1, 0.8))
    lines = cv2.exp(-((to_wall / widths) ** 2))
    return lines * np.clip(1 - (0.1 + 0.25 * variation) * (1 + fractal_noise(rng, 24, 3)), 0, 1)


def folds(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Winding ridges and furrows as on a brain's surface: 1 on ridges, 0 in furrows, `wavelength` pixels apart."""
    white = rng.standard_normal((BOX, BOX), dtype=np.float32)
    narrow = cv2.GaussianBlur(white, (0, 0), wavelength * 0.2)
    band = narrow - cv2.GaussianBlur(narrow, (0, 0), wavelength * 0.16)
    return step(band / band.std(), 0.9)


def discs(
    rng: np.random.Generator, allowed: np.ndarray, count: int, radii: tuple[float, float], *, stretch: float = 1.0
) -> np.ndarray:
    """Up to `count` discs (or ellipses `stretch` times as long as wide) centred where `allowed` is true, 1 inside."""
    canvas = np.zeros((BOX, BOX), np.uint8)
    rows, columns = np.nonzero(allowed)
    if len(rows) == 0:
        return canvas.astype(np.float32)
    for place in rng.integers(len(rows), size=count):
        radius = rng.uniform(*radii)
        axes = radius * np.sqrt(rng.uniform(1, stretch)) ** np.array([1, -1])
        cv2.ellipse(
            canvas,
            _fixed(columns[place], rows[place]),
            _fixed(*axes),
            rng.uniform(0, 180),
            0,
            360,
            int(rng.integers(180, 256)),
            -1,
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )
    return canvas.astype(np.float32) / 255


def arborising_vessels(rng: np.random.Generator, radius: float, trunks: int) -> np.ndarray:
    """Sharp vessels that branch into ever finer twigs, entering from the border of the lesion; 1 on a vessel."""
    canvas = np.zeros((BOX, BOX), np.uint8)
    for _ in range(trunks):
        direction = rng.uniform(0, 2 * np.pi)
        start = BOX / 2 - radius * rng.uniform(0.5, 0.95) * np.array([np.cos(direction), np.sin(direction)])
        pending = [(start, direction + rng.normal(scale=0.5), rng.uniform(1.7, 2.7), radius * rng.uniform(1.0, 1.7))]
        while pending:
            point, heading, width, length = pending.pop()
            path = [point]
            for _ in range(max(int(length / 4), 2)):
                heading += rng.normal(scale=0.3)
                point = point + 4 * np.array([np.cos(heading), np.sin(heading)])
                path.append(point)
                if width > 0.8 and rng.random() < 0.22:
                    side = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
                    pending.append((point, heading + side, width * 0.65, length * rng.uniform(0.35, 0.7)))
            _polyline(canvas, np.array(path), width)
    return canvas.astype(np.float32) / 255


def hairpin_vessels(rng: np.random.Generator, allowed: np.ndarray, count: int, size: float) -> np.ndarray:
    """Small looped vessels, centred where `allowed` is true; 1 on a vessel."""
    canvas = np.zeros((BOX, BOX), np.uint8)
    rows, columns = np.nonzero(allowed)
    turns = np.linspace(0, 1, 9)
    for place in rng.integers(len(rows), size=count) if len(rows) else ():
        spin, start = rng.choice([-1, 1]), rng.uniform(0, 2 * np.pi)
        angle = start + spin * turns * rng.uniform(3.5, 6.5)
        reach = size * (0.4 + 0.6 * turns)
        path = np.stack([columns[place] + reach * np.cos(angle), rows[place] + reach * np.sin(angle)], axis=1)
        _polyline(canvas, path, 1)
    return canvas.astype(np.float32) / 255


def streaks(
    rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, *, count: int, sector: float, length: float
) -> np.ndarray:
    """Radial lines with bulbous ends (pseudopods) across the border, over `sector` radians of it; 1 on a streak."""
    canvas = np.zeros((BOX, BOX), np.uint8)
    middle = rng.uniform(0, 2 * np.pi)
    rim = np.abs(depth) < 0.04
    near = rim & (np.abs(np.angle(np.exp(1j * (angle - middle)))) < sector / 2)
    rows, columns = np.nonzero(near)
    for place in rng.integers(len(rows), size=count) if len(rows) else ():
        root = np.array([columns[place], rows[place]], float)
        outward = root - BOX / 2
        outward /= np.linalg.norm(outward) + 1e-6
        tip = root + outward * length * rng.uniform(0.5, 1.0)
        side = np.array([-outward[1], outward[0]]) * rng.normal(scale=0.25) * length
        _polyline(canvas, np.array([root - outward * length, root, tip + side]), rng.uniform(1.5, 4))
        cv2.circle(
            canvas, _fixed(*(tip + side)), _fixed(rng.uniform(1, 3.5), 0)[0], 255, -1, cv2.LINE_AA, _SUBPIXEL_BITS
        )
    return cv2.GaussianBlur(canvas, (0, 0), 1.2).astype(np.float32) / 255


def _fixed(x: float, y: float) -> tuple[int, int]:
    """A point in the fixed-point pixels that OpenCV draws with."""
    return round(x * 2**_SUBPIXEL_BITS), round(y * 2**_SUBPIXEL_BITS)


def _polyline(canvas: np.ndarray, path: np.ndarray, width: float) -> None:
    points = np.round(path * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.polylines(canvas, [points], False, 255, max(round(width), 1), cv2.LINE_AA, _SUBPIXEL_BITS)
