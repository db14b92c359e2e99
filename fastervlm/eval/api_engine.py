"""The engine that is a server: any that speaks OpenAI's protocol, asked question by question, several at a time.

The server turns text and pictures into a prompt by the model's own chat template, and says what model it is. Answers come back
to the one process that writes the journal, so that a run resumes as any other does.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from PIL import Image

from encoders.errors import UserError
from fastervlm.eval.answers import Entry
from fastervlm.eval.chat import Chat, NoReply
from fastervlm.eval.engine import Running
from fastervlm.eval.media import file_prints
from fastervlm.eval.pictures import GREY, BadPicture, open_picture, pad_to_square
from fastervlm.eval.preparation import UNASKABLE, why
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.pictures import is_turned
from fastervlm.reporting.files import hash_files

OF_THE_SERVER = "of the server"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # the colour around a picture that is padded for CLIP
# What changes from start to start of one server.
_PASSING = ("created", "permission", "status")


@dataclass(frozen=True)
class ApiEngine:
    """A model behind an OpenAI-compatible server.

    Attributes:
        chat: the server, and the model's name there.
        workers: how many questions wait for an answer at a time.
        visual_tokens: asked for with each question (`mm_processor_kwargs`); None leaves it to the server.
    """

    chat: Chat
    workers: int = 8
    visual_tokens: int | float | None = None

    @contextmanager
    def running(self, subject: Subject, settings: Settings) -> Iterator[Running]:
        """The server, which has to know the model; threads that ask it end with the context.

        Raises:
            UserError: it cannot be reached, refuses the key, or has no such model; or a setting is of models in this process.
        """
        if settings.conv_mode not in (None, "chat"):
            raise UserError(f"A server writes prompts by its own template; leave --conv-mode {settings.conv_mode} out.")
        if settings.image_aspect_ratio not in (None, "pad", "square"):
            raise UserError(
                f"A server cuts pictures as its model reads them; leave --image-aspect-ratio {settings.image_aspect_ratio} out."
            )
        try:
            yield _Asked(self, settings, self._told())
        finally:
            self.chat.stopped.set()

    def _told(self) -> dict[str, Any]:
        """What the server says of the model."""
        try:
            models = self.chat.models()
        except NoReply as error:
            raise UserError(
                f"The models of the server are not known: {error}; is {self.chat.base} the right address?"
            ) from None
        found = {each.get("id"): each for each in models}
        if self.chat.model not in found:
            names = ", ".join(map(str, found)) or "none"
            raise UserError(f"The server at {self.chat.base} has no model {self.chat.model!r}; it has: {names}.")
        told = {key: value for key, value in found[self.chat.model].items() if key not in _PASSING}
        return told | {"other_names": [name for name in found if name != self.chat.model]}


class _Asked:
    def __init__(self, engine: ApiEngine, settings: Settings, told: dict[str, Any]) -> None:
        self.engine, self.settings, self.chat = engine, settings, engine.chat
        self.device = f"server at {self.chat.base}"
        self.about = {"engine": "api", "api_base": self.chat.base.rstrip("/"), "workers": engine.workers}
        self.identity = _identity(engine, settings, told)

    def answers(self, batches: Sequence[list[Question]]) -> Generator[list[Entry], None, None]:
        """Each question as it is answered; what the server has answered when it fails is kept."""
        left, last = iter(chain.from_iterable(batches)), time.monotonic()
        pool = ThreadPoolExecutor(self.engine.workers)
        try:
            waiting: set[Future[Entry]] = {pool.submit(self._entry, each) for each in islice(left, self.engine.workers)}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                waiting |= {pool.submit(self._entry, each) for each in islice(left, len(done))}
                now, failed = time.monotonic(), [future for future in done if future.exception()]
                yield [_timed(future.result(), (now - last) / len(done)) for future in done if future not in failed]
                last = now
                for future in failed:
                    future.result()  # which raises
        finally:
            self.chat.stopped.set()
            pool.shutdown(cancel_futures=True)

    def _entry(self, question: Question) -> Entry:
        """The answer to a question, or why there is none.

        Raises:
            UserError: the server will answer none.
        """
        settings = self.settings
        try:
            content, turned = self._content(question)
        except BadPicture as error:
            return Entry(question.line, failure=str(error))
        prints = file_prints([question])
        fields: dict[str, Any] = {"max_tokens": settings.longest_answer, "temperature": settings.temperature}
        if settings.temperature:
            fields["seed"] = settings.seed + question.line
        if self.engine.visual_tokens is not None:
            fields["mm_processor_kwargs"] = {"visual_tokens": self.engine.visual_tokens}
        try:
            text = self.chat([{"role": "user", "content": content}], **fields)
        except NoReply as error:
            if error.everybody:
                raise UserError(f"{error}; give the same command again once it answers.") from None
            return Entry(question.line, failure=f"{UNASKABLE} ({error})")
        return Entry(question.line, text=settings.task.post_process(text), turned=turned, print=prints.get(question.line))

    def _content(self, question: Question) -> tuple[list[dict[str, Any]], bool]:
        """A question as OpenAI's protocol writes it, its pictures first; and whether a turn of one is ignored."""
        text = {"type": "text", "text": self.settings.task.prompt(question)}
        shown = []
        for picture in question.pictures:
            try:
                shown.append(self._shown(question.about(picture)))
            except BadPicture as error:
                raise BadPicture(why(question, {picture: str(error)})) from error
        urls = [{"type": "image_url", "image_url": {"url": _data(picture)}} for picture, _ in shown]
        return [*urls, text], any(turned for _, turned in shown)

    def _shown(self, question: Question) -> tuple[Image.Image, bool]:
        """The picture of a question about one, as the server gets it, and whether a turn of it is ignored."""
        picture = open_picture(question, self.settings.exif)
        turned = is_turned(picture)
        if self.settings.image_aspect_ratio == "pad":
            picture = pad_to_square(picture, CLIP_MEAN)
        if self.settings.blind:
            picture = Image.new("RGB", picture.size, GREY)
        return picture, turned


def _timed(entry: Entry, seconds: float) -> Entry:
    return Entry(entry.line, entry.text, entry.failure, seconds, turned=entry.turned, print=entry.print)


def _data(picture: Image.Image) -> str:
    """The pixels as a data URL, without loss and without notes of a camera, which a server would turn it by."""
    file = io.BytesIO()
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _identity(engine: ApiEngine, settings: Settings, told: dict[str, Any]) -> dict[str, Any]:
    """All that the answers depend on, as far as a server tells."""
    pruned = told.get("fastervlm")
    kept: dict[str, Any] = pruned if isinstance(pruned, dict) else _of_names(engine.chat.model, told["other_names"])
    asked, tokens = engine.visual_tokens, kept.get("visual_tokens", OF_THE_SERVER)
    if asked is not None:  # a server that tells of no pruning may have ignored it
        tokens = asked if "visual_tokens" in kept else f"{asked} asked {OF_THE_SERVER}"
    return {
        "task": settings.task.name,
        "model": engine.chat.model.rstrip("/").rpartition("/")[2],
        "weights_sha256": None,
        "processor_sha256": None,
        "method": kept.get("method", OF_THE_SERVER),
        "visual_token_num": tokens,
        "prompt_template": "chat",
        "image_aspect_ratio": settings.image_aspect_ratio or "square",
        "anyres": None,
        "blind": settings.blind,
        "exif": settings.exif,
        "image_folder": settings.media_folder and str(settings.media_folder.resolve()),
        "dtype": None,
        "quantize": None,
        "max_new_tokens": settings.longest_answer,
        "temperature": float(settings.temperature),
        "seed": settings.seed if settings.temperature > 0 else None,
        "question_file_sha256": hash_files([settings.question_file]),
        "limit": settings.limit,
        "server": told,
    }


def _of_names(model: str, names: Sequence[object]) -> dict[str, Any]:
    """What is kept, by the second name that `fastervlm serve` gives a model: MODEL:visual_tokens=58,method=cls."""
    for name in map(str, names):
        if name.startswith(f"{model}:visual_tokens="):
            told = (part.partition("=") for part in name.removeprefix(f"{model}:").split(","))
            parts: dict[str, Any] = {key: value for key, _, value in told}
            count = parts["visual_tokens"]
            return {**parts, "visual_tokens": int(count) if count.isdigit() else float(count)}
    return {}
