"""A hypervisor in memory, for tests: it keeps the contract of interface.py without a processor.

A guest is a dictionary of files and the few commands that the story uses; programs are Python functions. What can go
wrong is asked for in plain words: `boot_s=inf` is a guest that never gets ready, `put_s=10` a slow copy, and a program,
or a test, ends its machine with `machine.end(GuestPanicked("..."))`. A program whose machine is reverted is called
again, on the files as they were: all that it knows must be in there.
"""

import asyncio
import base64
import hashlib
import json
import shlex
import stat
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import (
    GuestError,
    GuestPoweredOff,
    GuestSilent,
    HostDiskFailed,
    JobError,
    MachineExited,
    OutputTooLarge,
    ProcessFailed,
    SnapshotFailed,
    SnapshotUnusable,
    TransferFailed,
    VmwrapperError,
)
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import (
    MIB,
    Abilities,
    CommandResult,
    FileKind,
    Leftover,
    Machine,
    MachineSpec,
    ProbeResult,
    Room,
    Snapshot,
    Standing,
)

IMAGE = b"a base image for the hypervisor in memory\n"
LAUNCHER_HOME = "/run/vmwrapper"
STDERR = f"{LAUNCHER_HOME}/stderr"
"""Where the launcher keeps what a program says on its standard error."""

_FOLDERS = ("/run", "/tmp")  # noqa: S108  (in the guest)
_CONSOLE_LIMIT_BYTES = 64 * 1024
_NOT_FOUND = 127
_READING_LIMIT_S = 30.0
_STALL_LIMIT_S = 60.0
_DONE = CommandResult(0, b"", b"")

Program = Callable[["MemoryGuest"], Coroutine[Any, Any, int]]
"""Works on the guest's files and returns its exit status; its time passes in `MemoryGuest.compute`."""


class Power(Enum):
    """What a machine is doing."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class GuestFile:
    """One name in a guest."""

    content: bytes = b""
    executable: bool = False
    kind: FileKind = FileKind.REGULAR

    @property
    def regular(self) -> bool:
        return self.kind is FileKind.REGULAR


NO_FILE = GuestFile(kind=FileKind.MISSING)
FOLDER = GuestFile(kind=FileKind.DIRECTORY)
LINK = GuestFile(kind=FileKind.LINK)


@dataclass(eq=False)
class MemoryHypervisor:
    """See `Hypervisor`."""

    name = "memory"
    image_suffixes = (".memory",)

    programs: Mapping[str, Program] = field(default_factory=dict)
    """By their file's name in the guest."""
    _: KW_ONLY
    boot_s: float = 0.0
    answer_s: float = 0.0
    """How long each answer of a guest takes."""
    put_s: float = 0.0
    memory_snapshots: bool = True
    works_by_itself: Program | None = None
    """What a guest does from its boot on, and powers off at its end."""
    machines: list["MemoryMachine"] = field(default_factory=list, init=False)
    """All that there ever were."""

    @property
    def abilities(self) -> Abilities:
        return Abilities(guest_commands=True, memory_snapshots=self.memory_snapshots, shared_folder=True)

    async def probe(self, clock: RunningClock) -> ProbeResult:  # noqa: ARG002  (a real one's)
        await asyncio.sleep(0)  # as a real one, it lets others do something
        return ProbeResult(
            name=self.name, version="1", usable=True, accelerated=True, reasons=(), abilities=self.abilities
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if not spec.image.is_file() or spec.image.read_bytes() != IMAGE:
            raise JobError(f"{spec.image} is no image for the hypervisor in memory")
        if spec.shared and not spec.shared.is_dir():
            raise ProcessFailed(f"there is no folder {spec.shared}")
        with ungrouped():
            async with asyncio.TaskGroup() as processes:
                machine = MemoryMachine(self, spec, clock, processes)
                self.machines.append(machine)
                try:
                    yield machine
                finally:
                    await machine.power_off()

    async def leftovers(self) -> Sequence[Leftover]:
        return ()


class MemoryMachine:
    """See `Machine`. Its processor is busy whenever it runs, so that its CPU time is its running time."""

    def __init__(
        self, hypervisor: MemoryHypervisor, spec: MachineSpec, clock: RunningClock, processes: asyncio.TaskGroup
    ) -> None:
        self.hypervisor = hypervisor
        self.snapshots: Sequence[Snapshot] = sorted(spec.snapshots, key=lambda one: -one.number)
        self._directory = spec.directory
        self.shared = spec.shared
        self._memory_bytes = spec.memory_mib * MIB
        self._sweep()
        self.clock = clock
        self.off = asyncio.Event()
        self._processes = processes
        self._process: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._end: asyncio.Future[VmwrapperError] = asyncio.get_running_loop().create_future()
        self._own_clock = RunningClock()
        self._console = b""
        self._enter(Power.OFF)
        self.guest = MemoryGuest(self)

    @property
    def console_tail(self) -> str:
        return printable(self._console, limit=_CONSOLE_LIMIT_BYTES)

    async def power_on(self) -> None:
        if self.power is Power.OFF:
            self._end = asyncio.get_running_loop().create_future()
            self.guest = MemoryGuest(self)
            self._enter(Power.RUNNING)
            self._boot()

    async def power_off(self) -> None:
        self._enter(Power.OFF)

    async def pause(self) -> None:
        if self.power is Power.RUNNING:
            self._enter(Power.PAUSED)

    async def resume(self) -> None:
        if self.power is Power.OFF:
            raise self._why_off()
        self._enter(Power.RUNNING)

    def room_for_snapshot(self) -> Room:
        return Room(state_bytes=self._memory_bytes, disks_bytes=0)

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        number = 1 + max((one.number for one in self.snapshots), default=0)
        with standing():
            await self.pause()
            state = self.guest.state()
            await asyncio.sleep(self.hypervisor.answer_s)
        if len(state) > most_bytes:
            raise SnapshotFailed("the snapshot is too large")
        (self._directory / f"snapshot-{number}").write_text(state)
        self.snapshots = [Snapshot(number, _digest(state)), *self.snapshots]

    async def verify_snapshot(self, number: int) -> None:
        [snapshot] = [one for one in self.snapshots if one.number == number]
        self._read(snapshot)

    def _read(self, snapshot: Snapshot) -> str:
        try:
            state = (self._directory / f"snapshot-{snapshot.number}").read_text()
        except (OSError, ValueError) as error:
            raise SnapshotUnusable("the snapshot can't be read") from error
        if snapshot.description != _digest(state):
            raise SnapshotUnusable("the snapshot is damaged")
        return state

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        self.snapshots = [one for one in self.snapshots if one.number in numbers]
        self._sweep()

    def _sweep(self) -> None:
        names = {f"snapshot-{one.number}" for one in self.snapshots}
        for path in self._directory.iterdir():
            if path.name not in names and path != self.shared:
                path.unlink()

    async def revert(self, snapshot: Snapshot) -> None:
        await self.power_off()
        state = self._read(snapshot)
        self._end = asyncio.get_running_loop().create_future()
        self.guest = MemoryGuest(self)
        self._enter(Power.PAUSED)
        self.guest.go_on(state)
        self._boot()

    def _boot(self) -> None:
        if program := self.hypervisor.works_by_itself:
            self.start(self._work(program))

    async def _work(self, program: Program) -> None:
        await self.awake()
        await program(self.guest)
        self.end(GuestPoweredOff("the guest powered off before the task was done"))

    async def watch(self) -> NoReturn:
        raise await asyncio.shield(self._end)

    def cpu_time_s(self) -> float:
        return self._own_clock.elapsed_s

    def working_set_bytes(self) -> int:
        return 0 if self.power is Power.OFF else len(IMAGE)

    def end(self, error: VmwrapperError) -> None:
        """End by itself, as `watch` then tells it."""
        if self.power is not Power.OFF:
            self._enter(Power.OFF)
            self._end.set_result(error)
        if isinstance(error, GuestError):
            self._awake.clear()  # the hypervisor is still there, so that nobody closes a connection

    def say(self, words: bytes) -> None:
        """Write to the console."""
        self._console = (self._console + words)[-_CONSOLE_LIMIT_BYTES:]

    async def awake(self) -> None:
        """Wait until the machine is not paused. Raises MachineExited where it is off, or what it ended with."""
        await self._awake.wait()
        if self.power is Power.OFF:
            raise self._why_off()

    async def passes(self, seconds: float) -> None:
        """Wait for so much of the machine's running time, or for its end."""
        with suppress(TimeoutError):
            async with self._own_clock.timeout(seconds):
                await self.off.wait()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on until `end_process` or the machine's end."""
        self._process = self._processes.create_task(work)

    def end_process(self) -> None:
        if self._process:
            self._process.cancel()

    def _why_off(self) -> VmwrapperError:
        return self._end.result() if self._end.done() else MachineExited("the machine is off")

    def _enter(self, power: Power) -> None:
        self.power = power
        match power:
            case Power.RUNNING:
                self._own_clock.go()
                self._awake.set()
                self.off.clear()
            case Power.PAUSED:
                self._own_clock.stop()
                self._awake.clear()
            case Power.OFF:
                self._own_clock.stop()
                self._awake.set()
                self.off.set()
                self.end_process()


class MemoryGuest:
    """See `Guest`. `files` by their absolute path."""

    look_s = 1.0

    def __init__(self, machine: MemoryMachine) -> None:
        self.machine = machine
        self.files: dict[str, GuestFile] = dict.fromkeys(_FOLDERS, FOLDER)
        self._boots = machine.cpu_time_s()

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = GuestFile(content)

    @property
    def shared(self) -> Path:
        """The folder of the host that it sees; there must be one."""
        if self.machine.shared is None:
            raise GuestError("the guest has no shared folder")
        return self.machine.shared

    async def compute(self, seconds: float) -> None:
        """What a program does for so many seconds in which its machine runs."""
        await self.machine.passes(seconds)

    async def ready(self, *, limit_s: float) -> None:
        async with self._bounded(limit_s):
            await self.machine.passes(self.machine.hypervisor.boot_s - (self.machine.cpu_time_s() - self._boots))

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        async with self._bounded(limit_s):
            return await self._run(argv, stdin)

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        async with self._bounded(_READING_LIMIT_S):
            file = self.files.get(path)
        return file.content[:limit_bytes] if file and file.regular else None

    async def tail(self, path: str, *, limit_bytes: int) -> bytes | None:
        async with self._bounded(_READING_LIMIT_S):
            file = self.files.get(path)
        return file.content[-limit_bytes:] if file and file.regular else None

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        loaded = {f"{directory}/{name}": await asyncio.to_thread(_load, path) for name, path in files.items()}
        put_s = self.machine.hypervisor.put_s
        async with self._bounded(put_s + _STALL_LIMIT_S, silence=TransferFailed):
            await self.machine.passes(put_s)
        if directory not in self.files:
            raise GuestError(f"the guest has no directory {directory}")
        self.files |= loaded

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        async with self._bounded(_STALL_LIMIT_S, silence=TransferFailed):
            pass
        found = {name: self.files.get(f"{directory}/{name}", NO_FILE) for name in files}
        arriving = {name: file.content for name, file in found.items() if file.regular}
        for name, content in arriving.items():
            limit_bytes -= len(content)
            if limit_bytes < 0:
                raise OutputTooLarge("the outputs are larger than they may be")
            await asyncio.to_thread(_create, files[name], content)
        return {name: file.kind for name, file in found.items()}

    @asynccontextmanager
    async def _bounded(self, limit_s: float, *, silence: type[Exception] = GuestSilent) -> AsyncIterator[None]:
        """The block, once the guest answers. Raises `silence` after so many running seconds."""
        try:
            async with self.machine.clock.timeout(limit_s):
                await self.machine.awake()
                await self.machine.passes(self.machine.hypervisor.answer_s)
                yield
                await self.machine.awake()
        except TimeoutError as error:
            raise silence(f"no answer from the guest within {limit_s:g} s") from error

    async def _run(self, argv: Sequence[str], stdin: bytes) -> CommandResult:  # noqa: C901, PLR0911  (one for each command)
        match list(argv):
            case ["true" | "false" as answer]:
                return CommandResult(int(answer == "false"), b"", b"")
            case ["sleep", seconds]:
                await self.machine.passes(float(seconds))
                return _DONE
            case ["cat"]:
                return CommandResult(0, stdin, b"")
            case ["cat", path]:
                return self._tail(path, sys.maxsize)
            case ["tail", "-c", count, path]:
                return self._tail(path, int(count))
            case ["rm", "-f", "--", *paths]:
                for path in paths:
                    self.files.pop(path, None)
                return _DONE
            case ["sh", "-c", _, "sh", _, _]:  # of Launcher.wake
                return _DONE
            case ["sh", "-c", _, "sh", mark, directory, command]:  # of shell/server.py
                done = await self._run(shlex.split(command), b"")
                return replace(done, stdout=done.stdout + f"{mark}{directory}\n".encode())
            case ["sh", "-s", "--", verb, *arguments]:
                return self._launch(verb, arguments)
        raise GuestError(f"the guest has no command {argv[0]!r}")

    def _tail(self, path: str, count: int) -> CommandResult:
        file = self.files.get(path)
        if file is None or not file.regular:
            return CommandResult(1, b"", f"{path}: No such file\n".encode())
        return CommandResult(0, file.content[-count:], b"")

    def _launch(self, verb: str, arguments: Sequence[str]) -> CommandResult:
        """What guest/launcher.sh does."""
        match verb, arguments:
            case "prepare", [datadir, _, _]:
                self.files |= {datadir: FOLDER, f"{LAUNCHER_HOME}/scratch/packages": FOLDER}
                return CommandResult(0, b"boot_id=memory\nkernel=memory\n", b"")
            case "start", [datadir, _, program, _] if f"{LAUNCHER_HOME}/started" not in self.files:
                self.files[f"{LAUNCHER_HOME}/started"] = GuestFile(f"{datadir}\n{program}".encode())
                self.machine.start(self._supervise(datadir, program))
                return _DONE
            case ("alive", []) | ("uninstall", _) | ("install", ["tar", *_]):
                return _DONE
        return CommandResult(1, b"", b"the launcher can't do that, or not again\n")

    def state(self) -> str:
        """All that there is, for `go_on`."""
        return json.dumps(
            {
                path: [base64.b64encode(file.content).decode(), file.executable, file.kind.value]
                for path, file in self.files.items()
            }
        )

    def go_on(self, state: str) -> None:
        """Be as in that state; the program that ran then is called again."""
        self._boots -= self.machine.hypervisor.boot_s
        self.files = {
            path: GuestFile(base64.b64decode(content), executable, FileKind(kind))
            for path, (content, executable, kind) in json.loads(state).items()
        }
        started = self.files.get(f"{LAUNCHER_HOME}/started")
        if started and f"{LAUNCHER_HOME}/exit" not in self.files:
            datadir, program = started.content.decode().split("\n")
            self.machine.start(self._supervise(datadir, program))

    async def _supervise(self, datadir: str, name: str) -> None:
        await self.machine.awake()
        program = self.machine.hypervisor.programs.get(name)
        status = await program(self) if program and f"{datadir}/{name}" in self.files else _NOT_FOUND
        self.write(f"{LAUNCHER_HOME}/exit", f"status={status} user=0m0.25s system=0m0.50s\n".encode())


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def _create(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise HostDiskFailed(f"can't write {path}: {error.strerror}") from error


def _load(path: Path) -> GuestFile:
    try:
        return GuestFile(path.read_bytes(), executable=bool(path.stat().st_mode & stat.S_IXUSR))
    except OSError as error:
        raise JobError(f"can't read the input {path}: {error.strerror}") from error
