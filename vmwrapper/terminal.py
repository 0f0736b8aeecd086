"""How far a job is, for a person: a line that moves on a terminal, plain lines of the log otherwise."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmwrapper.boinc.api import Status

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s (%(process)d): %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_PLAIN_EVERY_S = 60.0

Show = Callable[[Status], None]


def log_to_stderr(level: int) -> None:
    """One line per event, as it ends up in the client's stderr.txt."""
    logging.basicConfig(format=LOG_FORMAT, datefmt=DATE_FORMAT, stream=sys.stderr, force=True)
    logging.getLogger("vmwrapper").setLevel(level)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs what it also raises


@contextmanager
def progress_display() -> Iterator[Show]:
    """What shows a status, for the length of the block; log lines go above it."""
    if sys.stderr and sys.stderr.isatty():
        with _moving_line() as show:
            yield show
    else:
        yield _plain_lines()


def _plain_lines() -> Show:
    shown_at = time.monotonic()

    def show(status: Status) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= _PLAIN_EVERY_S:
            shown_at = time.monotonic()
            log.info("%.1f %% done, %.0f s of CPU time, %s", *_figures(status), status.activity)

    return show


@contextmanager
def _moving_line() -> Iterator[Show]:
    from rich.console import Console  # noqa: PLC0415  (60 ms that a run under the client has no use for)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}")
    # rich puts what is printed meanwhile above its line, the log included, since that goes to sys.stderr.
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        console.show_cursor()  # so that there is one left whatever ends us
        line = bar.add_task("starting", total=1.0, figures="")
        log_to_stderr(logging.getLogger("vmwrapper").level)

        def show(status: Status) -> None:
            figures = "{:.0f} %, {:.0f} s of CPU time".format(*_figures(status))
            bar.update(line, completed=status.fraction_done, description=status.activity, figures=figures)

        yield show


def _figures(status: Status) -> tuple[float, float]:
    return 100 * status.fraction_done, status.cpu_time_s
