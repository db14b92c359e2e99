"""What a worker of the Ray engine does in its own process; Ray itself is not needed to read or to call it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.answers import Entry
from fastervlm.eval.engine import answered
from fastervlm.eval.preparation import Preparer
from fastervlm.eval.protocol import device_name
from fastervlm.eval.settings import Settings, identity_of
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.measure import Stopwatch


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself once its model is loaded."""

    identity: dict[str, Any]
    device: str
    machine: str


class Worker:
    """A model that answers whole batches, one at a time; the pictures of the next ones are prepared meanwhile.

    `folder` is the working directory of the run, from which relative paths are meant.
    """

    def __init__(self, subject: Subject, settings: Settings, folder: str) -> None:
        self.subject, self.settings, self.folder = subject, settings, folder
        self._turn, self._open = threading.Lock(), ExitStack()

    def ready(self) -> Hello:
        """Load the model, prune it and say what it is.

        Raises:
            UserError: this machine does not have the files of the run, or the model cannot be pruned so.
        """
        machine = socket.gethostname()
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(
                f"The machine {machine} has no folder {self.folder} ({error.strerror}); every machine of the cluster needs the "
                "same files at the same paths."
            ) from None
        subject, settings = self.subject, self.settings
        identity = identity_of(subject, settings)
        handle = self._open.enter_context(pruned(subject, settings))
        self.generator = Answerer(subject, settings, handle)
        self.preparation = preparation(subject, settings)
        self.preparer = Preparer(subject.processor, self.generator.device)
        self.watch = Stopwatch(self.generator.device)
        return Hello(identity, device_name(self.generator.device), machine)

    def answer(self, questions: Sequence[Question]) -> list[Entry]:
        """Answer a batch: an entry for each question."""
        batch = self.preparer.submit(self.preparation, questions).result()
        with self._turn:
            return answered(
                batch, self.generator, self.watch, lambda each: self.preparer.submit(self.preparation, each).result()
            )
