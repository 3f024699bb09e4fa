"""The same work on many things at once, with results in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from musicgen_dreamboothing.console import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, unit: str, doing: str, show: bool = True
) -> Iterator[Result]:
    """The same in threads, for work that C does; Ctrl-C drops what has not begun."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield from progress_bar(
            pool.map(work, items), total=len(items), unit=unit, desc=doing, disable=not show or not items
        )
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, unit: str, doing: str, show: bool = True
) -> Iterator[Result]:
    """Results in the order of the items, under a progress bar; only a few are worked on ahead of what is asked for.

    joblib's processes don't run the program's own script again, as those of the standard library do where they are
    spawned: a plain script without a `__main__` guard may call this. They stay for the next call, in the folder where
    they began: paths have to be absolute.

    Args:
        work: a function that can be pickled.
        items: what it takes.
        workers: processes; with one, or one item, the work is done here.
        unit: of the bar, such as `song`.
        doing: in front of the bar, such as `cutting`.
        show: whether there is a bar.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        results: Iterator[Result] = map(work, items)
    else:
        from joblib import Parallel, delayed

        pool = Parallel(workers, return_as="generator", pre_dispatch="2*n_jobs", mmap_mode=None, max_nbytes=None)
        results = pool(delayed(work)(item) for item in items)
    yield from progress_bar(results, total=len(items), unit=unit, desc=doing, disable=not show or not items)
