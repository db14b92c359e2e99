"""Where the files of each benchmark lie in its folder, as LLaVA's evaluation has them, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from encoders.errors import UserError
from fastervlm.eval.answers import check_annotations
from fastervlm.eval.pictures import WORKERS, BadPicture, open_picture
from fastervlm.eval.questions import read_json, read_jsonl
from fastervlm.eval.task import Question, Task

ROOT = Path("playground") / "data" / "eval"

_LLAVA = "eval.zip, linked in docs/Evaluation.md of https://github.com/haotian-liu/LLaVA"
_COCO = "https://cocodataset.org/#download"
_VQA = "https://visualqa.org/download.html"
_GQA = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_TEXTVQA = "https://textvqa.org/dataset"
_SQA = "https://github.com/lupantech/ScienceQA"
_POPE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_MMBENCH = "https://github.com/open-compass/MMBench"
_AOKVQA = "https://github.com/allenai/aokvqa"
_OCRVQA = "https://ocr-vqa.github.io"


@dataclass(frozen=True)
class Layout:
    """The files of a benchmark, by their names in its folder.

    `origins` says where each comes from, `more` are files beside them that are read too, and `folder` is the usual name of
    the folder itself. Pictures may be in the question file, and the right answers with a server.
    """

    folder: str
    questions: str
    images: str | None
    annotations: str | None
    origins: dict[str, str] = field(hash=False)
    more: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All the files and folders, once each."""
        named = (self.questions, self.images, self.annotations, *self.more)
        return list(dict.fromkeys(name for name in named if name is not None))


def _layout(folder: str, questions: str, images: str | None, annotations: str | None, *origins: str) -> Layout:
    """A layout without further files, its origins in the order of the names."""
    names = dict.fromkeys(name for name in (questions, images, annotations) if name is not None)
    return Layout(folder, questions, images, annotations, dict(zip(names, origins, strict=True)))


_PID, _VQA_TEST = "pid_splits.json", "llava_vqav2_mscoco_test2015.jsonl"
_MME = "MME_Benchmark_release_version"
LAYOUTS: dict[str, Layout] = {
    "gqa": _layout(
        "gqa", "llava_gqa_testdev_balanced.jsonl", "data/images", "data/testdev_balanced_questions.json", _LLAVA, _GQA, _GQA
    ),
    "vqav2": Layout(
        "vqav2",
        "llava_vqav2_mscoco_test-dev2015.jsonl",
        "test2015",
        None,
        {"llava_vqav2_mscoco_test-dev2015.jsonl": _LLAVA, "test2015": _VQA, _VQA_TEST: _LLAVA},
        (_VQA_TEST,),
    ),
    "vizwiz": _layout("vizwiz", "llava_test.jsonl", "test", None, _LLAVA, "https://vizwiz.org/tasks-and-datasets/vqa/"),
    "sqa": Layout(
        "sqa",
        "llava_test_CQM-A.json",
        "images/test",
        "problems.json",
        {"llava_test_CQM-A.json": _LLAVA, "images/test": _SQA, "problems.json": _SQA, _PID: _SQA},
        (_PID,),
    ),
    "textvqa": _layout(
        "textvqa",
        "llava_textvqa_val_v051_ocr.jsonl",
        "train_images",
        "TextVQA_0.5.1_val.json",
        *(_LLAVA, f"train_val_images.zip of {_TEXTVQA}", _TEXTVQA),
    ),
    "pope": _layout("pope", "llava_pope_test.jsonl", "val2014", "coco", _LLAVA, _COCO, _POPE),
    "mme": _layout(
        "MME", "llava_mme.jsonl", _MME, _MME, _LLAVA, "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"
    ),
    "mmbench": _layout("mmbench", "mmbench_dev_20230712.tsv", None, "mmbench_dev_20230712.tsv", _MMBENCH),
    "mmbench_cn": _layout("mmbench_cn", "mmbench_dev_cn_20231003.tsv", None, "mmbench_dev_cn_20231003.tsv", _MMBENCH),
    "mmvet": _layout("mm-vet", "llava-mm-vet.jsonl", "images", None, _LLAVA, "https://github.com/yuweihao/MM-Vet"),
    "aokvqa": _layout("aokvqa", "aokvqa_v1p0_val.json", "val2017", "aokvqa_v1p0_val.json", _AOKVQA, _COCO),
    "ocrvqa": _layout("ocrvqa", "dataset.json", "images", "dataset.json", _OCRVQA, f"{_OCRVQA}, each under its key"),
}
# Questions of the releases that the layouts are of.
RELEASED = {
    "gqa": 12578,
    "vqav2": 107394,
    "vizwiz": 8000,
    "sqa": 4241,
    "textvqa": 5000,
    "pope": 8910,
    "mme": 2374,
    "mmbench": 4377,
    "mmbench_cn": 4329,
    "mmvet": 218,
    "aokvqa": 1145,
}


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
    layout = LAYOUTS[task.name]
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
    layout = LAYOUTS[task.name]
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
        released = RELEASED.get(task.name, len(asked))
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
    shown = list({question.image: question for question in questions if question.image is not None}.values())
    with ThreadPoolExecutor(WORKERS) as pool:
        reasons = list(track(pool.map(_why_bad, shown), "pictures", total=len(shown)))
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
