"""Whole tasks a thread, each thread doing its own tensor operations alone."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Task = TypeVar("Task")
Resource = TypeVar("Resource")


def for_each(
    tasks: Iterable[Task],
    work: Callable[[Task, Resource], None],
    *,
    resource: Callable[[], Resource],
    concurrent: bool = True,
) -> None:
    """Call ``work(task, the thread's own resource)`` for every task, without autograd.

    As many threads as torch may use here (``torch.get_num_threads``), one if not concurrent. The
    first error stops the rest and is raised.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    threads = min(torch.get_num_threads(), waiting.qsize()) if concurrent else 1

    def run() -> None:
        own = resource()
        with torch.inference_mode():
            while (task := _next(waiting)) is not None:
                try:
                    work(task, own)
                except BaseException:
                    _empty(waiting)
                    raise

    if threads <= 1:
        run()
        return
    allowed = torch.get_num_threads()
    ready = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes the number over at its first look at it
        ready.wait()

    with ThreadPoolExecutor(threads, initializer=start) as pool:
        running = [pool.submit(run) for _ in range(threads)]
        ready.wait()
        # The number is also what threads of others will take over: put it back at once.
        torch.set_num_threads(allowed)
        try:
            for future in running:
                future.result()
        except BaseException:  # Ctrl-C too: the pool waits for its threads
            _empty(waiting)
            raise


def _next(waiting: queue.SimpleQueue[Task]) -> Task | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def _empty(waiting: queue.SimpleQueue[Task]) -> None:
    while _next(waiting) is not None:
        pass
