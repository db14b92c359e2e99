"""How a benchmark's folder is laid out, as LLaVA's evaluation has it, and where its files come from."""

from __future__ import annotations

from dataclasses import dataclass, field

# Where several benchmarks take files from.
LLAVA = "eval.zip, linked in docs/Evaluation.md of https://github.com/haotian-liu/LLaVA"
COCO = "https://cocodataset.org/#download"


@dataclass(frozen=True)
class Layout:
    """The files of a benchmark, by their names in its folder.

    `origins` says where each comes from, `more` are files beside them that are read too, `folder` is the usual name of the
    folder itself, and `released` how many questions the release has that the names are of. Pictures may be in the question
    file, and the right answers with a server.
    """

    folder: str
    questions: str
    images: str | None
    annotations: str | None
    origins: dict[str, str] = field(hash=False)
    more: tuple[str, ...] = ()
    released: int | None = None

    @classmethod
    def of(
        cls,
        folder: str,
        questions: str,
        images: str | None,
        annotations: str | None,
        *origins: str,
        released: int | None = None,
    ) -> Layout:
        """A layout without further files, its origins in the order of the names."""
        names = dict.fromkeys(name for name in (questions, images, annotations) if name is not None)
        return cls(folder, questions, images, annotations, dict(zip(names, origins, strict=True)), released=released)

    @property
    def names(self) -> list[str]:
        """All the files and folders, once each."""
        named = (self.questions, self.images, self.annotations, *self.more)
        return list(dict.fromkeys(name for name in named if name is not None))
