"""Ctrl-C and SIGTERM: an exception at once, or a request that work answers when its current step is complete."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"stopping: this update is finished and saved first; once more stops at once\n"


class Stopped(KeyboardInterrupt):
    """A signal asks the process to stop.

    Attributes:
        number: of the signal; a shell expects the exit code 128 + number.
    """

    def __init__(self, text: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = int(number)


def signal_number(error: KeyboardInterrupt) -> int:
    """The signal behind an interrupt; Python's own knows Ctrl-C only."""
    return error.number if isinstance(error, Stopped) else int(signal.SIGINT)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Makes SIGTERM raise `Stopped`, as Ctrl-C raises KeyboardInterrupt: half-written files are removed on the way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Stopped("", number)

    with _handled((signal.SIGTERM,), interrupt):
        yield


class StopRequest:
    """Whether the process was asked to stop.

    Attributes:
        number: of the signal, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._raises = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM only set `number` in here; a second one raises `Stopped` at once."""
        with _handled(SIGNALS, self._note):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be left at any point: it raises `Stopped` once a stop was or is asked for."""
        self._raises = True
        try:
            if self.number:
                raise Stopped("", self.number)
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.number = bool(self.number), number
        if again or self._raises:
            raise Stopped("", number)
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # nobody reads the output any more
                os.write(1, NOTICE)  # `print` can't be entered twice, and the signal may have come inside of it


@contextmanager
def _handled(numbers: tuple[int, ...], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles signals in here, and puts the earlier handlers back.

    Only the main thread can; what is ignored (`nohup`, a job in the background) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, handle)
        yield
    finally:
        for number in ours:
            signal.signal(number, earlier[number])
