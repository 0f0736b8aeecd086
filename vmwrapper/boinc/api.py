"""What the story needs of BOINC's application API: kept by the client's side, and by a twin for a run by hand."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from vmwrapper.errors import VmwrapperError


class Request(Enum):
    """What the client can want of us at any moment."""

    SUSPEND = "suspend"
    RESUME = "resume"
    QUIT = "quit"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """How much has been computed."""

    floating_point: float
    integer: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the client is told once a second."""

    fraction_done: float
    """0 to 1."""
    cpu_time_s: float
    """Total over all episodes."""
    activity: str
    """What is being done just now, for a person."""
    checkpoint_cpu_time_s: float = 0.0
    """The CPU time at the last checkpoint: whenever it changes, the client takes it for a new one."""
    want_network: bool = False
    working_set_bytes: int | None = None
    """Memory of the wrapper and its machine that is in RAM."""
    other_pid: int | None = None
    """A hypervisor's process that is not our descendant. The client kills it when we exit; never 0 or less."""
    operations: Operations | None = None
    """What the program says that it has computed so far, over all episodes."""


class AppApi(Protocol):
    """One episode's view of its client. As a context manager it holds the slot's lock; entering raises SlotBusy."""

    @property
    def slot(self) -> Path:
        """The slot directory, absolute."""

    @property
    def project(self) -> str: ...

    @property
    def project_dir(self) -> Path | None:
        """Beside the slot the only place where the job's files may lie; None where that may be anywhere."""

    @property
    def result_name(self) -> str: ...

    def resolve(self, logical_name: str) -> Path:
        """The file that a logical name stands for; it need not exist."""

    def episode(self) -> AbstractAsyncContextManager[None]:
        """Hold the slot's lock and listen to the client. Raises SlotBusy where another wrapper does."""

    def requests(self) -> AsyncIterator[Request]:
        """What the client wants, as it comes, without end."""

    def report(self, status: Status) -> None:
        """Tell the client how far we are."""

    def end(self, error: VmwrapperError | None) -> int:
        """Tell the client how the episode ended, None for success, and return the exit status for our process."""
