"""Cluttered rooms drawn by seed: numbers in coloured boxes, coloured shapes, signs, and questions about them.

A picture is a rectangle of cells of 8 pixels, one cell a patch of the tiny tower. Every object stands in one
cell (a sign in one cell a letter), up to one pixel off the cell's corner. Around the objects lie two patterned walls,
coloured strokes and pixel noise; with 24 x 24 cells about 4 % of the cells hold an object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from playground.glyphs import LETTERS, SHAPES

CELL = 8
GRID = 24  # rows and columns of a whole picture of the tiny LLaVA
# Heights and widths of the tiny LLaVA-NeXT's pictures, in half crops.
CROPPED_SHAPES = ((4, 4), (4, 4), (3, 4), (4, 3), (2, 4), (4, 2), (2, 6), (6, 2))
INSTRUCTION = "Answer the question using a single word or phrase."  # behind each question
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 50, 190),
    "orange": (240, 125, 25),
}
BOARDS = {"white": (245, 245, 240), "black": (20, 20, 25)}
PATTERNS = ("plain", "stripes", "checks", "dots")
WORDS = (
    *("STOP", "EXIT", "OPEN", "SALE", "CAFE", "TAXI", "BANK", "PARK", "SHOP", "MENU", "BUS", "ZOO"),
    *("GYM", "FIRE", "PIZZA", "MILK", "BOOK", "FISH", "HOTEL", "RENT", "COLD", "WIFI", "TOUR", "LUNCH"),
)
SHAPE_NAMES = tuple(SHAPES)
COLOUR_NAMES = tuple(COLOURS)
LETTER_NAMES = tuple(sorted({letter for word in WORDS for letter in word}))

# What one patch can show. `kind`: the pattern of an empty patch, or the object in it. `colour`: of box, shape or board.
KINDS = (*PATTERNS, "box", "shape", "sign")
PATCH_COLOURS = (*COLOUR_NAMES, *BOARDS)
IDENTITIES = (*"0123456789", *SHAPE_NAMES, *LETTER_NAMES)
# What a whole picture can be said to hold: the labels of its [CLS] token.
FACTS = (
    *((colour, digit) for colour in COLOUR_NAMES for digit in range(10)),
    *((colour, shape) for colour in COLOUR_NAMES for shape in SHAPE_NAMES),
    *((board, word) for board in BOARDS for word in WORDS),
)
QUESTION_TYPES = ("number", "sign", "colour", "shape", "exists", "pattern")

_KIND = {name: i for i, name in enumerate(KINDS)}
_COLOUR = {name: i for i, name in enumerate(PATCH_COLOURS)}
_IDENTITY = {name: i for i, name in enumerate(IDENTITIES)}
_NOISE = np.random.default_rng(7).normal(0, 9, (512, 512, 3)).astype(np.float32)


@dataclass
class Scene:
    """One picture and all that is true of it.

    `image` is (8 * rows, 8 * columns, 3) uint8. `kind`, `colour` and `identity` are (rows, columns) indices into KINDS,
    PATCH_COLOURS and IDENTITIES; the last two are -1 where no object stands.
    """

    image: np.ndarray
    kind: np.ndarray
    colour: np.ndarray
    identity: np.ndarray
    boxes: list[tuple[str, int]] = field(default_factory=list)
    shapes: list[tuple[str, str]] = field(default_factory=list)
    signs: list[tuple[str, str]] = field(default_factory=list)
    patterns: tuple[str, str] = ("plain", "plain")

    def facts(self) -> set[tuple[str, int] | tuple[str, str]]:
        """The members of FACTS that hold."""
        return {*self.boxes, *self.shapes, *self.signs}


def draw(rng: np.random.Generator, grid: int | tuple[int, int] = 24) -> Scene:
    """Draw one scene of `grid` x `grid` cells, or of (rows, columns).

    The number of objects grows with the side of a square of as many cells (twice at 24 what it is at 12).
    """
    shape = (grid, grid) if isinstance(grid, int) else grid
    side = math.isqrt(shape[0] * shape[1])
    scene = Scene(
        image=np.empty((0,)),
        kind=np.zeros(shape, dtype=np.int64),
        colour=np.full(shape, -1, dtype=np.int64),
        identity=np.full(shape, -1, dtype=np.int64),
    )
    canvas = background(rng, scene)
    strokes(rng, canvas, count=int(rng.integers(side // 4, side // 2)))
    free = np.ones(shape, dtype=bool)
    most = max(2, side // 6)
    for board in rng.permutation(list(BOARDS))[: rng.integers(1, 2 + side // 24)]:
        _add_sign(rng, canvas, scene, free, str(board))
    for colour in rng.permutation(COLOUR_NAMES)[: rng.integers(most // 2 + 1, most + 3)]:
        _add_box(rng, canvas, scene, free, str(colour))
    for _ in range(rng.integers(most, most + 4)):
        _add_shape(rng, canvas, scene, free)
    canvas += noise(rng, *canvas.shape[:2])
    scene.image = canvas.clip(0, 255).astype(np.uint8)
    return scene


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A (height, width, 3) piece of the noise, which goes on at its end as it began."""
    y, x = rng.integers(0, 512 - min(height, width, 511), 2)
    return _NOISE.take(range(y, y + height), axis=0, mode="wrap").take(range(x, x + width), axis=1, mode="wrap")


def background(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """An upper and a lower wall, each with a muted colour drift and one of PATTERNS; fills `scene.kind`."""
    rows, columns = scene.kind.shape
    side = columns * CELL
    horizon = int(rng.integers(rows // 3, rows - rows // 3 + 1))
    names = [str(name) for name in rng.choice(PATTERNS, 2)]
    scene.patterns = (names[0], names[1])
    canvas = np.empty((rows * CELL, side, 3), dtype=np.float32)
    for name, top, bottom in zip(names, (0, horizon), (horizon, rows), strict=True):
        wall = canvas[top * CELL : bottom * CELL]
        corners = rng.uniform(70, 190) + rng.normal(0, 25, (2, 2, 3))
        v = np.linspace(0, 1, wall.shape[0])[:, None, None]
        h = np.linspace(0, 1, side)[None, :, None]
        upper = corners[0, 0] * (1 - h) + corners[0, 1] * h
        lower = corners[1, 0] * (1 - h) + corners[1, 1] * h
        wall[:] = upper * (1 - v) + lower * v
        wall += (_pattern(name, wall.shape[0], side) * float(rng.choice((-1, 1))) * rng.uniform(22, 45))[..., None]
        scene.kind[top:bottom] = _KIND[name]
    return canvas


def _pattern(name: str, height: int, width: int) -> np.ndarray:
    """(height, width) in [-1, 1], period 8 pixels or less, so that each patch shows it whole."""
    y, x = np.mgrid[:height, :width]
    if name == "stripes":
        return np.where((y // 2) % 2, 1.0, -1.0)
    if name == "checks":
        return np.where(((y // 4) + (x // 4)) % 2, 1.0, -1.0)
    if name == "dots":
        return np.where(((y % 4) < 2) & ((x % 4) < 2), 1.0, -0.3)
    return np.zeros((height, width))


def strokes(rng: np.random.Generator, canvas: np.ndarray, count: int) -> None:
    """Straight strokes in the colours of the objects: clutter that is not content."""
    height, width = canvas.shape[:2]
    steps = np.linspace(0, 1, 96)
    for _ in range(count):
        start = rng.uniform(0, (height, width))
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(12, 48)
        points = start + steps[:, None] * length * np.array([np.sin(angle), np.cos(angle)])
        y, x = points.astype(int).clip(0, (height - 2, width - 2)).T
        colour = np.array(COLOURS[COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]], dtype=np.float32)
        shade = colour * rng.uniform(0.6, 1.1)
        canvas[y, x] = shade
        if rng.random() < 0.5:
            canvas[y + 1, x] = shade


def place(rng: np.random.Generator, free: np.ndarray, width: int) -> tuple[int, int] | None:
    """A free run of `width` cells with a free cell on each side, marked taken; None if twenty tries find none."""
    rows, columns = free.shape
    for _ in range(20):
        row, column = int(rng.integers(rows)), int(rng.integers(columns - width + 1))
        around = free[max(0, row - 1) : row + 2, max(0, column - 1) : column + width + 1]
        if around.all():
            free[row, column : column + width] = False
            return row, column
    return None


def stamp(
    rng: np.random.Generator, canvas: np.ndarray, cell: tuple[int, int], bitmap: np.ndarray, ink: tuple, paper: tuple | None
) -> None:
    """Draw a bitmap into a cell, up to one pixel off; `paper` fills the cell's square first."""
    y, x = (np.array(cell) * CELL + rng.integers(-1, 2, 2)).clip(0, np.array(canvas.shape[:2]) - CELL)
    square = canvas[y : y + CELL, x : x + CELL]
    if paper is not None:
        square[:] = paper
    top, left = (CELL - bitmap.shape[0] + 1) // 2, (CELL - bitmap.shape[1]) // 2
    square[top : top + bitmap.shape[0], left : left + bitmap.shape[1]][bitmap] = ink


def label(scene: Scene, cell: tuple[int, int], kind: str, colour: str, identity: str) -> None:
    """Note what a cell shows."""
    scene.kind[cell], scene.colour[cell], scene.identity[cell] = _KIND[kind], _COLOUR[colour], _IDENTITY[identity]


def _add_box(rng: np.random.Generator, canvas: np.ndarray, scene: Scene, free: np.ndarray, colour: str) -> None:
    cell = place(rng, free, 1)
    if cell is None:
        return
    digit = int(rng.integers(10))
    ink = BOARDS["black"] if colour in ("yellow", "orange") else BOARDS["white"]
    stamp(rng, canvas, cell, LETTERS[str(digit)], ink, COLOURS[colour])
    label(scene, cell, "box", colour, str(digit))
    scene.boxes.append((colour, digit))


def _add_shape(rng: np.random.Generator, canvas: np.ndarray, scene: Scene, free: np.ndarray) -> None:
    shape, colour = str(rng.choice(SHAPE_NAMES)), str(rng.choice(COLOUR_NAMES))
    cell = place(rng, free, 1)
    if cell is None or (colour, shape) in scene.shapes:
        return
    stamp(rng, canvas, cell, SHAPES[shape], COLOURS[colour], None)
    label(scene, cell, "shape", colour, shape)
    scene.shapes.append((colour, shape))


def _add_sign(rng: np.random.Generator, canvas: np.ndarray, scene: Scene, free: np.ndarray, board: str) -> None:
    word = str(rng.choice(WORDS))
    cell = place(rng, free, len(word))
    if cell is None:
        return
    ink = BOARDS["black" if board == "white" else "white"]
    for i, letter in enumerate(word):
        at = (cell[0], cell[1] + i)
        stamp(rng, canvas, at, LETTERS[letter], ink, BOARDS[board])
        label(scene, at, "sign", board, letter)
    scene.signs.append((board, word))


def questions(rng: np.random.Generator, scene: Scene) -> list[tuple[str, str, str]]:
    """All questions with one right answer, as (type, question, answer), in random order; existence is asked twice."""
    shapes = [shape for _, shape in scene.shapes]
    colours = [colour for colour, _ in scene.shapes]
    asked = [("number", f"What number is in the {colour} box?", str(digit)) for colour, digit in scene.boxes]
    asked += [("sign", f"What does the {board} sign say?", word.lower()) for board, word in scene.signs]
    for colour, shape in scene.shapes:
        if shapes.count(shape) == 1:
            asked.append(("colour", f"What color is the {shape}?", colour))
        if colours.count(colour) == 1:
            asked.append(("shape", f"Which shape is {colour}?", shape))
    if scene.shapes:
        colour, shape = scene.shapes[rng.integers(len(scene.shapes))]
        asked.append(("exists", is_there(colour, shape), "yes"))
        asked.append(("exists", is_there(*absent(rng, scene)), "no"))
    where = int(rng.integers(2))
    place = ("upper", "lower")[where]
    asked.append(("pattern", f"What pattern has the {place} wall?", scene.patterns[where]))
    return [asked[i] for i in rng.permutation(len(asked))]


def is_there(colour: str, shape: str) -> str:
    """The question whether a picture shows a shape in a colour."""
    return f"Is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}?"


def absent(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A colour and a shape that do not stand together; in most cases each of the two is there, with another partner."""
    colours = COLOUR_NAMES if rng.random() < 0.3 else [colour for colour, _ in scene.shapes]
    shapes = SHAPE_NAMES if rng.random() < 0.3 else [shape for _, shape in scene.shapes]
    for _ in range(20):
        pair = (str(rng.choice(colours)), str(rng.choice(shapes)))
        if pair not in scene.shapes:
            return pair
    left = [(c, s) for c in COLOUR_NAMES for s in SHAPE_NAMES if (c, s) not in scene.shapes]
    return left[rng.integers(len(left))]
