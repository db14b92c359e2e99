"""The pool of workers over a Ray that is simulated: calls end in a random order, and workers die as told."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from encoders import UserError
from fastervlm.eval.answers import Entry
from fastervlm.eval.ray_pool import AHEAD, SET_ASIDE, Pool
from fastervlm.eval.ray_worker import Hello
from fastervlm.eval.task import Question


class ActorDied(Exception):
    pass


class TaskFailed(Exception):
    cause: Exception


class FakeRay:
    """`poison` are lines that kill, `deaths` how many more workers die at random, `loads` those that die as they load."""

    exceptions = SimpleNamespace(
        RayActorError=ActorDied,
        RayTaskError=TaskFailed,
        **dict.fromkeys(("OutOfMemoryError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError"), ActorDied),
    )

    def __init__(self, seed, poison=(), deaths=0, loads=(), hellos=()):
        self.rng, self.poison, self.deaths, self.loads = random.Random(seed), set(poison), deaths, loads
        self.hellos, self.hired, self.killed, self.asked, self.most = list(hellos), [], [], [], 0
        self.suspect = set()

    def hire(self):
        self.hired.append(FakeWorker(self))
        return self.hired[-1]

    def wait(self, refs, timeout):
        """One call of a worker comes to its end; if the worker dies, all its calls do."""
        assert len(set(refs)) == len(refs)
        ended = [ref for ref in refs if ref.worker.dead]
        ref = self.rng.choice(ended or [ref for ref in refs if ref is ref.worker.calls[0]])
        self.most = max(self.most, *(len(worker.calls) for worker in self.hired))
        if not ref.worker.dead:
            ref.worker.dead = self._dies(ref)
            if ref.worker.dead:
                self.suspect.update(*(call.lines for call in ref.worker.calls))
            else:
                ref.worker.calls.remove(ref)
        return [ref], [other for other in refs if other is not ref]

    def _dies(self, ref):
        if ref.questions is None:
            return self.hired.index(ref.worker) in self.loads
        if self.deaths and self.rng.random() < 0.2:
            self.deaths -= 1
            return True
        return not self.poison.isdisjoint(ref.lines)

    def get(self, ref):
        if ref.worker.dead:
            raise ActorDied
        if ref.questions is None:
            return self.hellos.pop(0) if self.hellos else Hello({"model": "m"}, "cpu", "here")
        self.asked.append(ref.lines)
        return [Entry(question.line, text="a", seconds=6.0) for question in ref.questions]

    def kill(self, worker):
        self.killed.append(worker)


class FakeWorker:
    def __init__(self, ray):
        self.dead, self.calls, self.ray = False, [], ray
        self.ready = SimpleNamespace(remote=lambda: self.call(None))
        self.answer = SimpleNamespace(remote=self.call)

    def call(self, questions):
        assert not self.dead
        assert all(call.questions is not None for call in self.calls), "it is not ready"
        ref = SimpleRef(self, questions)
        self.calls.append(ref)
        held = [line for call in self.calls for line in call.lines]
        assert len(self.calls) == 1 or self.ray.suspect.isdisjoint(held), "over which a worker died is asked alone"
        return ref


class SimpleRef:
    def __init__(self, worker, questions):
        self.worker, self.questions = worker, questions
        self.lines = [question.line for question in questions or ()]


def batches(count, size):
    questions = [Question(line, line, "?", None) for line in range(1, count + 1)]
    return [questions[start : start + size] for start in range(0, count, size)]


def run(ray, workers, asked):
    """Entries by line of a whole run, each of which came once."""
    told = []
    pool = Pool(ray, ray.hire, workers, told.append, str)
    pool.wait()
    entries = [entry for entries in pool.answers(asked) for entry in entries]
    assert max(Counter(entry.line for entry in entries).values(), default=0) <= 1
    assert {entry.line for entry in entries} == {question.line for batch in asked for question in batch}
    pool.close()
    assert set(map(id, ray.killed)) == set(map(id, ray.hired)), "a worker was left alive"
    assert len(told) == len(ray.hired) - workers
    return {entry.line: entry for entry in entries}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 1), (37, 4), (40, 16), (9, 1)])
def test_whole_batches_are_asked_as_they_are_and_few_at_a_time(workers, count, size):
    for seed in range(5):
        ray = FakeRay(seed)
        found = run(ray, workers, batches(count, size))
        assert {entry.text for entry in found.values()} <= {"a"}
        assert sorted(ray.asked) == [[question.line for question in batch] for batch in batches(count, size)]
        assert ray.most <= AHEAD
        assert len(ray.hired) == workers


def test_workers_share_the_work_and_its_seconds():
    ray = FakeRay(0)
    pool = Pool(ray, ray.hire, 3, print, str)
    pool.wait()
    entries = [entry for entries in pool.answers(batches(90, 1)) for entry in entries]
    assert entries[-1].seconds == 2.0, "three workers give three times six seconds in six"
    assert len(pool.hellos) == 3


@pytest.mark.parametrize("seed", range(40))
def test_only_what_kills_is_set_aside(seed):
    """Some of 40 questions kill every worker; batches that shared a worker with them come through whole."""
    rng = random.Random(seed)
    poison = set(rng.sample(range(1, 41), rng.randint(1, 4)))
    ray = FakeRay(seed, poison)
    asked = batches(40, rng.choice([1, 4, 16]))
    found = run(ray, rng.randint(1, 4), asked)
    assert {line for line, entry in found.items() if entry.failure == SET_ASIDE} == poison
    assert {line for line, entry in found.items() if entry.text == "a"} == set(range(1, 41)) - poison
    whole = [[question.line for question in batch] for batch in asked if poison.isdisjoint(q.line for q in batch)]
    alone = [[line] for batch in asked for line in (q.line for q in batch) if not poison.isdisjoint(q.line for q in batch)]
    assert sorted(ray.asked) == sorted(whole + [each for each in alone if each[0] not in poison])


def test_a_batch_and_then_a_question_kill_two_workers_each():
    ray = FakeRay(0, poison=[6])
    run(ray, 1, batches(8, 4))
    lost = [worker for worker in ray.hired if worker.dead]
    assert [[call.lines for call in worker.calls][-1] for worker in lost] == [[5, 6, 7, 8], [5, 6, 7, 8], [6], [6]]


@pytest.mark.parametrize("seed", range(40))
def test_workers_that_die_for_nothing_cost_no_question(seed):
    """One death, wherever it falls, is never held against a question."""
    ray = FakeRay(seed, deaths=1)
    found = run(ray, 2, batches(40, 4))
    assert {entry.text for entry in found.values()} == {"a"}
    assert sorted(ray.asked) == [[question.line for question in batch] for batch in batches(40, 4)]


@pytest.mark.parametrize("seed", range(40))
def test_each_question_comes_once_however_many_workers_die(seed):
    run(FakeRay(seed, poison=[3, 30], deaths=25, loads={0, 1, 20, 21}), 3, batches(40, 4))


def test_workers_that_die_while_they_load_end_the_run():
    ray = FakeRay(0, loads={0, 1, 2})
    pool = Pool(ray, ray.hire, 1, print, str)
    with pytest.raises(UserError, match=r"3 workers in a row died while they loaded the model; .* fewer by --workers\.$"):
        pool.wait()


def test_a_worker_that_cannot_begin_ends_the_run_with_the_reason(monkeypatch):
    ray = FakeRay(0, loads={0})
    error = ActorDied("a traceback\nModuleNotFoundError: No module named 'mine'\n")
    monkeypatch.setattr(error, "actor_init_failed", True, raising=False)
    monkeypatch.setattr(ray, "get", lambda ref: (_ for _ in ()).throw(error))
    with pytest.raises(
        UserError, match=r"cannot begin \(ModuleNotFoundError: No module named 'mine'\); what the run uses must be"
    ):
        Pool(ray, ray.hire, 1, print, str).wait()


def test_machines_with_other_files_are_refused():
    ray = FakeRay(0, hellos=[Hello({"a": 1, "b": 2, "c": 3}, "cpu", "one"), Hello({"a": 1, "b": 3, "c": 4}, "cpu", "two")])
    told = "machines one and two differ in b, c; every machine of the cluster needs the same files"
    with pytest.raises(UserError, match=told):
        run(ray, 2, batches(50, 1))


def test_a_users_mistake_in_a_worker_is_told_as_it_is(monkeypatch):
    ray = FakeRay(0)
    error = TaskFailed("a long traceback")
    error.cause = UserError("There is no such model.")

    def get(ref):
        raise error

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(UserError, match=r"^There is no such model\.$"):
        Pool(ray, ray.hire, 1, print, str).wait()


@pytest.mark.parametrize(
    ("begun", "said"), [(False, ["No worker has begun yet: each needs 1 CPU (0 of 2 free); the run waits"]), (True, [])]
)
def test_it_is_said_once_if_no_worker_is_given_a_place(monkeypatch, begun, said):
    ray, told, answers = FakeRay(0), [], iter([False, begun, False, begun])
    real = ray.wait

    def wait(refs, timeout):
        ends = next(answers, True)
        return real(refs, timeout) if ends and timeout > 1 else (refs[:1] if ends else [], refs)

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(FakeWorker, "__ray_ready__", SimpleNamespace(remote=lambda: None), raising=False)
    Pool(ray, ray.hire, 1, told.append, lambda: "1 CPU (0 of 2 free)").wait()
    assert [sentence.partition(" until")[0] for sentence in told] == said
