"""The same work on many clips, by one process or several."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm


def spread(
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int = 1,
    desc: str = "",
    weigh: Callable[[Any], int] | None = None,
) -> Iterator[Any]:
    """``work(job)`` of every job, in order, under a progress bar.

    Args:
        work: with several workers a function of a module (or a ``partial`` of one); a new process imports it.
        workers: processes; 1 works in this one.
        weigh: how many units a job is, for the bar; by default one.
    """
    total = len(jobs) if weigh is None else sum(map(weigh, jobs))
    with ExitStack() as stack:
        results: Iterator[Any]
        if workers > 1 and len(jobs) > 1:
            count = min(workers, len(jobs))
            threads = max(1, (os.cpu_count() or 1) // count)
            context = multiprocessing.get_context("spawn")  # a forked process must not use torch's threads
            pool = ProcessPoolExecutor(count, context, _prepare, (threads,))
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(work, jobs)
        else:
            results = map(work, jobs)
        bar = stack.enter_context(tqdm(total=total, desc=desc, unit="clip", disable=None))
        for job, result in zip(jobs, results, strict=True):
            bar.update(1 if weigh is None else weigh(job))
            yield result


def _prepare(threads: int) -> None:
    """A worker shares the machine with the others, and leaves Ctrl-C to the process that started it."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
