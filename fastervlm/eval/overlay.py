"""A picture of what pruning kept."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

import fastervlm
from encoders.errors import UserError
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.preparation import careful
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.crops import NEWLINE, cut
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.inllm.trace import TokenTrace
from fastervlm.overlays import Trace
from fastervlm.reporting.files import whole
from fastervlm.selection.trace import ImageTrace


def save_overlay(subject: Subject, settings: Settings, path: Path) -> None:
    """Ask the first question with one sound picture once more, for one token, and save the picture with the kept patches."""
    prepare = preparation(subject, settings)
    for question in checked_questions(settings):
        batch = careful(prepare, [question], subject.processor)
        if len(question.pictures) != 1 or batch.inputs is None:
            continue
        picture = prepare.picture(question, subject.processor)
        with pruned(subject, settings) as handle:
            Answerer(subject, settings, handle).warm_up(batch)
            trace = handle.trace
        shown = patches_of(trace[0], picture, subject) if settings.in_llm else trace
        with whole(path) as file:
            fastervlm.overlay(picture, shown).save(file, "PNG")
        return
    raise UserError("There is no picture to draw on: none can be read that a question shows alone.")


def patches_of(trace: TokenTrace, picture: Image.Image, subject: Subject) -> Trace:
    """The patches behind the visual tokens of a prompt that shows one picture; scores below 0 count as 0."""
    scores, index = trace.scores.cpu().clamp(min=0), trace.index.cpu()
    side = subject.side_of("image")
    if side is None or "image" not in subject.family.rows:
        raise UserError(
            f"Which part of a picture a token in the prompts of a {subject.family.class_name} shows is not known behind its "
            "language model; draw a method that prunes in front of it."
        )
    if not subject.has_crops:
        return ImageTrace(scores, index, (side, side))
    way = cut((picture.height, picture.width), subject.model.config, subject.anyres.layout)
    is_patch, tokens = way.source != NEWLINE, way.source[index]
    mask = torch.zeros(way.crops * side**2, dtype=torch.bool)
    mask[tokens[tokens != NEWLINE]] = True
    ranked = torch.zeros(way.crops * side**2)
    ranked[way.source[is_patch]] = scores[is_patch]
    return CropsTrace(ranked.view(way.crops, -1), mask.view(way.crops, -1), tokens, way, subject.anyres.layout)
