"""A request of lmms-eval as the model is asked it: a whole prompt, and the pictures and clips at its placeholders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval.protocol import ChatMessages
from PIL import Image

from encoders import UserError
from fastervlm.eval.prompts import conversation
from fastervlm.pictures import BadPicture, to_rgb


@dataclass(frozen=True)
class Clip:
    """A video file, or the part of it between two times in seconds."""

    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt with one `<image>` or `<video>` for each of `pictures` and `clips`.

    `text` is the question alone, without them, and `where` says in words whose it is.
    """

    prompt: str
    text: str
    where: str
    pictures: list[Image.Image] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)

    def check(self, processor: Any) -> Asked:
        """Itself, if its placeholders are as many as what is to stand at them."""
        for kind, shown in (("image", self.pictures), ("video", self.clips)):
            token = getattr(processor, f"{kind}_token", None)
            if token is not None and self.prompt.count(token) != len(shown):
                raise UserError(
                    f"{self.where} shows {len(shown)} {kind}s, but its prompt has {self.prompt.count(token)} {token}; "
                    "the task must place none, or one for each."
                )
        return self


def simple(arguments: Sequence[Any], documents: Mapping[str, Any], processor: Any, conv_mode: str | None) -> Asked:
    """A request of a simple model, (text, ..., doc_to_visual, doc_id, task, split).

    Pictures that the text does not place itself stand in front of it, each on a line of its own.
    """
    text, (doc_to_visual, *place) = arguments[0], arguments[2:]
    pictures, clips = _sorted(doc_to_visual(_doc(documents, place)) or [], processor, _where(place))
    kinds = ["image"] * len(pictures) + ["video"] * len(clips)
    ask = conversation(processor, conv_mode, kinds[0] if kinds else "image")
    if any(getattr(processor, f"{kind}_token", f"<{kind}>") != f"<{kind}>" for kind in kinds):
        prompt = _by_template(text, kinds, processor)
    elif any(f"<{kind}>" in text for kind in kinds):
        prompt = ask(text, False)
    else:
        prompt = ask(text, len(kinds)) if len(set(kinds)) < 2 else ask("".join(f"<{kind}>\n" for kind in kinds[1:]) + text)
    bare = text.replace("<image>", "").replace("<video>", "")
    return Asked(prompt, bare, _where(place), pictures, clips).check(processor)


def _by_template(text: str, kinds: Sequence[str], processor: Any) -> str:
    """The prompt of a processor whose placeholders are its own: `<image>` and `<video>` in the text say where they stand."""
    parts = re.split("<(image|video)>", text)
    placed = [{"type": part} if number % 2 else {"type": "text", "text": part} for number, part in enumerate(parts) if part]
    content = placed if len(parts) > 1 else [*({"type": kind} for kind in kinds), *placed]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def chat(arguments: Sequence[Any], documents: Mapping[str, Any], processor: Any) -> Asked:
    """A request of a chat model, (text, doc_to_messages, ..., doc_id, task, split), by the processor's chat template."""
    doc_to_messages, place = arguments[1], arguments[3:]
    turns = ChatMessages(messages=doc_to_messages(_doc(documents, place))).messages
    written = [{"role": turn.role, "content": [_written(part) for part in turn.content]} for turn in turns]
    prompt = processor.apply_chat_template(written, add_generation_prompt=True)
    parts = [part for turn in turns for part in turn.content]
    text = "\n".join(part.text for part in parts if part.type == "text")
    shown = [_shown(part) for part in parts if part.type != "text"]
    return Asked(prompt, text, _where(place), *_sorted(shown, processor, _where(place))).check(processor)


def _written(part: Any) -> dict[str, str]:
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": part.type}


def _shown(part: Any) -> Any:
    """The picture or the clip that a part of a conversation shows; any other part as it is."""
    if part.type == "video" and isinstance(part.url, str | os.PathLike):
        return Clip(Path(part.url), part.start_time, part.end_time)
    return part.url if part.type == "image" and isinstance(part.url, Image.Image) else part


def _doc(documents: Mapping[str, Any], place: Sequence[Any]) -> Any:
    number, task, split = place
    return documents[task][split][number]


def _where(place: Sequence[Any]) -> str:
    return f"Question {place[0]} of {place[1]}"


def _rgb(picture: Image.Image, where: str) -> Image.Image:
    """The picture in 8 bits a channel, turned no further than the task hands it over."""
    try:
        return to_rgb(picture)
    except BadPicture as error:
        raise UserError(f"{where}: the picture {error}.") from None


def _sorted(shown: Sequence[Any], processor: Any, where: str) -> tuple[list[Image.Image], list[Clip]]:
    """The pictures and the clips among what a document shows."""
    pictures, clips = [], []
    for each in shown:
        if isinstance(each, Image.Image):
            pictures.append(_rgb(each, where))
        elif isinstance(each, Clip):
            clips.append(each)
        elif isinstance(each, str | os.PathLike):
            clips.append(Clip(Path(each)))
        else:
            raise UserError(f"{where} shows a {type(each).__name__}; pictures (PIL) and video files (paths) are known.")
    if clips and not hasattr(processor, "video_token"):
        raise UserError(f"{where} shows a video, for which this model is not made; use fastervlm_video_llava.")
    return pictures, clips
