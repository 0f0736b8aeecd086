"""What interface.py promises of hypervisors and machines.

Most tests have a machine of their own, from its power-on to its end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import (
    GuestPanicked,
    GuestPoweredOff,
    GuestSilent,
    JobError,
    MachineExited,
    TransferFailed,
    VmwrapperError,
)
from vmwrapper.hypervisor.interface import MIB, Hypervisor, Machine, MachineSpec

from .subjects import Subject, host_files

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 30.0
SETTLING_S = 0.5


@asynccontextmanager
async def running(subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> AsyncIterator[Machine]:
    """A machine for one test, up and with a clock that goes."""
    async with asyncio.timeout(LIMIT_S), hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await subject.up(machine, limit_s=LIMIT_S)
        yield machine


def belongings(spec: MachineSpec) -> list[object]:
    """What a machine must not leave behind: processes, files, descriptors."""
    processes = sorted(child.pid for child in psutil.Process().children(recursive=True))
    descriptors = sorted(f"{fd.name} {_target(fd)}" for fd in Path("/proc/self/fd").iterdir())
    return [processes, descriptors, sorted(spec.directory.rglob("*"))]


def _target(fd: Path) -> str:
    with suppress(OSError):
        return fd.readlink().name
    return "the listing"


@asynccontextmanager
async def nothing_left(spec: MachineSpec) -> AsyncIterator[None]:
    """What the block began to use is no longer used at its end, once the event loop and its threads are idle."""
    before = belongings(spec)
    yield
    ended = time.monotonic()
    while (left := belongings(spec)) != before and time.monotonic() - ended < SETTLING_S:
        await asyncio.sleep(0.01)
    assert left == before


@contextmanager
def nothing_running(spec: MachineSpec) -> Iterator[None]:
    """The block ends with the processes that were there before."""
    processes, *_ = belongings(spec)
    yield
    assert belongings(spec)[0] == processes


@asynccontextmanager
async def during_a_pause(machine: Machine, *, seconds: float) -> AsyncIterator[None]:
    """The block, and at least so many seconds, in which the machine stands still."""
    await machine.pause()
    yield
    await asyncio.sleep(seconds)
    await machine.resume()


@asynccontextmanager
async def suspended(machine: Machine, clock: RunningClock, *, seconds: float) -> AsyncIterator[None]:
    """The same, with the clock that the limits count on."""
    clock.stop()
    async with during_a_pause(machine, seconds=seconds):
        yield
    clock.go()


async def goes_on(subject: Subject, machine: Machine) -> int:
    """Wait until the guest has counted on, by so much that it takes a while; how far."""
    await subject.up(machine, limit_s=LIMIT_S)
    before = await subject.counted(machine)
    async with asyncio.timeout(LIMIT_S):
        while (now := await subject.counted(machine)) < before + 15:
            await asyncio.sleep(0.02)
    return now


async def cpu_time_in(machine: Machine, *, seconds: float) -> float:
    before_s = machine.cpu_time_s()
    await asyncio.sleep(seconds)
    return machine.cpu_time_s() - before_s


async def cancelled(work: Coroutine[Any, Any, object], *, after_s: float, within_s: float) -> None:
    task = asyncio.create_task(work)
    await asyncio.sleep(after_s)
    started = time.monotonic()
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < within_s


async def ends(task: asyncio.Task[Any], *errors: type[VmwrapperError]) -> None:
    with pytest.raises(errors):
        await asyncio.wait_for(task, 5)


async def survives_its_end(subject: Subject, machine: Machine) -> None:
    """Nobody is harmed who still has to do with a machine that ended by itself."""
    cpu_time_s = machine.cpu_time_s()
    for verb in (machine.pause, machine.resume):
        with suppress(VmwrapperError):
            await asyncio.wait_for(verb(), subject.ends_within_s)
    with pytest.raises(VmwrapperError):
        await machine.guest.run(["true"], limit_s=0.5)
    await machine.power_off()
    await machine.power_off()
    assert machine.cpu_time_s() >= cpu_time_s


class TestHypervisor:
    async def test_a_probe_tells_who_it_is_and_within_3_s(self, subject: Subject) -> None:
        hypervisor = subject.hypervisor()
        started = time.monotonic()
        result = await hypervisor.probe(RunningClock())
        assert time.monotonic() - started < 3
        assert result.name == hypervisor.name
        assert result.version
        assert result.usable

    async def test_its_images_have_its_suffix(self, subject: Subject, hypervisor: Hypervisor) -> None:
        assert subject.image.suffix == hypervisor.image_suffixes[0]

    @pytest.mark.parametrize("content", [None, b"", b"no image", bytes(4096)])
    async def test_an_image_that_it_cannot_use(
        self, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path, content: bytes | None
    ) -> None:
        image = tmp_path / "image"
        if content is not None:
            image.write_bytes(content)
        spec = replace(spec, image=image)
        async with nothing_left(spec):
            with pytest.raises(JobError, match=str(image)):
                await hypervisor.machine(spec, RunningClock()).__aenter__()


class TestPauses:
    async def test_nothing_happens_in_a_paused_guest(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with running(subject, hypervisor, spec) as machine:
            await subject.start_counter(machine, tmp_path)
            await asyncio.sleep(0.3)
            before = await subject.counted(machine)
            used_s = await cpu_time_in(machine, seconds=0.7)
            progress = await subject.counted(machine) - before
            await machine.pause()
            paused_s = await cpu_time_in(machine, seconds=0.7)
            await machine.resume()
            paused = await subject.counted(machine) - before - progress
            await asyncio.sleep(0.3)
            assert await subject.counted(machine) > before + progress + paused
        assert paused < progress / 2
        assert used_s > 0.2
        assert paused_s < 0.05

    @pytest.mark.guest_commands
    async def test_the_clock_of_the_guest_stands_still(self, subject: Subject, machine: Machine) -> None:
        before_s = await subject.uptime_s(machine)
        started = time.monotonic()
        async with during_a_pause(machine, seconds=1):
            pass
        passed_s = await subject.uptime_s(machine) - before_s
        assert passed_s < time.monotonic() - started - 0.8

    @pytest.mark.guest_commands
    async def test_verbs_can_be_repeated(self, machine: Machine) -> None:
        await machine.resume()
        await machine.pause()
        await machine.pause()
        await machine.resume()
        await machine.resume()
        assert (await machine.guest.run(["true"], limit_s=LIMIT_S)).status == 0

    @pytest.mark.guest_commands
    async def test_a_question_to_a_paused_guest_waits(self, machine: Machine) -> None:
        async with during_a_pause(machine, seconds=0.5):
            asking = asyncio.create_task(machine.guest.run(["true"], limit_s=LIMIT_S))
        assert not asking.done()
        assert (await asking).status == 0

    @pytest.mark.guest_commands
    async def test_a_copy_goes_on_after_a_pause(self, machine: Machine, tmp_path: Path) -> None:
        files = host_files(tmp_path, {"file": bytes(4 * MIB)})
        copying = asyncio.create_task(machine.guest.put(files, "/tmp"))
        await asyncio.sleep(0.05)
        async with during_a_pause(machine, seconds=0.3):
            assert not copying.done()
        assert not copying.done()
        await copying

    @pytest.mark.guest_commands
    async def test_limits_count_running_time_only(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        clock = RunningClock()
        async with hypervisor.machine(spec, clock) as machine:
            await machine.power_on()
            async with suspended(machine, clock, seconds=0.2):
                booting = asyncio.create_task(machine.guest.ready(limit_s=LIMIT_S))
            await booting
            async with suspended(machine, clock, seconds=1.2):
                asking = asyncio.create_task(machine.guest.run(["sleep", "0.1"], limit_s=1))
            assert (await asking).status == 0


class TestPower:
    async def test_a_machine_is_created_off(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            assert machine.cpu_time_s() < 0.001
            assert machine.console_tail == ""
            await machine.power_off()
            await machine.power_off()

    async def test_power_on_twice_is_one_machine(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            await machine.power_on()
            before = belongings(spec)
            await machine.power_on()
            assert belongings(spec) == before

    @pytest.mark.guest_commands
    async def test_ready_late_and_again(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            await machine.power_on()
            with pytest.raises(GuestSilent, match=r"0\.05 s"):
                await machine.guest.ready(limit_s=0.05)
            for _ in range(2):
                await machine.guest.ready(limit_s=LIMIT_S)
            assert (await machine.guest.run(["true"], limit_s=LIMIT_S)).status == 0

    async def test_power_off_while_booting(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            with nothing_running(spec):
                await machine.power_on()
                await asyncio.sleep(0.1)
                started = time.monotonic()
                await machine.power_off()
            assert time.monotonic() - started < subject.ends_within_s
            await machine.power_off()

    async def test_power_off_while_running(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            with nothing_running(spec):
                await machine.power_on()
                await subject.up(machine, limit_s=LIMIT_S)
                await subject.start_counter(machine, tmp_path)
                await machine.power_off()
            with pytest.raises(VmwrapperError):
                await machine.guest.run(["true"], limit_s=1)

    async def test_power_off_while_paused(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            with nothing_running(spec):
                await machine.power_on()
                await machine.pause()
                await machine.power_off()

    async def test_cpu_time_never_falls(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        seen_s = []
        async with hypervisor.machine(spec, RunningClock()) as machine:
            seen_s.append(machine.cpu_time_s())
            await machine.power_on()
            seen_s.append(machine.cpu_time_s())
            async with asyncio.timeout(LIMIT_S):
                while machine.cpu_time_s() == seen_s[-1]:
                    await asyncio.sleep(0.05)
            for verb in (machine.pause, machine.power_off):
                await verb()
                seen_s.append(machine.cpu_time_s())
        seen_s.append(machine.cpu_time_s())
        assert seen_s == sorted(seen_s)
        assert seen_s[1] < seen_s[2]

    @pytest.mark.guest_commands
    async def test_the_console_is_kept_and_printable(self, subject: Subject, machine: Machine) -> None:
        await subject.say(machine, b"\x1b[31mred\x07 and \xff\r\n")
        await asyncio.sleep(0.2)
        assert "red" in machine.console_tail
        assert all(letter.isprintable() or letter == "\n" for letter in machine.console_tail)

    @pytest.mark.guest_commands
    async def test_only_the_end_of_the_console_is_kept(self, subject: Subject, machine: Machine) -> None:
        for number in range(3):
            await subject.say(machine, f"{number}{'.' * 40_000}\n".encode())
        await subject.say(machine, "last ☃\n".encode())
        await asyncio.sleep(0.2)
        said = machine.console_tail
        assert said.endswith("last ☃")
        assert "1...." not in said
        assert "2...." in said
        assert len(said) <= 64 * 1024


class TestWatching:
    async def test_nothing_to_see(self, machine: Machine) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await machine.watch()

    async def test_a_killed_hypervisor(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with running(subject, hypervisor, spec) as machine:
            watching = asyncio.create_task(machine.watch())
            subject.kill(machine, spec)
            await ends(watching, MachineExited)
            await survives_its_end(subject, machine)

    @pytest.mark.guest_commands
    async def test_a_guest_that_powers_off(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with running(subject, hypervisor, spec) as machine:
            watching = asyncio.create_task(machine.watch())
            await subject.power_off_inside(machine)
            await ends(watching, GuestPoweredOff)
            await survives_its_end(subject, machine)

    @pytest.mark.guest_commands
    async def test_a_guest_that_panics(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with running(subject, hypervisor, spec) as machine:
            watching = asyncio.create_task(machine.watch())
            await subject.panic(machine)
            await ends(watching, GuestPanicked)
            await survives_its_end(subject, machine)

    @pytest.mark.guest_commands
    async def test_a_machine_that_dies_in_a_copy(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with running(subject, hypervisor, spec) as machine:
            files = host_files(tmp_path, {"file": bytes(8 * MIB)})
            copying = asyncio.create_task(machine.guest.put(files, "/tmp"))
            await asyncio.sleep(0.05)
            subject.kill(machine, spec)
            await ends(copying, TransferFailed, MachineExited)


class TestLeavingNothing:
    async def test_the_end_of_the_block(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with nothing_left(spec), running(subject, hypervisor, spec):
            pass

    @pytest.mark.parametrize("error", [ValueError("of the body"), MachineExited("of the body")])
    async def test_an_error_in_the_block_comes_out(
        self, hypervisor: Hypervisor, spec: MachineSpec, error: Exception
    ) -> None:
        async with nothing_left(spec):
            with pytest.raises(type(error)) as raised:
                await self._fail(hypervisor, spec, error)
        assert raised.value is error

    async def _fail(self, hypervisor: Hypervisor, spec: MachineSpec, error: Exception) -> None:
        async with hypervisor.machine(spec, RunningClock()) as machine:
            await machine.power_on()
            raise error

    @pytest.mark.parametrize("after_s", [0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5])
    async def test_a_cancelled_boot(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, after_s: float
    ) -> None:
        async with nothing_left(spec):
            await cancelled(
                self._boot_and_wait(subject, hypervisor, spec), after_s=after_s, within_s=subject.ends_within_s
            )

    async def _boot_and_wait(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with running(subject, hypervisor, spec):
            await asyncio.sleep(LIMIT_S)

    @pytest.mark.guest_commands
    @pytest.mark.parametrize("after_s", [0.01, 0.1])
    async def test_a_cancelled_copy(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path, after_s: float
    ) -> None:
        files = host_files(tmp_path, {"file": bytes(64 * MIB)})
        async with nothing_left(spec), running(subject, hypervisor, spec) as machine:
            await cancelled(machine.guest.put(files, "/tmp"), after_s=after_s, within_s=subject.ends_within_s)

    async def test_a_killed_hypervisor(self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        async with nothing_left(spec), hypervisor.machine(spec, RunningClock()) as machine:
            await machine.power_on()
            subject.kill(machine, spec)
