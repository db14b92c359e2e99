"""A picture of what pruning kept."""

from __future__ import annotations

from pathlib import Path

import fastervlm
from encoders.errors import UserError
from fastervlm.eval.answers import writable_folder
from fastervlm.eval.generator import Generator, pruned
from fastervlm.eval.pictures import BadPicture, Preparation
from fastervlm.eval.prompts import conversation
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject


def save_overlay(subject: Subject, settings: Settings, path: Path) -> None:
    """Ask the first question once more, for one token, and save its picture with the kept patches."""
    writable_folder(path.parent)
    question = checked_questions(settings)[0]
    ask = conversation(subject.processor, settings.conv_mode)
    preparation = Preparation(lambda q: ask(settings.task.prompt(q)), settings.image_aspect_ratio)
    try:
        picture = preparation.picture(question, subject.processor)
    except BadPicture as error:
        raise UserError(f"There is no picture to show: {question.image} {error}.") from None
    with pruned(subject.model, settings) as handle:
        Generator(subject, settings).warm_up(preparation([question], subject.processor))
        fastervlm.overlay(picture, handle.trace[0]).save(path)
