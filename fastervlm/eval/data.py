"""What is there of a benchmark in its folder, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import UserError
from fastervlm.eval.answers import check_annotations
from fastervlm.eval.layout import Layout
from fastervlm.eval.pictures import WORKERS, BadPicture, open_picture
from fastervlm.eval.questions import read_json, read_jsonl
from fastervlm.eval.task import Question, Task
from fastervlm.reporting.progress import track

ROOT = Path("playground") / "data" / "eval"


def layout_of(task: Task) -> Layout:
    """How the benchmark's folder is laid out.

    Raises:
        UserError: it has no folder of its own.
    """
    if task.layout is None:
        raise UserError(f"{task.name} has no folder of its own; give its files one by one.")
    return task.layout


@dataclass(frozen=True)
class Found:
    """One file or folder of a benchmark: what is there, and where it comes from; `good` if nothing is wrong with it."""

    name: str
    good: bool
    state: str
    origin: str


def files_of(task: Task, folder: Path) -> dict[str, Path | None]:
    """Question file, image folder and annotations of a benchmark in its folder.

    Raises:
        UserError: something is missing.
    """
    layout = layout_of(task)
    missing = [name for name in layout.names if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"The data of {task.name} are not complete in {folder}: {', '.join(missing)} missing; "
            f"fastervlm data {task.name} --dir {folder} says where to get them."
        )
    names = {"question_file": layout.questions, "media_folder": layout.images, "annotation_file": layout.annotations}
    return {option: None if name is None else folder / name for option, name in names.items()}


def inspect(task: Task, folder: Path) -> Iterator[Found]:
    """What is there of a benchmark: its files, each read, and the pictures, each opened whole, with a progress bar."""
    layout = layout_of(task)
    asked, wrong = _questions(task, layout, folder)
    for name in layout.names:
        path, origin = folder / name, layout.origins[name]
        if not path.exists():
            yield Found(name, False, "missing", origin)
        elif name == layout.images and not path.is_dir():
            yield Found(name, False, "is no folder", origin)
        elif name == layout.questions and wrong:
            yield Found(name, False, wrong, origin)
        else:
            told = list(_told(task, layout, folder, name, asked))
            yield Found(name, all(good for good, _ in told), "; ".join(state for _, state in told) or "there, not read", origin)
    if layout.images is None and asked:
        yield Found("pictures in it", *_pictures(asked), layout.origins[layout.questions])


def _questions(task: Task, layout: Layout, folder: Path) -> tuple[list[Question], str | None]:
    """The questions, and what is wrong with them; none and nothing while file or pictures are missing."""
    file, images = folder / layout.questions, folder / (layout.images or "")
    if not file.exists() or not images.is_dir():
        return [], None
    try:
        return task.questions(file, images), None
    except UserError as error:
        return [], str(error)


def _told(task: Task, layout: Layout, folder: Path, name: str, asked: list[Question]) -> Iterator[tuple[bool, str]]:
    """Whether a file or folder is good, and why, for each part it has in the benchmark."""
    if name in layout.more:
        yield _filled(folder / name)
    if not asked:
        return
    if name == layout.questions:
        released = layout.released or len(asked)
        yield (
            True,
            f"{len(asked)} questions" if len(asked) == released else f"{len(asked)} questions, {released} in the release",
        )
    if name == layout.images:
        yield _pictures(asked)
    if name == layout.annotations:
        yield _annotations(task, folder / name, folder / layout.questions, asked)


def _annotations(task: Task, path: Path, question_file: Path, asked: list[Question]) -> tuple[bool, str]:
    """Whether every question has a right answer, as a run asks before it begins."""
    try:
        check_annotations(task, asked, path, question_file)
    except UserError as error:
        return False, str(error)
    return True, "a right answer to each question"


def _filled(path: Path) -> tuple[bool, str]:
    """Whether a further file can be read and holds something."""
    try:
        found = read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)
    except UserError as error:
        return False, str(error)
    return (True, f"{len(found)} entries") if isinstance(found, list | dict) and found else (False, "holds nothing")


def _pictures(questions: list[Question]) -> tuple[bool, str]:
    """Whether all pictures of the questions can be opened, and in words how many."""
    shown = list({picture: each.about(picture) for each in questions for picture in each.pictures}.values())
    with ThreadPoolExecutor(WORKERS) as pool:
        reasons = list(track(pool.map(_why_bad, shown), "pictures", len(shown)))
    bad = [f"{question.image} {reason}" for question, reason in zip(shown, reasons, strict=True) if reason]
    if not bad:
        return True, f"{len(shown)} pictures, all readable"
    return False, f"{len(bad)} of {len(shown)} pictures cannot be used, the first: {bad[0]}"


def _why_bad(question: Question) -> str | None:
    """What is wrong with a question's picture, which is read to its end."""
    try:
        open_picture(question)
    except BadPicture as error:
        return str(error)
    return None
