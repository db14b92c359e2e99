"""Crowded scenes, and questions by what they need of the visual tokens that are kept.

The scenes of `playground.scenes` hold few things that stand out, and every serious selector keeps them. Here more patches
stand out than a small budget keeps, and each kind of question needs others of them:

    salient    few things that stand out: number, colour, shape and existence, in a scene of `playground.scenes`
    odd        one odd thing in a crowd of like things: a token spent on the crowd is lost
    count      how many there are of one thing: who avoids likeness loses some of them
    wall       the pattern of a wall, day or night: any patch without an object tells
    text       one of several signs whose words differ in one letter: neighbours belong together
    where      the half of the picture that holds a thing, and the thing next to it: places and pairs
    relation   which of two things that stand far apart is higher, or further left
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from playground import scenes
from playground.glyphs import LETTERS, SHAPES
from playground.scenes import BOARDS, COLOUR_NAMES, COLOURS, GRID, SHAPE_NAMES, Scene, label, noise, stamp

Thing = tuple[str, str]  # colour and shape
Question = tuple[str, str, str]  # kind, question, answer

# Words of which each has neighbours that differ in one letter.
WORDS = (
    *("BALL", "CALL", "FALL", "HALL", "TALL", "WALL", "COLD", "GOLD", "HOLD", "BOLD", "SOLD", "TOLD"),
    *("LINE", "MINE", "NINE", "WINE", "FINE", "PINE", "BANK", "TANK", "SINK", "PINK", "WINK", "LINK"),
)
MOST = 4  # things of one kind that a question counts
FAR = 3  # two things are compared whose rows, or columns, are a third of the picture apart


class Room:
    """A scene while it is drawn: its canvas, and the cells that are free."""

    def __init__(self, rng: np.random.Generator, grid: int) -> None:
        self.rng, shape = rng, (grid, grid)
        kind, colour, identity = np.zeros(shape, np.int64), np.full(shape, -1), np.full(shape, -1)
        self.scene = Scene(np.empty(0), kind, colour, identity)
        self.canvas = scenes.background(rng, self.scene)
        self.free = np.ones(shape, dtype=bool)
        scenes.strokes(rng, self.canvas, int(rng.integers(grid // 4, grid // 2)))

    def light(self, day: bool) -> None:
        """Make the walls bright or dark."""
        self.canvas += (185.0 if day else 55.0) + self.rng.normal(0, 8) - self.canvas.mean()

    def run(self, width: int) -> tuple[int, int]:
        """The first of `width` free cells side by side, marked taken."""
        found = np.argwhere(np.lib.stride_tricks.sliding_window_view(self.free, width, axis=1).all(-1))
        row, column = found[self.rng.integers(len(found))]
        self.free[row, column : column + width] = False
        return int(row), int(column)

    def box(self, colour: str, digit: int, at: tuple[int, int] | None = None) -> None:
        """A coloured box with a digit, at a free cell if none is given."""
        ink = BOARDS["black"] if colour in ("yellow", "orange") else BOARDS["white"]
        self._put(at or self.run(1), LETTERS[str(digit)], ink, COLOURS[colour], ("box", colour, str(digit)))
        self.scene.boxes.append((colour, digit))

    def shape(self, thing: Thing, at: tuple[int, int] | None = None) -> None:
        """A coloured shape, at a free cell if none is given."""
        colour, shape = thing
        self._put(at or self.run(1), SHAPES[shape], COLOURS[colour], None, ("shape", colour, shape))
        self.scene.shapes.append(thing)

    def sign(self, board: str, word: str) -> None:
        """A word on a board, a letter a cell."""
        row, column = self.run(len(word))
        ink = BOARDS["black" if board == "white" else "white"]
        for i, letter in enumerate(word):
            self._put((row, column + i), LETTERS[letter], ink, BOARDS[board], ("sign", board, letter))
        self.scene.signs.append((board, word))

    def _put(
        self, cell: tuple[int, int], bitmap: np.ndarray, ink: tuple, paper: tuple | None, says: tuple[str, str, str]
    ) -> None:
        stamp(self.rng, self.canvas, cell, bitmap, ink, paper)
        label(self.scene, cell, *says)
        self.free[cell] = False

    def done(self) -> Scene:
        """The scene, with the noise over it."""
        canvas = self.canvas + noise(self.rng, *self.canvas.shape[:2])
        self.scene.image = canvas.clip(0, 255).astype(np.uint8)
        return self.scene


def things(rng: np.random.Generator, count: int, without: Thing | None = None) -> list[Thing]:
    """`count` different things; none of them has the colour or the shape of `without`."""
    every = [(c, s) for c in COLOUR_NAMES for s in SHAPE_NAMES if without is None or (c != without[0] and s != without[1])]
    return [every[i] for i in rng.permutation(len(every))[:count]]


def crowd(room: Room, count: int, without: Thing | None = None) -> None:
    """`count` boxes with digits, in three colours: things that stand out and that nobody asks about."""
    colours = [c for c in room.rng.permutation(COLOUR_NAMES) if without is None or c != without[0]][:3]
    for _ in range(count):
        room.box(str(room.rng.choice(colours)), int(room.rng.integers(10)))


def name_of(thing: Thing) -> str:
    """A thing in words."""
    return f"{thing[0]} {thing[1]}"


def salient(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """A scene as in `playground.scenes`, and its questions about objects."""
    scene = scenes.draw(rng, grid)
    asked = [row for row in scenes.questions(rng, scene) if row[0] in ("number", "colour", "shape", "exists")]
    return scene, [("salient", question, answer) for _, question, answer in asked]


def odd(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """A crowd of one thing, and one other thing."""
    room = Room(rng, grid)
    many = things(rng, 1)[0]
    one = things(rng, 1, many)[0]
    for _ in range(int(rng.integers(grid * grid // 16, grid * grid // 11))):
        room.shape(many)
    room.shape(one)
    return room.done(), [("odd", "Which shape is the odd one?", one[1]), ("odd", "What color is the odd one?", one[0])]


def count(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """Up to MOST of each of four things, among boxes."""
    room = Room(rng, grid)
    asked: list[Question] = []
    for thing in things(rng, 4):
        number = int(rng.integers(1, MOST + 1))
        for _ in range(number):
            room.shape(thing)
        asked.append(("count", f"How many {name_of(thing)}s are there?", str(number)))
    crowd(room, grid)
    return room.done(), asked


def wall(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """Two walls by day or by night, before them more boxes than a small budget keeps."""
    room = Room(rng, grid)
    day = bool(rng.integers(2))
    room.light(day)
    crowd(room, int(rng.integers(grid * grid // 14, grid * grid // 10)))
    asked: list[Question] = [("wall", "Is it day or night?", "day" if day else "night")]
    for place, pattern in zip(("upper", "lower"), room.scene.patterns, strict=True):
        asked.append(("wall", f"What pattern has the {place} wall?", pattern))
    return room.done(), asked


def text(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """A white and a black sign among boxes."""
    room = Room(rng, grid)
    asked: list[Question] = []
    for board in rng.permutation(list(BOARDS)):
        word = str(rng.choice(WORDS))
        room.sign(str(board), word)
        asked.append(("text", f"What does the {board} sign say?", word.lower()))
    crowd(room, grid)
    return room.done(), asked


def where(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """Pairs of things side by side, among boxes; halves are asked for off the middle lines."""
    room = Room(rng, grid)
    asked: list[Question] = []
    chosen = things(rng, 6)
    for left, right in zip(chosen[::2], chosen[1::2], strict=True):
        row, column = room.run(2)
        room.shape(left, (row, column))
        room.shape(right, (row, column + 1))
        room.free[max(0, row - 1) : row + 2, max(0, column - 1) : column + 3] = False
        asked.append(("where", f"Which shape is next to the {name_of(left)}?", right[1]))
        asked.append(("where", f"What color is next to the {name_of(right)}?", left[0]))
        if abs(column + 1 - grid / 2) > grid / 12:
            asked.append(("where", f"Is the {name_of(left)} left or right?", "left" if column + 1 < grid / 2 else "right"))
        if abs(row + 0.5 - grid / 2) > grid / 12:
            asked.append(("where", f"Is the {name_of(right)} up or down?", "up" if row + 0.5 < grid / 2 else "down"))
    crowd(room, grid)
    return room.done(), asked


def relation(rng: np.random.Generator, grid: int) -> tuple[Scene, list[Question]]:
    """Five single things, compared where they stand far apart, among boxes."""
    room = Room(rng, grid)
    places = {}
    for thing in things(rng, 5):
        places[thing] = room.run(1)
        room.shape(thing, places[thing])
    asked: list[Question] = []
    for one, other in itertools.permutations(places, 2):
        down, right = np.subtract(places[other], places[one])
        pair = [name_of(thing) for thing in ((one, other) if rng.random() < 0.5 else (other, one))]
        if one[1] != other[1] and FAR * down >= grid:
            asked.append(("relation", f"Which is higher, the {pair[0]} or the {pair[1]}?", one[1]))
        if one[1] != other[1] and FAR * right >= grid:
            asked.append(("relation", f"Which is further left, the {pair[0]} or the {pair[1]}?", one[1]))
    crowd(room, grid)
    return room.done(), asked


NEEDS: dict[str, Callable[[np.random.Generator, int], tuple[Scene, list[Question]]]] = {
    "salient": salient,
    "odd": odd,
    "count": count,
    "wall": wall,
    "text": text,
    "where": where,
    "relation": relation,
}


def draw(rng: np.random.Generator, need: str, grid: int = GRID) -> tuple[Scene, list[Question]]:
    """A scene of `grid` x `grid` cells for a need, and its questions in random order."""
    scene, asked = NEEDS[need](rng, grid)
    return scene, [asked[i] for i in rng.permutation(len(asked))]
