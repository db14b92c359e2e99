"""LLaVA-1.5 and LLaVA-NeXT for lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature

from encoders import UserError
from fastervlm.checkpoints.errors import reason
from fastervlm.eval.inputs import inputs_of
from fastervlm.eval.pictures import BadPicture, shaped
from fastervlm.lmms.arguments import PictureArguments
from fastervlm.lmms.asked import Asked
from fastervlm.lmms.model import PrunedModel


class Llava(PrunedModel):
    """LLaVA-1.5, asked by texts."""

    kind = "llava"
    arguments = PictureArguments

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.image_aspect_ratio = self.settings.aspect_ratio(self.subject)

    def inputs(self, asked: Sequence[Asked]) -> BatchFeature:
        """What the processor makes of prompts and pictures, a row for each prompt."""
        return self._processed(asked)

    def _processed(self, asked: Sequence[Asked], **more: Any) -> BatchFeature:
        """The same, with further arguments of the processor."""
        pictures = [[self._shaped(picture, each.where) for picture in each.pictures] for each in asked]
        try:
            return inputs_of(self.subject.processor, [each.prompt for each in asked], pictures, **more)
        except Exception as error:  # a processor may raise anything
            hint = "use batch_size=1" if len(asked) > 1 else "leave that task out"
            raise UserError(f"{asked[0].where} cannot be prepared ({reason(error)}); {hint}.") from error

    def _shaped(self, picture: Image.Image, where: str) -> Image.Image:
        try:
            return shaped(picture, self.image_aspect_ratio, self.subject.processor)
        except BadPicture as error:
            raise UserError(f"{where}: the picture {error}.") from None


class LlavaChat(Llava):
    """LLaVA-1.5, asked by conversations."""

    is_simple = False


class LlavaNext(Llava):
    """LLaVA-NeXT, asked by texts."""

    kind = "llava_next"


class LlavaNextChat(LlavaNext):
    """LLaVA-NeXT, asked by conversations."""

    is_simple = False
