"""The two built-in data sets: people's drawings, and the same drawings in chalk.

`sketches` are 100 drawings of each of 100 things, 28x28, white on black, in ten themes. `chalk` is the same stream
under one domain shift which all tasks share: thick, smeared, speckled strokes on a ruled board. It is computed when
it is loaded, from one seed, and comes out bit-equal on every machine: the random bits are PCG64's raw output (whose
stream numpy guarantees, unlike its distributions) and everything after them is elementwise +, * and max.

Convention: drawings are `(N, 28, 28)`; inside this file as float32 in 0..1, at its border as uint8.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

CHALK_SEED = 20


RULING_STEP = 7


_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ChalkStyle:
    """How far chalk is from a sketch. Amounts are in 0..1 of the full range of grey, unless stated otherwise."""

    strength: float = 1.0
    """Multiplies every amount below: 0 leaves the sketch as it is."""
    thickness: float = 0.6
    """How much of a stroke's brightness its neighbour pixels take."""
    smear: float = 0.4
    """How much of it each further pixel takes along the direction in which a hand wiped the drawing."""
    smear_length: int = 3
    """How many pixels the smear reaches."""
    speckle: float = 0.15
    """How much chalk may be missing at a pixel."""
    fading: float = 0.3
    """How much dimmer than white the faintest drawing is."""
    board: float = 0.15
    """Mean grey of the board."""
    board_spread: float = 0.05
    """How far the boards of two drawings may lie from that mean."""
    texture: float = 0.05
    """Amplitude of the board's wiped clouds, some seven pixels wide."""
    ruling: float = 0.35
    """How bright the squares are that a school's board is ruled with, seven pixels wide, anywhere on it."""
    grain: float = 0.04
    """Amplitude of the noise of single pixels, on board and stroke."""


# Frozen features of the built-in backbone lose two fifths of their accuracy to it: 69 % to 40 % with one linear head on
# four fifths of the drawings of a class that train, measured on the others. Most of what it does can be undone, so that
# it is worth learning: see docs/results.md.
CHALK = ChalkStyle()


def chalk(images: NDArray[np.uint8], style: ChalkStyle = CHALK, seed: int = CHALK_SEED) -> NDArray[np.uint8]:
    """Redraw sketches in chalk.

    Args:
        images: White strokes on black, uint8 (N, H, W).
        style: How far to go.
        seed: Of all randomness: the same images, style and seed give the same bytes.

    Returns:
        NDArray: uint8 (N, H, W).
    """
    bits = np.random.PCG64(seed)
    strokes = images.astype(np.float32) / np.float32(255)
    strokes = _smeared(_thickened(strokes, style.strength * style.thickness), style, bits)
    strokes *= 1 - np.float32(style.strength * style.speckle) * _uniform(bits, strokes.shape)
    white = 1 - np.float32(style.strength * style.fading) * _uniform(bits, (len(images), 1, 1))
    ground = np.clip(_board(images.shape, style, bits), 0, 1)
    drawing = ground + (white - ground) * strokes + _grain(images.shape, style, bits)
    return np.rint(np.clip(drawing, 0, 1) * 255).astype(np.uint8)


def _thickened(strokes: Floats, amount: float) -> Floats:
    """Let each pixel take a part of its brightest neighbour: straight ones `amount`, diagonal ones its square."""
    thick = strokes
    for dy, dx in _DIRECTIONS:
        part = np.float32(min(amount, 1.0) ** (abs(dy) + abs(dx)))
        thick = np.maximum(thick, part * _shifted(strokes, dy, dx))
    return thick


def _smeared(strokes: Floats, style: ChalkStyle, bits: np.random.PCG64) -> Floats:
    """Wipe each drawing in one of eight directions."""
    direction = (_uniform(bits, (len(strokes),)) * len(_DIRECTIONS)).astype(np.int64)
    smeared = strokes.copy()
    for which, (dy, dx) in enumerate(_DIRECTIONS):
        chosen = direction == which
        for step in range(1, style.smear_length + 1):
            part = np.float32(min(style.strength * style.smear, 1.0) ** step)
            smeared[chosen] = np.maximum(smeared[chosen], part * _shifted(strokes[chosen], step * dy, step * dx))
    return smeared


def _board(shape: tuple[int, ...], style: ChalkStyle, bits: np.random.PCG64) -> Floats:
    """A ground of its own grey for each drawing, with soft clouds of half-wiped chalk, ruled in squares."""
    count, height, width = shape
    level = style.board + style.board_spread * (2 * _uniform(bits, (count, 1, 1)) - 1)
    clouds = 2 * _uniform(bits, (count, 5, 5)) - 1
    clouds = _stretched(_stretched(clouds, height, axis=1), width, axis=2)
    ground = (style.strength * (level + style.texture * clouds)).astype(np.float32)
    lines = _ruled(count, height, bits)[:, :, None] | _ruled(count, width, bits)[:, None, :]
    return np.maximum(ground, lines * np.float32(style.strength * style.ruling))


def _ruled(count: int, length: int, bits: np.random.PCG64) -> NDArray[np.bool_]:
    """Where lines cross a side of each drawing."""
    first = (_uniform(bits, (count,)) * RULING_STEP).astype(np.int64)
    return (np.arange(length) + first[:, None]) % RULING_STEP == 0


def _grain(shape: tuple[int, ...], style: ChalkStyle, bits: np.random.PCG64) -> Floats:
    """Noise of single pixels: two uniforms added, which is bell-shaped enough."""
    noise = _uniform(bits, shape) + _uniform(bits, shape) - 1
    return np.multiply(noise, style.strength * style.grain, dtype=np.float32)


def _stretched(values: Floats, length: int, axis: int) -> Floats:
    """Linear interpolation to `length` points along an axis, ends kept."""
    position = np.linspace(0, values.shape[axis] - 1, length, dtype=np.float32)
    low = np.minimum(position.astype(np.int64), values.shape[axis] - 2)
    part = (position - low).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    between = values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part
    return between.astype(np.float32)


def _shifted(images: Floats, dy: int, dx: int) -> Floats:
    """Images moved by (dy, dx) pixels, black where nothing comes in."""
    height, width = images.shape[1:]
    moved = np.zeros_like(images)
    rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
    source_rows, source_columns = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
    moved[:, rows, columns] = images[:, source_rows, source_columns]
    return moved


def _uniform(bits: np.random.PCG64, shape: tuple[int, ...]) -> Floats:
    """Uniform numbers in 0..1 of 16 bits each, straight from the generator's raw output."""
    count = prod(shape)
    raw = np.asarray(bits.random_raw(-(-count // 4))).astype("<u8").view("<u2")[:count]
    return (raw.astype(np.float32) / np.float32(65536)).reshape(shape)
