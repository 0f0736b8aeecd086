"""What the story needs of BOINC's application API: kept by the client's side, and by a twin for a run by hand."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from vmwrapper.boinc.init_data import InitData
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
    """One episode's view of its client.

    What the client told of the job is known inside the episode; before it only `slot`, `resolve`, `requests` and `end`
    may be used.
    """

    @property
    def slot(self) -> Path:
        """The slot directory, absolute."""

    @property
    def init_data(self) -> InitData:
        """What the client says of the job, the host and the volunteer's wishes, as of now.

        It changes as a whole when the client says it anew; what names the job and the client stays.
        Source: BOINC's lib/app_ipc.cpp.
        """

    @property
    def restarts(self) -> bool:
        """Whether somebody starts us again after a temporary failure."""

    @property
    def project(self) -> str:
        """The name of the project's directory, which stands for the project's address."""

    @property
    def project_dir(self) -> Path | None:
        """Beside the slot the only place where the job's files may lie; None where that may be anywhere."""

    @property
    def result_name(self) -> str:
        """The task's name on the project's server, on one line."""

    @property
    def network_suspended(self) -> bool:
        """The volunteer wants no use of the network now. As of the last second."""

    def resolve(self, logical_name: str) -> Path:
        """The file that a logical name stands for; it need not exist."""

    def episode(self) -> AbstractAsyncContextManager[None]:
        """Listen to the client, and hold the slot's lock.

        Entering waits up to 35 s for another wrapper of the slot to end; requests come meanwhile, and cancelling it is
        safe. Raises SlotBusy where the other does not end, ClientUnreachable where there is no way to the client, and
        HostDiskFailed where the slot can't be written to. Once the block was left without an error the job is done, and
        no request comes any more.
        """

    def requests(self) -> AsyncIterator[Request]:
        """What the client wants, as it comes, without end; to be asked for by one at a time, from before the episode.

        The process must have ended, by way of `end`, 50 s after a request to quit or abort: then it is killed.
        Source: BOINC's client/app_control.cpp, ACTIVE_TASK_SET::poll; api/boinc_api.cpp, handle_process_control_msg.
        """

    def report(self, status: Status) -> None:
        """Tell the client how far we are, once a second or so. Only the last one counts, and none while suspended.

        Source: BOINC's client/app_control.cpp, get_app_status_msg.
        """

    async def send_trickle_up(self, variety: str, text: str) -> None:
        """Have a message sent to the project's server while the job runs; it has been written when this returns.

        `variety` (letters, digits, `_.-`) chooses who handles it there; `text` becomes the content of an XML element,
        and has at most 1 MiB. Raises ValueError where they can't be sent, HostDiskFailed where they can't be written,
        and TimeoutError where the client has not taken the last message within 60 s: this one is dropped, the job need
        not care. Source: BOINC's api/boinc_api.cpp, boinc_send_trickle_up; client/cs_trickle.cpp.
        """

    def notify(self, notice: str) -> None:
        """Have the volunteer shown a line once `end` tells that the job is over; only the last one counts.

        Source: BOINC's api/boinc_api.cpp, boinc_finish_message.
        """

    def end(self, error: VmwrapperError | None) -> int:
        """Tell the client how the episode ended, None for success, and return the exit status for our process.

        To be called once, outside the event loop. It takes 40 s where the slot can't be written to.
        Source: BOINC's client/app_control.cpp, handle_exited_app.
        """
