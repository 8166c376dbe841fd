"""Work shared out over processes and taken back in order, of which no single piece can stop the others."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from .probing import Unusable

Task = tuple[Any, Callable[..., Any], tuple[Any, ...]]
"""What the work is about, a function of a module, and its arguments."""


def end_with_parent() -> None:
    """Let this process end when the one that started it is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class OrderedPool:
    """Processes that work ahead, a little; their results come in the order of the tasks.

    A task that takes its process down (a decoder that crashes, a machine out of memory) is tried once more, alone; if
    it does so again, its result is an ``Unusable``.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # Forked processes would inherit locks of the threads that decoders and progress bars have.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=end_with_parent)

    def __enter__(self) -> "OrderedPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
        """Pairs (what the task is about, result). Tasks of another call may be done in between."""
        tasks = iter(tasks)
        waiting: deque[tuple[Task, Future[Any]]] = deque()
        while True:
            while len(waiting) < 2 * self.workers and (task := next(tasks, None)) is not None:
                waiting.append((task, self._submit(task)))
            if not waiting:
                return
            task, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                result = self._alone(task)
            yield task[0], result

    def _submit(self, task: Task) -> "Future[Any]":
        _, function, arguments = task
        try:
            return self.executor.submit(function, *arguments)
        except BrokenProcessPool:
            self.executor = self._start()
            return self.executor.submit(function, *arguments)

    def _alone(self, task: Task) -> Any:
        """Others that broke with it come here too, one after the other, so each is judged by itself."""
        _, function, arguments = task
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as executor:
            try:
                return executor.submit(function, *arguments).result()
            except BrokenProcessPool:
                return Unusable("decoder crashed")
