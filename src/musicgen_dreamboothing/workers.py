"""Maps a function over items in threads or processes, with results in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from musicgen_dreamboothing.console import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, unit: str, doing: str, show: bool = True
) -> Iterator[Result]:
    """Results in the order of the items, computed only a few ahead of what is consumed.

    joblib's processes don't run the program's own script again, so that one without a `__main__` guard may call this.
    They stay for the next call, with the working directory of the first: paths have to be absolute.

    Args:
        work: a function that can be pickled.
        items: its arguments.
        workers: processes; with one, or one item, the work is done in this process.
        unit: of the progress bar, such as `song`.
        doing: label of the progress bar, such as `cutting`.
        show: whether there is a progress bar.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        results: Iterator[Result] = map(work, items)
    else:
        from joblib import Parallel, delayed

        pool = Parallel(workers, return_as="generator", pre_dispatch="2*n_jobs", mmap_mode=None, max_nbytes=None)
        results = pool(delayed(work)(item) for item in items)
    yield from progress_bar(results, total=len(items), unit=unit, desc=doing, disable=not show or not items)


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, unit: str, doing: str, show: bool = True
) -> Iterator[Result]:
    """As `in_processes`, in threads, for work that C does; Ctrl-C cancels what has not started."""
    pool = ThreadPoolExecutor(max(1, workers))
    results = pool.map(work, items)
    try:
        yield from progress_bar(results, total=len(items), unit=unit, desc=doing, disable=not show or not items)
    finally:
        pool.shutdown(cancel_futures=True)
