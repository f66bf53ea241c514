"""Tasks over threads: all done once, errors raised, torch's own setting untouched."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from bet_torchrec.evaluation.threads import for_each


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_task_once_and_one_resource_a_thread(threads: int) -> None:
    made: list[int] = []
    done: list[int] = []
    inside: set[int] = set()
    together = threading.Barrier(threads)

    def resource() -> int:
        made.append(threading.get_ident())
        return threading.get_ident()

    def work(task: int, own: int) -> None:
        assert own == threading.get_ident()
        inside.add(torch.get_num_threads())
        if task < threads:
            together.wait(timeout=20)  # only passes if as many threads are at work
        done.append(task)

    for_each(range(50), work, resource=resource)
    assert sorted(done) == list(range(50))
    assert len(made) == len(set(made)) == threads
    assert inside == {1}
    assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_one_thread_if_not_concurrent(threads: int) -> None:
    idents: set[int] = set()
    for_each(range(9), lambda *_: idents.add(threading.get_ident()), resource=int, concurrent=False)
    assert idents == {threading.get_ident()}


def test_the_first_error_stops_the_rest(threads: int) -> None:
    done: list[int] = []

    def work(task: int, _: int) -> None:
        done.append(task)
        if task == 2:
            raise KeyError(task)

    with pytest.raises(KeyError):
        for_each(range(10_000), work, resource=int)
    assert len(done) < 10_000


def test_no_tasks_at_all(threads: int) -> None:
    for_each([], lambda *_: None, resource=int)
