"""Short clips of the rooms of `playground.scenes`: things that stay, come, go and move, and questions about them.

A clip is a number of moments, one frame each. Walls and strokes stay; every object is drawn anew in each frame, up to a pixel
off its cell. A box may change its number once, a shape may come, go or wander, a sign may come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from playground.glyphs import LETTERS, SHAPES
from playground.scenes import (
    BOARDS,
    COLOUR_NAMES,
    COLOURS,
    SHAPE_NAMES,
    WORDS,
    Scene,
    absent,
    background,
    is_there,
    label,
    noise,
    place,
    stamp,
    strokes,
)

GRID, FRAMES = 16, 8
QUESTION_TYPES = ("number", "sign", "colour", "exists", "where", "change", "order", "move")
SHORT_WORDS = tuple(word for word in WORDS if len(word) <= 4)
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

Cell = tuple[int, int]


@dataclass(frozen=True)
class Thing:
    """An object through a clip: `names` and `cells` hold one entry a moment, None while it is not there.

    `kind` is "box", "shape" or "sign", a name is a digit, a shape or a word, and a sign's cell is its first letter's.
    """

    kind: str
    colour: str
    names: tuple[str, ...]
    cells: tuple[Cell | None, ...]
    direction: str | None = None

    @property
    def first(self) -> int:
        """The first moment at which it is there."""
        return next(moment for moment, cell in enumerate(self.cells) if cell is not None)


@dataclass
class Clip:
    """`scenes` are the moments in order, each with its own picture and labels; `things` are what they show."""

    scenes: list[Scene]
    things: list[Thing]

    @property
    def frames(self) -> np.ndarray:
        """(F, H, W, 3) uint8."""
        return np.stack([scene.image for scene in self.scenes])

    def of(self, kind: str) -> list[Thing]:
        """The things of one kind."""
        return [thing for thing in self.things if thing.kind == kind]


def draw_clip(rng: np.random.Generator, grid: int = GRID, moments: int = FRAMES) -> Clip:
    """Draw a clip of frames of `grid` x `grid` cells; the number of objects grows with the grid."""
    shape = (grid, grid)
    kind, colour, identity = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
    room = Scene(np.empty((0,)), kind, colour, identity)
    canvas = background(rng, room)
    strokes(rng, canvas, count=int(rng.integers(grid // 4, grid // 2)))
    things = _things(rng, grid, moments)
    return Clip([_moment(rng, room, canvas, things, moment) for moment in range(moments)], things)


def _moment(rng: np.random.Generator, room: Scene, canvas: np.ndarray, things: Sequence[Thing], moment: int) -> Scene:
    """The frame of one moment."""
    frame = canvas.copy()
    scene = replace(room, kind=room.kind.copy(), colour=room.colour.copy(), identity=room.identity.copy())
    for thing in things:
        cell = thing.cells[moment]
        if cell is not None:
            _draw_thing(rng, frame, scene, thing, cell, thing.names[moment])
    frame += noise(rng, *frame.shape[:2])
    scene.image = frame.clip(0, 255).astype(np.uint8)
    return scene


def _draw_thing(rng: np.random.Generator, frame: np.ndarray, scene: Scene, thing: Thing, cell: Cell, name: str) -> None:
    if thing.kind == "shape":
        stamp(rng, frame, cell, SHAPES[name], COLOURS[thing.colour], None)
        label(scene, cell, "shape", thing.colour, name)
        return
    dark = thing.colour in ("yellow", "orange", "white")
    for i, letter in enumerate(name):
        at = (cell[0], cell[1] + i)
        stamp(rng, frame, at, LETTERS[letter], BOARDS["black" if dark else "white"], (COLOURS | BOARDS)[thing.colour])
        label(scene, at, thing.kind, thing.colour, letter)


def _things(rng: np.random.Generator, grid: int, moments: int) -> list[Thing]:
    """What a clip shows: those that move first, as they need the most room; what finds no room is left out."""
    free = np.ones((grid, grid), dtype=bool)
    names = [str(name) for name in rng.permutation(SHAPE_NAMES)]
    small = grid < GRID
    found = [_mover(rng, free, names.pop(), moments) for _ in range(1 if small else int(rng.integers(1, 3)))]
    if rng.random() < (0.35 if small else 0.75):
        found.append(_sign(rng, free, moments))
    changing = 1 if small else 2
    boxes = rng.permutation(COLOUR_NAMES)[: changing + int(rng.integers(1, 3))]
    found += [_box(rng, free, str(colour), moments, i < changing) for i, colour in enumerate(boxes)]
    stays = rng.permutation(3)[: int(rng.integers(2, 4))]
    found += [_shape(rng, free, names.pop(), moments, int(stay)) for stay in stays]
    return [thing for thing in found if thing is not None]


def _shape(rng: np.random.Generator, free: np.ndarray, name: str, moments: int, stay: int) -> Thing | None:
    """A shape that stays (0), comes (1) or goes (2)."""
    cell, colour = place(rng, free, 1), str(rng.choice(COLOUR_NAMES))
    if cell is None:
        return None
    turn = int(rng.integers(1, moments))
    there = [stay == 0 or (moment >= turn) == (stay == 1) for moment in range(moments)]
    return Thing("shape", colour, (name,) * moments, tuple(cell if here else None for here in there))


def _box(rng: np.random.Generator, free: np.ndarray, colour: str, moments: int, changes: bool) -> Thing | None:
    """A box whose number stays or changes once."""
    cell = place(rng, free, 1)
    if cell is None:
        return None
    before, after = (str(digit) for digit in rng.choice(10, 2, replace=False))
    turn = int(rng.integers(1, moments)) if changes else moments
    return Thing("box", colour, (before,) * turn + (after,) * (moments - turn), (cell,) * moments)


def _sign(rng: np.random.Generator, free: np.ndarray, moments: int) -> Thing | None:
    """A sign of a short word, there from the start or from some moment of the first half on."""
    word, board = str(rng.choice(SHORT_WORDS)), str(rng.choice(list(BOARDS)))
    cell = place(rng, free, len(word))
    if cell is None:
        return None
    turn = int(rng.integers(moments // 2 + 1))
    return Thing("sign", board, (word,) * moments, (None,) * turn + (cell,) * (moments - turn))


def _mover(rng: np.random.Generator, free: np.ndarray, name: str, moments: int) -> Thing | None:
    """A shape that goes straight on, a cell a moment or slower."""
    direction = str(rng.choice(list(DIRECTIONS)))
    down, right = DIRECTIONS[direction]
    length = int(rng.integers(math.ceil(moments / 2), moments + 1))
    placed = place(rng, free if right else free.T, length)
    if placed is None:
        return None
    row, column = placed if right else placed[::-1]
    steps = np.linspace(0, length - 1, moments).round().astype(int)
    if down + right < 0:
        steps = steps[::-1]
    cells = tuple((row + abs(down) * int(step), column + abs(right) * int(step)) for step in steps)
    return Thing("shape", str(rng.choice(COLOUR_NAMES)), (name,) * moments, cells, direction)


def clip_questions(rng: np.random.Generator, clip: Clip) -> list[tuple[str, str, str]]:
    """All questions with one right answer, as (type, question, answer), in random order; existence is asked twice."""
    asked = _about_boxes(clip) + _about_shapes(rng, clip)
    asked += [("sign", f"What does the {sign.colour} sign say?", sign.names[0].lower()) for sign in clip.of("sign")]
    return [asked[i] for i in rng.permutation(len(asked))]


def _about_boxes(clip: Clip) -> list[tuple[str, str, str]]:
    asked = []
    for box in clip.of("box"):
        question = f"What number is in the {box.colour} box"
        if len(set(box.names)) == 1:
            asked.append(("number", f"{question}?", box.names[0]))
            continue
        asked.append(("change", f"{question} at the start?", box.names[0]))
        asked.append(("change", f"{question} at the end?", box.names[-1]))
    return asked


def _about_shapes(rng: np.random.Generator, clip: Clip) -> list[tuple[str, str, str]]:
    things = clip.of("shape")
    pairs = [(thing.colour, thing.names[0]) for thing in things]
    asked = [("colour", f"What color is the {shape}?", colour) for colour, shape in pairs[-2:]]
    asked += [("move", f"Where does the {one.names[0]} move?", one.direction) for one in things if one.direction]
    asked += _where(clip, things) + _order(rng, things)
    if things:
        shown = replace(clip.scenes[0], shapes=pairs)
        asked.append(("exists", is_there(*pairs[rng.integers(len(pairs))]), "yes"))
        asked.append(("exists", is_there(*absent(rng, shown)), "no"))
    return asked


def _where(clip: Clip, things: Sequence[Thing]) -> list[tuple[str, str, str]]:
    """On which side a shape is that does not move; none for those within a cell of the middle."""
    asked, middle = [], (clip.scenes[0].kind.shape[1] - 1) / 2
    for thing in things:
        off = next(cell for cell in thing.cells if cell is not None)[1] - middle
        if thing.direction is None and abs(off) > 1:
            asked.append(("where", f"Is the {thing.names[0]} left or right?", "left" if off < 0 else "right"))
    return asked


def _order(rng: np.random.Generator, things: Sequence[Thing]) -> list[tuple[str, str, str]]:
    """Which of two shapes came first, for pairs that came at different moments."""
    asked = []
    pairs = [(i, j) for i in range(len(things)) for j in range(i)]
    for i, j in rng.permutation(pairs).reshape(-1, 2):
        one, other = (things[i], things[j]) if rng.random() < 0.5 else (things[j], things[i])
        if one.first != other.first:
            early = one if one.first < other.first else other
            asked.append(("order", f"Which came first, the {one.names[0]} or the {other.names[0]}?", early.names[0]))
    return asked[:3]
