"""Turns: one at a time, the newest state, an end in any case."""

import gc
import threading

import pytest

from fastervlm.demo.turns import in_turn


def test_states_come_in_order_and_the_last_always():
    lock = threading.Lock()
    for _ in range(20):
        states: list[int] = list(in_turn(lock, lambda show, stopped: [show(i) for i in range(100)]))
        assert states == sorted(states)
        assert states[-1] == 99
    assert list(in_turn(lock, lambda show, stopped: None)) == []


def test_a_state_is_there_before_the_work_is_done():
    go_on = threading.Event()

    def work(show, stopped):
        show("first")
        assert go_on.wait(30)
        show("second")

    states = in_turn(threading.Lock(), work)
    assert next(states) == "first"
    go_on.set()
    assert list(states) == ["second"]


def test_an_error_comes_behind_the_states_and_frees_the_lock():
    lock = threading.Lock()

    def work(show, stopped):
        show(1)
        raise ZeroDivisionError

    states = in_turn(lock, work)
    assert next(states) == 1
    with pytest.raises(ZeroDivisionError):
        next(states)
    assert not lock.locked()


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_who_leaves_stops_the_work_and_frees_the_lock(leave):
    lock, ended = threading.Lock(), threading.Event()

    def work(show, stopped):
        show(0)
        while not stopped():
            threading.Event().wait(0.001)
        ended.set()

    states = in_turn(lock, work)
    assert next(states) == 0
    if leave == "close":
        states.close()
    del states
    gc.collect()
    assert ended.wait(30)
    assert lock.acquire(timeout=30)


def test_who_waits_has_a_turn_in_the_end():
    lock = threading.Lock()
    began = threading.Event()
    lock.acquire()
    waiting = in_turn(lock, lambda show, stopped: began.set())
    taker = threading.Thread(target=lambda: list(waiting), daemon=True)
    taker.start()
    other = in_turn(lock, lambda show, stopped: show("mine"))
    lock.release()
    assert list(other) == ["mine"]
    taker.join(30)
    assert began.is_set()


def test_one_at_a_time():
    lock, inside, most = threading.Lock(), [], []

    def work(show, stopped):
        inside.append(1)
        most.append(len(inside))
        show(len(most))
        threading.Event().wait(0.005)
        inside.pop()

    users = [threading.Thread(target=lambda: list(in_turn(lock, work))) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join(30)
    assert most == [1] * 8
