"""Where the files of each benchmark lie in its folder, as LLaVA's evaluation has them, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rich.progress import track

from encoders.errors import UserError
from fastervlm.eval.pictures import BadPicture, open_picture
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
    names = {"question_file": layout.questions, "image_folder": layout.images, "annotation_file": layout.annotations}
    return {option: None if name is None else folder / name for option, name in names.items()}


def inspect(task: Task, folder: Path) -> Iterator[Found]:
    """What is there of a benchmark: files, the number of questions, and the pictures, each opened, with a progress bar."""
    layout = LAYOUTS[task.name]
    questions: list[Question] = []
    for name in layout.names:
        path, origin = folder / name, layout.origins[name]
        if not path.exists():
            yield Found(name, False, "missing", origin)
        elif name == layout.questions and (layout.images is None or (folder / layout.images).is_dir()):
            try:
                questions = task.questions(path, folder / (layout.images or ""))
                yield Found(name, True, f"{len(questions)} questions", origin)
            except UserError as error:
                yield Found(name, False, str(error), origin)
        elif name == layout.images and questions:
            yield Found(name, *_pictures(questions), origin)
        else:
            yield Found(name, True, "there", origin)
    if layout.images is None and questions:
        good, state = _pictures(questions)
        yield Found("pictures in it", good, state, layout.origins[layout.questions])


def _pictures(questions: list[Question]) -> tuple[bool, str]:
    """Whether all pictures of the questions can be opened, and in words how many."""
    shown = {question.image: question for question in questions if question.image is not None}
    bad = [f"{question.image} {reason}" for question in track(shown.values(), "pictures") if (reason := _why_bad(question))]
    if not bad:
        return True, f"{len(shown)} pictures, all readable"
    return False, f"{len(bad)} of {len(shown)} pictures cannot be used, the first: {bad[0]}"


def _why_bad(question: Question) -> str | None:
    """What is wrong with a question's picture, as far as its header tells."""
    try:
        if isinstance(question.image, Path):
            with Image.open(question.image):
                return None
        open_picture(question)
    except BadPicture as error:
        return str(error)
    except FileNotFoundError:
        return "is missing"
    except Exception as error:  # a decoder may raise anything on bad bytes
        return f"cannot be read as a picture ({type(error).__name__})"
    return None
