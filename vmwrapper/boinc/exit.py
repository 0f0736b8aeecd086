"""How the process ends: by signals at the right times, and in time, whatever hangs."""

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those by which a process is asked to end."""

_LOG_LIMIT_S = 1.0


class Signals:
    """What a shutdown of the host, or Ctrl-C where a person runs the client, does to us.

    From the making of this on, it ends the process as the system does it by default: the client starts an app again
    that ended by one of these signals, while an exit status, as Python's, would be a computing error. Signals that are
    ignored, as nohup has it, stay ignored. To be used in the main thread.
    """

    def __init__(self) -> None:
        self._numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def heard(self, hear: Callable[[], None]) -> Iterator[None]:
        """In the block they have `hear` called, between any two steps of the main thread; and are ignored after it."""
        for number in self._numbers:
            signal.signal(number, lambda *_: hear())
        try:
            yield
        finally:
            self.ignore()

    def ignore(self) -> None:
        """For good: what has to be written now, so that the client knows how it ended, takes a moment only."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)


class Watchdog:
    """Ends the process, with all below it, a set time after it was asked to end and has not.

    In a thread of its own, so that nothing of ours that hangs can hinder it. After 60 s the client would kill us, and
    leave what it does not know to be ours.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends_at_s = math.inf
        self._said: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # the one that a signal handler may use

    def watch(self) -> None:
        """Begin, once."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end_by(self, exit_status: int) -> None:
        """The process must end soon, by itself or else with this status. The first call counts."""
        self._said.put(exit_status)

    @property
    def left_s(self) -> float:
        """How long the process may still take; without end where it was not asked to end."""
        return self._ends_at_s - time.monotonic()

    def call_off(self) -> None:
        """It is about to end by itself."""
        self._said.put(None)

    def _watch(self) -> None:
        exit_status = self._said.get()
        if exit_status is None:
            return
        self._ends_at_s = time.monotonic() + self._limit_s
        while (left_s := self.left_s) > 0:
            with suppress(queue.Empty):
                if self._said.get(timeout=left_s) is None:
                    return
        _end(exit_status, f"This does not end by itself after {self._limit_s:g} s, so it is killed")


def _end(exit_status: int, words: str) -> None:
    try:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        last_words = threading.Thread(target=log.error, args=[words], daemon=True)  # whoever hangs may hold the log
        last_words.start()
        last_words.join(_LOG_LIMIT_S)
    finally:
        os._exit(exit_status)
