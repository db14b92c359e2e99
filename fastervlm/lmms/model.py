"""What the models for lmms-eval have in common."""

from __future__ import annotations

import abc
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from tqdm import tqdm
from transformers import BatchFeature

from encoders import UserError, UserTypeError
from fastervlm.eval.answerer import on_device, pruned
from fastervlm.eval.medium import selector_of
from fastervlm.lmms.arguments import Arguments
from fastervlm.lmms.asked import Asked, chat, simple
from fastervlm.lmms.likelihood import continuation_of, likelihoods
from fastervlm.lmms.wanted import Wanted, key_of

T = TypeVar("T")


class PrunedModel(lmms, abc.ABC):
    """A model for lmms-eval that keeps some of the visual tokens; what goes wrong is raised.

    Its chat class sets `is_simple` False. `kind` is the `model_type` that it is for; None for all.
    """

    kind: ClassVar[str | None]
    arguments: ClassVar[type[Arguments]] = Arguments

    def __init__(self, **given: Any) -> None:
        super().__init__()
        arguments = self.arguments.read(given)
        self.settings, self.subject = arguments.settings, arguments.subject
        if not self.is_simple and self.settings.conv_mode not in (None, "chat"):
            raise UserError(f"conv_mode={self.settings.conv_mode} is for texts, not for conversations; add --force_simple.")
        family = self.subject.family
        if self.kind not in (None, family.model_type):
            raise UserTypeError(f"{self.subject.path} is a {family.model_type} model; use --model {family.lmms_model}.")
        if not self.is_simple and not self.subject.processor.chat_template:
            raise UserError(f"The processor of {self.subject.path} has no chat template; add --force_simple.")
        if self.settings.shrinks(self.subject):
            raise UserError("'resize' shrinks pictures before the processor, which lmms-eval does not; use fastervlm compare.")
        with pruned(self.subject, self.settings):
            pass  # a model that cannot be pruned is refused before a task is read

    @property
    def device(self) -> torch.device:
        """Where the model is, as lmms-eval asks when several processes share the questions."""
        return self.subject.model.device

    @abc.abstractmethod
    def inputs(self, asked: Sequence[Asked]) -> BatchFeature:
        """What the processor makes of prompts, pictures and clips, a row for each prompt."""

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to each request."""
        where = 1 if self.is_simple else 2
        return self._in_batches(requests, lambda arguments: key_of(arguments[where]), self._answers)

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """For each request the mean loss of its continuation's tokens, and whether greedy generation would write it.

        A loss and no likelihood, because of several choices lmms-eval takes the one with the least, as its own models expect.
        A bare pair lmms-eval 0.7 would turn into text; as the `text` of a `GenerationResult` it gets through.
        """
        if self.settings.in_llm or self.settings.on_top:
            raise UserError(
                f"{self.settings.method_name} chooses by the end of the prompt, which a continuation moves; "
                "for tasks of likelihoods use a method that prunes in front of the language model."
            )
        return [GenerationResult(pair) for pair in self._in_batches(requests, lambda _: "", self._likelihoods)]  # type: ignore[arg-type]

    def generate_until_multi_round(self, requests: list[Any]) -> NoReturn:
        """Refuse tasks of several rounds."""
        raise UserError("Tasks of several rounds (generate_until_multi_round) are not supported; choose others.")

    def clean(self) -> None:
        """Give the model's memory back; it is loaded again if it is asked again."""
        self.subject.__dict__.pop("loaded", None)
        super().clean()

    def _in_batches(
        self, requests: list[Any], key: Callable[[Sequence[Any]], str], answer: Callable[[list[Sequence[Any]]], list[T]]
    ) -> list[T]:
        """What `answer` gives for batches of the same key, longest texts first, in the order of the requests."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number in sorted(range(len(requests)), key=lambda number: -len(requests[number].args[0])):
            groups[key(requests[number].args)].append(number)
        found: dict[int, T] = {}
        size = self.settings.batch_size
        with pruned(self.subject, self.settings), tqdm(total=len(requests), disable=self.rank != 0, desc="Questions") as bar:
            for numbers in groups.values():
                for batch in (numbers[first : first + size] for first in range(0, len(numbers), size)):
                    found |= zip(batch, answer([requests[number].args for number in batch]), strict=True)
                    bar.update(len(batch))
        return [found[number] for number in range(len(requests))]

    def _asked(self, arguments: Sequence[Any]) -> Asked:
        """A request as the model is asked it."""
        documents, processor = self.task_dict, self.subject.processor
        if self.is_simple:
            return simple(arguments, documents, processor, self.settings.conv_mode)
        return chat(arguments, documents, processor)

    def _answers(self, batch: list[Sequence[Any]]) -> list[str]:
        wanted = Wanted.of(batch[0][1 if self.is_simple else 2])
        inputs = self._ready([self._asked(arguments) for arguments in batch])
        tokenizer = self.subject.processor.tokenizer
        ids = self.subject.model.generate(
            **inputs, **wanted.options, stopping_criteria=wanted.stop(tokenizer), pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [wanted.cut(text).strip() for text in texts]

    def _likelihoods(self, batch: list[Sequence[Any]]) -> list[tuple[float, bool]]:
        if any(len(arguments) < 6 for arguments in batch):
            raise UserError("Likelihoods without a document (acc_mutual_info) are not supported; leave that metric out.")
        processor, documents = self.subject.processor, self.task_dict
        asked = [simple(arguments, documents, processor, self.settings.conv_mode) for arguments in batch]
        written = [
            continuation_of(each, arguments, processor.tokenizer, documents)
            for each, arguments in zip(asked, batch, strict=True)
        ]
        return likelihoods(self.subject.model, self._ready([whole for whole, _ in written]), [count for _, count in written])

    def _ready(self, asked: list[Asked]) -> BatchFeature:
        """The inputs on the model's device, with the text to choose by where the method compares with one."""
        inputs, model = self.inputs(asked), self.subject.model
        if selector_of(self.settings) is not None:
            texts = self.subject.processor.tokenizer([each.text for each in asked], padding=True, return_tensors="pt")
            inputs["selector_ids"] = texts["input_ids"]
        return on_device(inputs, model)
