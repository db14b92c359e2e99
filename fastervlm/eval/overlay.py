"""A picture of what pruning kept."""

from __future__ import annotations

from pathlib import Path

import fastervlm
from encoders.errors import UserError
from fastervlm.eval.generator import Generator, preparation, pruned
from fastervlm.eval.pictures import BadPicture
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject


def save_overlay(subject: Subject, settings: Settings, path: Path) -> None:
    """Ask the first question with a sound picture once more, for one token, and save the picture with the kept patches."""
    prepare = preparation(subject, settings)
    for question in checked_questions(settings):
        try:
            picture = prepare.picture(question, subject.processor)
        except BadPicture:
            continue
        with pruned(subject, settings) as handle:
            Generator(subject, settings, handle).warm_up(prepare([question], subject.processor))
            fastervlm.overlay(picture, handle.trace[0]).save(path)
        return
    raise UserError("There is no picture to draw on: none of them can be read.")
