"""The inside of a machine in memory: a dictionary of files, and the few commands that the story uses."""

import asyncio
import base64
import json
import shlex
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, JobError, OutputTooLarge, TransferFailed
from vmwrapper.hypervisor.interface import CommandResult, FileKind

if TYPE_CHECKING:
    from vmwrapper.hypervisor.memory.backend import MemoryMachine

LAUNCHER_HOME = "/run/vmwrapper"
STDERR = f"{LAUNCHER_HOME}/stderr"
"""Where the launcher keeps what a program says on its standard error."""

_FOLDERS = ("/run", "/tmp")  # noqa: S108  (in the guest)
_NOT_FOUND = 127
_READING_LIMIT_S = 30.0
_STALL_LIMIT_S = 60.0
_DONE = CommandResult(0, b"", b"")

Program = Callable[["MemoryGuest"], Coroutine[Any, Any, int]]
"""Works on the guest's files and returns its exit status; its time passes in `MemoryGuest.compute`."""


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


class MemoryGuest:
    """See `Guest`. `files` by their absolute path."""

    look_s = 1.0

    def __init__(self, machine: "MemoryMachine") -> None:
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
