"""Whole episodes, told in simulated time: a client that wants things, jobs of short programs, and what may be left."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.standalone import Standalone
from vmwrapper.checkpoint import read_record
from vmwrapper.errors import AbortRequested, HostDiskFailed, QuitRequested, TemporaryFailure, VmwrapperError
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE
from vmwrapper.hypervisor.memory.backend import IMAGE, MemoryHypervisor, Power
from vmwrapper.hypervisor.memory.guest import MemoryGuest, Program
from vmwrapper.hypervisor.registry import Registry
from vmwrapper.wrapper import Episode, Options

from . import simulated_time


def make_slot(folder: Path) -> Path:
    """Fill a folder with what the jobs need."""
    (folder / "guest.memory").write_bytes(IMAGE)
    (folder / "program").write_bytes(b"the program")
    (folder / "in.dat").write_bytes(b"input")
    return folder


class Client(Standalone):
    """A client that wants things, some of them at set times; remembers what it was told."""

    def __init__(self, slot: Path) -> None:
        self.statuses: list[Status] = []
        self.error: VmwrapperError | None = None
        self.plan: list[tuple[float, Request]] = []
        """Seconds from the beginning of the episode, and what is wanted then."""
        self.took_s = 0.0
        self.trickles: list[tuple[str, str]] = []
        self.trickles_fail = False
        self.notices: list[str] = []
        super().__init__(slot, result_name="result", show=self.statuses.append)

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for after_s, request in self.plan:
            loop.call_later(after_s, self.want, request)
        try:
            async with super().episode():
                yield
        finally:
            self.took_s = loop.time() - began_s

    async def send_trickle_up(self, variety: str, text: str) -> None:
        if self.trickles_fail:
            raise HostDiskFailed("the disk is full")
        self.trickles.append((variety, text))

    def want(self, request: Request) -> None:
        self._requests.put_nowait(request)

    def notify(self, notice: str) -> None:
        self.notices.append(notice)

    def end(self, error: VmwrapperError | None) -> int:
        self.error = error
        return super().end(error)

    @property
    def message(self) -> str:
        return str(self.error)


class WantsAt(logging.Handler):
    """Wants something of the client's as soon as the log says that a phase has begun."""

    def __init__(self, phase: str, want: Callable[[], None]) -> None:
        super().__init__()
        self._phase = phase
        self._want = want
        self.at_s: float | None = None
        """When that was, on the event loop's clock."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._phase) and self.at_s is None:
            self.at_s = asyncio.get_running_loop().time()
            self._want()


@contextmanager
def listening(handler: WantsAt) -> Iterator[WantsAt]:
    logger = logging.getLogger("vmwrapper")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
    assert handler.at_s is not None


@contextmanager
def wanting(client: Client, phase: str, request: Request) -> Iterator[WantsAt]:
    with listening(WantsAt(phase, lambda: client.want(request))) as handler:
        yield handler


OWN = (".vmwrapper", "boinc_")
"""How names in the slot begin that no job may have."""


def task(*lines: str, program: str = "program") -> str:
    return "\n".join(["<task>", "<vm>guest</vm>", f"<innerjob>{program}</innerjob>", *lines, "</task>"])


COPIES = task("<data>in.dat</data>", "<output>out.dat</output>")


def run(
    client: Client,
    hypervisor: MemoryHypervisor,
    *tasks: str,
    boot_limit_s: float = 300.0,
    trickle_period_s: float | None = None,
    leaves_more: bool = False,
) -> int:
    """Run a job of these tasks in simulated time, and see that only what the next episode needs is left of it.

    `leaves_more` is for one that leaves what the next is to remove.
    """
    options = Options(boot_limit_s=boot_limit_s, trickle_period_s=trickle_period_s)
    return simulated_time.run(episode(client, hypervisor, *tasks, options=options, leaves_more=leaves_more))


async def episode(
    client: Client,
    hypervisor: MemoryHypervisor,
    *tasks: str,
    options: Options | None = None,
    leaves_more: bool = False,
) -> int:
    """The same, in any time."""
    job_file = client.slot / "job.xml"
    job_file.write_text("\n".join(["<job_desc>", *tasks, "</job_desc>"]))
    try:
        await Episode(client, Registry((hypervisor,)), options or Options()).run(job_file)
        status = client.end(None)
    except VmwrapperError as error:
        status = client.end(error)
    assert all(machine.power is Power.OFF for machine in hypervisor.machines)
    if not leaves_more:
        check_left(client, client.error)
    return status


def check_left(client: Client, error: BaseException | None) -> None:
    """After an episode that may go on: the record, its snapshots' files, and what a guest shares; else the record."""
    found = {path for path in client.slot.rglob("*") if path.relative_to(client.slot).parts[0].startswith(OWN)}
    folder, record_file = client.slot / MACHINE_FOLDER, client.slot / RECORD_FILE
    if not isinstance(error, QuitRequested | TemporaryFailure):
        assert found <= ({record_file} if client.restarts or isinstance(error, AbortRequested) else set())
    elif (record := read_record(client.slot)) and record.checkpoints:
        names = [f"snapshot-{checkpoint.snapshot.number}" for checkpoint in record.checkpoints]
        found = {path for path in found if not path.is_relative_to(folder / "shared")}
        assert found == {record_file, folder, *(folder / name for name in names)}
    else:
        assert found <= {record_file}


def in_memory(program: Program, *, boot_s: float = 0.0, answer_s: float = 0.0) -> MemoryHypervisor:
    return MemoryHypervisor({"program": program}, boot_s=boot_s, answer_s=answer_s)


async def copy(guest: MemoryGuest) -> int:
    """Write out.dat: in.dat in capital letters."""
    guest.write("/tmp/out.dat", guest.files["/tmp/in.dat"].content.upper())
    return 0


def works(seconds: int) -> Program:
    """A program that can go on from a snapshot, at a loss of less than a second."""

    async def work(guest: MemoryGuest) -> int:
        while (done := done_s(guest)) < seconds:
            await guest.compute(1)
            guest.write("/tmp/done", str(done + 1).encode())
        return await copy(guest)

    return work


def done_s(guest: MemoryGuest) -> int:
    """How many seconds of such a program's work are done."""
    done = guest.files.get("/tmp/done")
    return int(done.content) if done else 0


def computes(seconds: float) -> Program:
    async def compute(guest: MemoryGuest) -> int:
        await guest.compute(seconds)
        return await copy(guest)

    return compute
