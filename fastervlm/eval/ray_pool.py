"""A pool of workers that may die: batches in, entries out, each question once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import Entry
from fastervlm.eval.ray_worker import Hello
from fastervlm.eval.task import Question

AHEAD = 3  # batches a worker holds: the model answers one, the others are prepared
DEADLY = 2  # so many workers die over a batch, then its questions are asked one by one; then over a question
LOADS = 3  # so many workers in a row die before they are ready, then the run ends
PATIENCE = 30.0  # seconds without a worker, then it is said what the run waits for
SET_ASIDE = "kills every worker that is asked about it"


@dataclass
class _Ask:
    """Questions for one call of a worker; `alone` those over which a worker died and which must not take others along."""

    questions: list[Question]
    deaths: int = 0
    one_by_one: bool = False

    @property
    def alone(self) -> bool:
        return self.deaths > 0 or self.one_by_one


@dataclass(eq=False)
class _Place:
    """A worker's place in the pool; a new worker takes it when one dies."""

    worker: Any
    hello: Hello | None = None
    asked: dict[Any, _Ask] = field(default_factory=dict)


class Pool:
    """`count` workers, made by `hire`; `tell` says what happens to them, `needs` what each has to be given, in words.

    A worker holds at most `AHEAD` batches and gets the next one when it has answered one, so that nothing piles up. Over
    which of its batches a worker died nobody knows: each is asked again alone. If that kills another worker, its questions are
    asked one by one; a question that does so twice is set aside as a failure.
    """

    def __init__(
        self, ray: Any, hire: Callable[[], Any], count: int, tell: Callable[[str], None], needs: Callable[[], str]
    ) -> None:
        self._ray, self._hire, self._tell, self._needs = ray, hire, tell, needs
        self._lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.ObjectLostError,
        )
        self._fresh: deque[_Ask] = deque()
        self._suspects: deque[_Ask] = deque()
        self._waiting: dict[Any, _Place] = {}
        self._lost_loading, self._patient = 0, True
        self.hellos: list[Hello] = []
        self._places = [self._fill_place(_Place(None)) for _ in range(count)]

    def wait(self) -> None:
        """Wait until the first worker is ready; the others may take longer."""
        while not self.hellos:
            self._next()

    def close(self) -> None:
        """End all workers."""
        for place in self._places:
            self._ray.kill(place.worker)

    def answers(self, batches: Sequence[list[Question]]) -> Generator[list[Entry], None, None]:
        """What came of each batch, or of a part of it, as it comes.

        Raises:
            UserError: workers die while they load the model, or one of them does not have the files of the others.
        """
        self._fresh.extend(map(_Ask, batches))
        while self._fresh or self._suspects or any(place.asked for place in self._places):
            self._ask()
            entries = self._next()
            if entries:
                yield entries

    def _fill_place(self, place: _Place) -> _Place:
        place.worker, place.hello = self._hire(), None
        self._waiting[place.worker.ready.remote()] = place
        return place

    def _ask(self) -> None:
        """Give questions to workers, the idlest first; those to be asked alone to workers that hold nothing."""
        ready = [place for place in self._places if place.hello is not None]
        for held in range(AHEAD):
            for place in ready:
                if len(place.asked) != held or any(ask.alone for ask in place.asked.values()):
                    continue
                if self._suspects and not held:
                    self._hand(place, self._suspects.popleft())
                elif self._fresh and (not held or len(self._fresh) >= len(ready)):  # the last ones are for who is idle
                    self._hand(place, self._fresh.popleft())

    def _hand(self, place: _Place, ask: _Ask) -> None:
        ref = place.worker.answer.remote(ask.questions)
        place.asked[ref] = ask
        self._waiting[ref] = place

    def _next(self) -> list[Entry]:
        """Wait until something happens, or not for long; gives what it brought, if that are entries."""
        ended, _ = self._ray.wait(list(self._waiting), timeout=PATIENCE)
        if not ended:
            self._say_what_for()
            return []
        (ref,) = ended
        place = self._waiting.pop(ref)
        try:
            found = self._ray.get(ref)
        except self._lost as error:
            return self._replace(place, place.asked.pop(ref, None), error)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise type(error.cause)(str(error.cause)) from None
            raise
        if isinstance(found, Hello):
            self._welcome(place, found)
            return []
        del place.asked[ref]
        working = sum(place.hello is not None for place in self._places)
        return [replace(entry, seconds=entry.seconds / working) for entry in found]

    def _say_what_for(self) -> None:
        """Say, once, that no worker has been given its place; those that load a model for long are not meant."""
        if not self._patient or any(place.hello is not None for place in self._places):
            return
        begun, _ = self._ray.wait([place.worker.__ray_ready__.remote() for place in self._places], timeout=1)
        if not begun:
            self._patient = False
            self._tell(
                f"No worker has begun yet: each needs {self._needs()}; the run waits until Ray's other jobs leave it that."
            )

    def _welcome(self, place: _Place, hello: Hello) -> None:
        first = self.hellos[0] if self.hellos else hello
        if other := [key for key, value in first.identity.items() if hello.identity.get(key) != value]:
            raise UserError(
                f"The machines {first.machine} and {hello.machine} differ in {', '.join(other)}; every machine of the cluster "
                "needs the same files at the same paths."
            )
        place.hello, self._lost_loading, self._patient = hello, 0, True
        self.hellos.append(hello)

    def _replace(self, place: _Place, ask: _Ask | None, error: Exception) -> list[Entry]:
        """Put a new worker into the place of a dead one, whose questions are asked again or set aside."""
        asked = [*([ask] if ask else []), *place.asked.values()]
        for ref in place.asked:
            del self._waiting[ref]
        place.asked.clear()
        if place.hello is None:
            self._count_unready(error)
        self._ray.kill(place.worker)
        number = sum(len(ask.questions) for ask in asked)
        self._tell(
            f"A worker was lost; another takes its place{f', and {number} questions are asked again' if number else ''}."
        )
        self._fill_place(place)
        return [entry for ask in asked for entry in self._again(ask)]

    def _count_unready(self, error: Exception) -> None:
        """End the run if workers cannot begin."""
        if getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"A worker cannot begin ({reason}); what the run uses must be importable on every machine."
            ) from error
        self._lost_loading += 1
        if self._lost_loading == LOADS:
            raise UserError(
                f"{LOADS} workers in a row died while they loaded the model; there may be too little memory for so many, "
                "ask for fewer by --workers."
            ) from error

    def _again(self, ask: _Ask) -> list[Entry]:
        """Line up questions over which a worker died, or an entry for one that is not asked any more."""
        ask.deaths += 1
        if ask.deaths < DEADLY:
            self._suspects.append(ask)
        elif not ask.one_by_one:
            self._suspects.extend(_Ask([question], one_by_one=True) for question in ask.questions)
        else:
            return [Entry(question.line, failure=SET_ASIDE) for question in ask.questions]
        return []
