"""Whole episodes whose last machine is kept, on the hypervisor in memory, in real time and with real sockets."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vmwrapper.boinc.api import Request
from vmwrapper.errors import (
    GuestError,
    GuestPanicked,
    GuestPoweredOff,
    GuestSilent,
    MachineExited,
    NobodyThere,
    ProgramFailed,
    QuitRequested,
    TimeLimitExceeded,
    VmwrapperError,
)
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor, Power
from vmwrapper.hypervisor.memory.guest import MemoryGuest, Program
from vmwrapper.hypervisor.registry import Registry
from vmwrapper.shell.client import Session
from vmwrapper.wrapper import Episode, Options

from .episodes import COPIES, Client, WantsAt, check_left, computes, copy, in_memory, listening, make_slot, task

KEPT = "The machine of program is kept"
PATIENCE_S = 10.0


@pytest.fixture
def slot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """Its path is longer than a socket's name may be."""
    caplog.set_level(logging.INFO)
    slot = tmp_path / ("long" * 30)
    slot.mkdir()
    return make_slot(slot)


@pytest.fixture
def client(slot: Path) -> Client:
    return Client(slot)


@asynccontextmanager
async def keeping(
    client: Client, hypervisor: MemoryHypervisor, *tasks: str, phase: str = KEPT, boot_limit_s: float = 60.0
) -> AsyncIterator["asyncio.Task[None]"]:
    """The episode of a job of these tasks, in the block from a phase on; it has ended after it."""
    job_file = client.slot / "job.xml"
    job_file.write_text("\n".join(["<job_desc>", *tasks, "</job_desc>"]))
    options = Options(boot_limit_s=boot_limit_s, keep=True)
    there = asyncio.Event()
    with listening(WantsAt(phase, there.set)):
        episode = asyncio.create_task(Episode(client, Registry((hypervisor,)), options).run(job_file))
        async with asyncio.timeout(PATIENCE_S):
            await there.wait()
    try:
        yield episode
        await asyncio.wait([episode], timeout=PATIENCE_S)
        assert episode.done()
    finally:
        episode.cancel()
    assert all(machine.power is Power.OFF for machine in hypervisor.machines)
    check_left(client, episode.exception())


async def shell(slot: Path, command: str) -> int:
    return await asyncio.to_thread(Session(slot, limit_s=PATIENCE_S).run, command)


async def fail(guest: MemoryGuest) -> int:
    return 3


async def test_job_that_is_done_waits_with_its_outputs_in_place_and_its_inputs_in_the_guest(
    client: Client, slot: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with keeping(client, in_memory(copy), COPIES) as episode:
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert await shell(slot, "cat /tmp/in.dat") == 0
        assert await shell(slot, "false") == 1
        assert not episode.done()
        client.want(Request.QUIT)
    assert episode.exception() is None
    assert capfd.readouterr().out == "input"


async def test_progress_is_complete_while_the_machine_is_kept(client: Client) -> None:
    async with keeping(client, in_memory(copy), COPIES):
        async with asyncio.timeout(PATIENCE_S):
            while not client.statuses or client.statuses[-1].activity != "kept":
                await asyncio.sleep(0.05)
        assert client.statuses[-1].fraction_done == 1
        client.want(Request.QUIT)


@pytest.mark.parametrize(
    ("program", "boot_s", "error"),
    [
        (fail, 0.0, ProgramFailed),
        (computes(100), 0.0, TimeLimitExceeded),
        (computes(0), math.inf, GuestSilent),
    ],
)
async def test_job_that_failed_waits_and_ends_with_its_own_error(
    client: Client, slot: Path, program: Program, boot_s: float, error: type[VmwrapperError]
) -> None:
    limited = COPIES.replace("<data>", "<time_limit>1</time_limit><data>")
    async with keeping(client, in_memory(program, boot_s=boot_s), limited, boot_limit_s=1) as episode:
        assert (slot / ".vmwrapper/shell").is_socket()
        assert await shell(slot, "true") == 0
        client.want(Request.QUIT)
    assert type(episode.exception()) is error


@pytest.mark.parametrize("end", [GuestPanicked("panic"), GuestPoweredOff("off"), MachineExited("killed")])
async def test_guest_that_died_leaves_its_console_and_no_shell(client: Client, slot: Path, end: VmwrapperError) -> None:
    async def die(guest: MemoryGuest) -> int:
        guest.machine.say(b"famous last \x1b[31mwords\n")
        guest.machine.end(end)
        return 0

    async with keeping(client, in_memory(die), COPIES) as episode:
        with pytest.raises(GuestError, match=f"no guest any more: {end}"):
            await shell(slot, "true")
        assert (slot / ".vmwrapper/console.txt").read_text() == "famous last \N{REPLACEMENT CHARACTER}[31mwords\n"
        assert not episode.done()
        client.want(Request.QUIT)
    assert episode.exception() is end


@pytest.mark.parametrize(("program", "error"), [(copy, type(None)), (fail, ProgramFailed)])
async def test_guest_that_dies_while_it_is_kept_ends_the_job_as_it_was(
    client: Client, caplog: pytest.LogCaptureFixture, program: Program, error: type
) -> None:
    hypervisor = in_memory(program)
    async with keeping(client, hypervisor, COPIES) as episode:
        hypervisor.machines[0].end(GuestPanicked("the guest's kernel panicked"))
    assert type(episode.exception()) is error
    assert "The kept machine ended by itself: the guest's kernel panicked" in caplog.text


async def test_only_the_machine_in_which_the_job_ends_is_kept(client: Client, slot: Path) -> None:
    hypervisor = MemoryHypervisor({"first": copy, "program": fail, "third": copy})
    for name in ("first", "third"):
        (slot / name).write_bytes(b"")
    tasks = [task("<data>in.dat</data>", program=name) for name in ("first", "program", "third")]
    async with keeping(client, hypervisor, *tasks) as episode:
        assert [machine.power for machine in hypervisor.machines] == [Power.OFF, Power.RUNNING]
        client.want(Request.QUIT)
    assert type(episode.exception()) is ProgramFailed


async def test_shell_looks_into_a_running_job_and_quitting_that_keeps_nothing(client: Client, slot: Path) -> None:
    async with keeping(client, in_memory(computes(100)), COPIES, phase="Running the program") as episode:
        assert await shell(slot, "cat /tmp/in.dat") == 0
        client.want(Request.QUIT)
    assert type(episode.exception()) is QuitRequested


async def test_shell_whose_machine_goes_away_says_so(client: Client, slot: Path) -> None:
    async with keeping(client, in_memory(copy), COPIES):
        asking = asyncio.create_task(shell(slot, "sleep 100"))
        await asyncio.sleep(0.3)
        assert not asking.done()
        client.want(Request.QUIT)
        with pytest.raises(NobodyThere, match="is gone"):
            await asking


async def test_without_being_asked_to_nothing_is_kept_and_nobody_let_in(client: Client, slot: Path) -> None:
    async def look_for_the_door(guest: MemoryGuest) -> int:
        with pytest.raises(NobodyThere):
            await shell(slot, "true")
        return 0

    job_file = slot / "job.xml"
    job_file.write_text(f"<job_desc>{task()}</job_desc>")
    async with asyncio.timeout(PATIENCE_S):
        await Episode(client, Registry((in_memory(look_for_the_door),)), Options()).run(job_file)
