"""Questions about pictures on their way to the model: prepared in threads ahead of it."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from fastervlm.eval.inputs import inputs_of
from fastervlm.eval.media import file_prints
from fastervlm.eval.pictures import GREY, WORKERS, BadPicture, open_picture, shaped
from fastervlm.eval.task import Question
from fastervlm.pictures import Exif, is_turned

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Questions ready for the model.

    `inputs` is what the processor returned, None if every picture (or clip) failed. A picture that several questions ask about
    stands in it once; `image_index` then says which picture each placeholder shows. `turned` are the lines of the questions
    whose picture carries a turn that was ignored, and `prints` says by line what the files held. With `apart` each question
    can be prepared alone, but they cannot be together, and `inputs` is None.
    """

    questions: list[Question]
    inputs: Any
    failures: dict[int, str]
    image_index: list[int] | None = None
    turned: frozenset[int] = frozenset()
    prints: dict[int, str] = field(default_factory=dict)
    apart: bool = False


@dataclass(frozen=True)
class Preparation:
    """How a question becomes model inputs.

    `ask` writes the whole prompt, `blind` replaces each picture by flat grey, and `selector` gives the text whose token ids
    go along as `selector_ids`, if any do; `exif` says whether pictures are turned, see `fastervlm.pictures.read_picture`.
    `shrink` makes a picture smaller before the processor, where the run's method does that.
    `rows` says that each picture is a row of what the processor makes, so that one of several questions can stand there once.
    """

    ask: Callable[[Question], str]
    image_aspect_ratio: str = "pad"
    blind: bool = False
    selector: Callable[[Question], str] | None = None
    exif: Exif = "ignore"
    rows: bool = True
    shrink: Callable[[Image.Image, Any], Image.Image] | None = None

    def __call__(self, questions: Sequence[Question], processor: Any) -> Batch:
        """Open and process the pictures; a question whose picture fails is left out and its reason kept."""
        opened: dict[Any, Image.Image | BadPicture] = {}
        turned: set[Any] = set()
        for question in questions:
            for picture in question.pictures:
                if picture not in opened:
                    opened[picture] = self._try(question.about(picture), processor, turned)
        reasons = {file: str(picture) for file, picture in opened.items() if isinstance(picture, BadPicture)}
        failures = {q.line: why(q, reasons) for q in questions if not reasons.keys().isdisjoint(q.pictures)}
        good = [question for question in questions if question.line not in failures]
        if not good:
            return Batch(good, None, failures)
        files = [picture for question in good for picture in question.pictures]
        shown: list[Any] = [[opened[picture] for picture in question.pictures] for question in good]
        inputs = inputs_of(processor, [self.ask(question) for question in good], shown)
        if self.selector is not None:
            texts = [self.selector(question) for question in good]
            inputs["selector_ids"] = processor.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        first = {file: files.index(file) for file in files}
        ignored = frozenset(question.line for question in good if not turned.isdisjoint(question.pictures))
        if len(first) == len(files) or not self.rows:
            return Batch(good, inputs, failures, turned=ignored)
        for name in inputs.keys() & {"pixel_values", "image_sizes"}:
            inputs[name] = inputs[name][list(first.values())]
        return Batch(good, inputs, failures, [list(first).index(file) for file in files], ignored)

    def _try(self, question: Question, processor: Any, turned: set[Any]) -> Image.Image | BadPicture:
        """The picture, or why it cannot be used; one that still carries a turn is added to `turned`."""
        try:
            picture = open_picture(question, self.exif)
            if is_turned(picture):
                turned.add(question.image)
            return self._shown(picture, processor)
        except BadPicture as error:
            return error

    def picture(self, question: Question, processor: Any) -> Image.Image:
        """The picture as the processor gets it."""
        return self._shown(open_picture(question, self.exif), processor)

    def _shown(self, picture: Image.Image, processor: Any) -> Image.Image:
        picture = shaped(picture, self.image_aspect_ratio, processor)
        picture = picture if self.shrink is None else self.shrink(picture, processor)
        return Image.new("RGB", picture.size, GREY) if self.blind else picture


def why(question: Question, reasons: Mapping[Any, str]) -> str:
    """Why a question cannot be asked, in words that follow the names of its pictures."""
    bad = next(picture for picture in question.pictures if picture in reasons)
    return f"cannot be shown: {bad} {reasons[bad]}" if question.more else reasons[bad]


Preparing = Callable[[Sequence[Question], Any], Batch]
UNASKABLE = "cannot be asked about"


def unaskable(question: Question, error: Exception) -> str:
    """Why a question has no answer though its picture is good, in words that follow the picture's name."""
    try:
        question.text.encode()
    except UnicodeEncodeError:
        return f"{UNASKABLE}: the question holds half a character (a lone surrogate)"
    lines = str(error).strip().splitlines() or [""]
    return f"{UNASKABLE} ({type(error).__name__}: {lines[0][:200]})"


def careful(preparation: Callable[[Sequence[Question], Any], Batch], questions: Sequence[Question], processor: Any) -> Batch:
    """The batch of these questions without those that cannot be prepared, whose reasons are kept: one takes no other along.

    Some processors cannot join pictures of unequal shapes, such as PerceptionLM's; their questions are told `apart`.
    """
    try:
        return preparation(questions, processor)
    except Exception as error:  # a tokenizer or a processor may raise anything
        if len(questions) == 1:
            return Batch([], None, {questions[0].line: unaskable(questions[0], error)})
    failures = {line: why for each in questions for line, why in careful(preparation, [each], processor).failures.items()}
    if not failures:
        return Batch(list(questions), None, {}, apart=True)
    rest = careful(preparation, [each for each in questions if each.line not in failures], processor)
    return replace(rest, failures=failures | rest.failures)


def fingerprinted(
    preparation: Callable[[Sequence[Question], Any], Batch], questions: Sequence[Question], processor: Any
) -> Batch:
    """`careful`, with what the files held."""
    batch = careful(preparation, questions, processor)
    return replace(batch, prints=file_prints(batch.questions))


class Preparer:
    """Threads that prepare batches, each with its own copy of the processor: fast tokenizers are not safe to share.

    They run torch on one core each: several threads that each ask for all cores stand in each other's and the model's way.
    For a model on a CUDA device they put the inputs into page-locked memory, from which they are copied while it computes.
    """

    def __init__(self, processor: Any, device: torch.device = CPU) -> None:
        self._own, self._processor = threading.local(), processor
        self._pins = device.type == "cuda"
        self._cores = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(WORKERS, initializer=self._set_up)

    def submit(self, preparation: Preparing, questions: Sequence[Question]) -> Future[Batch]:
        """The batch of these questions, once it is ready."""
        return self._pool.submit(self._prepare, preparation, questions)

    def close(self) -> None:
        """Give the threads back; what they have not begun is never done."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._cores)

    def _prepare(self, preparation: Preparing, questions: Sequence[Question]) -> Batch:
        batch = fingerprinted(preparation, questions, self._own.processor)
        if self._pins and batch.inputs is not None:
            batch.inputs.update({name: x.pin_memory() for name, x in batch.inputs.items() if isinstance(x, torch.Tensor)})
        return batch

    def _set_up(self) -> None:
        self._own.processor = copy.deepcopy(self._processor)
        torch.set_num_threads(1)


def prepared(
    batches: Iterable[Sequence[Question]],
    preparation: Callable[[Sequence[Question], Any], Batch],
    processor: Any,
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """The batches in order, prepared in threads a few batches ahead of the one handed out, for a model on `device`."""
    return prepared_each(((preparation, batch) for batch in batches), processor, device)


def prepared_each(
    jobs: Iterable[tuple[Preparing, Sequence[Question]]], processor: Any, device: torch.device = CPU
) -> Generator[Batch, None, None]:
    """As `prepared`, where each batch says how it is prepared."""
    waiting = deque()
    with closing(Preparer(processor, device)) as preparer:
        for preparation, batch in jobs:
            waiting.append(preparer.submit(preparation, batch))
            if len(waiting) > WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
