"""Starts the program in the guest, and follows the files that the launcher there keeps of it.

All that is known of a running program stands in files of the guest: no session and no process number of the host's is
needed to follow it, so that a wrapper that was restarted goes on where the last one was.
"""

import logging
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vmwrapper.errors import GuestError, JobError
from vmwrapper.guest.reseed import program
from vmwrapper.hostile import printable, some_of
from vmwrapper.hypervisor.guest_script import script
from vmwrapper.hypervisor.interface import SCRATCH_SERIAL, CommandResult, Guest
from vmwrapper.job.model import PackageKind

log = logging.getLogger(__name__)

_HOME = "/run/vmwrapper"
PACKAGES = f"{_HOME}/scratch/packages"
"""Where packages go before they are installed."""
_WAKE = f"""\
date -u -s "@$1" >/dev/null
cd {_HOME} && dd bs="$2" count=1 iflag=fullblock of=reseed 2>/dev/null && chmod 700 reseed && ./reseed
"""
_NO_SUCH_USER = 67
_VERB_LIMIT_S = 60.0
_INSTALL_LIMIT_S = 3600.0
_TAIL_BYTES = 2048
_LONGEST_COMMAND_BYTES = 120_000  # Linux takes 128 KiB for one argument
_TIME = r"([0-9]{1,9})m([0-9]{1,2}(?:\.[0-9]{1,9})?)s"  # as the shell's `times` prints it
_EXIT = re.compile(rf"status=([0-9]{{1,3}}) user={_TIME} system={_TIME}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run: paths are relative to `datadir`."""

    path: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str]
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What the guest says of itself."""

    boot_id: str
    kernel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnd:
    """How the program ended, as the guest tells it."""

    status: int
    """As a shell counts: 128 and a signal's number where a signal ended it."""
    user_s: float
    system_s: float

    def __str__(self) -> str:
        signal = self.status - 128
        return f"killed by signal {signal}" if 0 < signal <= 64 else f"exit status {self.status}"


class Launcher:
    """The launcher in one guest, for one program that runs as `user` in `datadir`."""

    def __init__(self, guest: Guest, *, datadir: str, user: str) -> None:
        self._guest = guest
        self._datadir = datadir
        self._user = user
        self._script = script(__package__, "launcher.sh")

    async def prepare(self, *, scratch: bool) -> GuestFacts:
        """Make datadir, on the scratch disk if there is one, and see to the user.

        Raises JobError for a user that the guest doesn't have, GuestError where the guest can't do it.
        """
        result = await self._run("prepare", self._datadir, self._user, SCRATCH_SERIAL if scratch else "none")
        if result.status == _NO_SUCH_USER:
            raise JobError(f"the guest has no user {self._user!r}: name one that its image has")
        if result.status != 0:
            raise GuestError(f"the guest could not be prepared: {printable(result.stderr)}")
        facts = dict(line.partition("=")[::2] for line in printable(result.stdout).splitlines())
        return GuestFacts(facts.get("boot_id", "unknown"), facts.get("kernel", "unknown"))

    async def install(self, kind: PackageKind, names: Sequence[str]) -> None:
        """Install packages of one kind that are in PACKAGES. Raises JobError where the guest can't."""
        result = await self._with_packages("install", kind, names)
        if result.status != 0:
            listed = ", ".join(some_of(names))
            raise JobError(f"the guest can't install {listed}: {printable(result.stderr, limit=_TAIL_BYTES)}")

    async def uninstall(self, kind: PackageKind, names: Sequence[str]) -> None:
        """Remove what `install` did. Nothing relies on it."""
        await self._with_packages("uninstall", kind, names)

    async def start(self, program: Program) -> None:
        """Start the program. It goes on without anybody following it."""
        command = _command(program, self._datadir)
        if len(command.encode("utf-8", "surrogateescape")) > _LONGEST_COMMAND_BYTES:
            raise JobError(
                f"the arguments and environment of {program.path} are longer than {_LONGEST_COMMAND_BYTES} bytes"
            )
        result = await self._run("start", self._datadir, self._user, program.path, command)
        if result.status != 0:
            raise GuestError(f"the program could not be started: {printable(result.stderr)}")

    async def wake(self, now_s: float, seed: bytes) -> None:
        """Tell a guest that was reverted what time it is, in seconds since 1970, and what no other guest knows.

        `seed` has SEED_BYTES. Nothing relies on it.
        """
        reseed = program()
        argv = ["sh", "-c", _WAKE, "sh", f"{now_s:.0f}", str(len(reseed))]
        with suppress(GuestError):
            result = await self._guest.run(argv, stdin=reseed + seed, limit_s=_VERB_LIMIT_S)
            if result.status != 0:
                log.debug("The guest's clock or random numbers are late: %s", printable(result.stderr))

    async def ended(self) -> ProgramEnd | None:
        """How the program ended, or None while it runs. One cheap question to the guest."""
        said = await self._guest.read(f"{_HOME}/exit", limit_bytes=256)
        if said is None:
            return None
        found = _EXIT.fullmatch(printable(said))
        if found is None:
            raise GuestError(f"the guest's record of the program's end makes no sense: {printable(said)!r}")
        status, user_min, user_s, system_min, system_s = map(float, found.groups())
        return ProgramEnd(status=int(status), user_s=60 * user_min + user_s, system_s=60 * system_min + system_s)

    async def is_alive(self) -> bool:
        """Whether the end of the program will be known, or is. Dearer than `ended`: for now and then."""
        return (await self._run("alive")).status == 0

    async def last_words(self, *, stderr: str | None) -> str:
        """The end of what the program wrote to its standard error, which the job may have sent to a file."""
        path = f"{self._datadir}/{stderr}" if stderr else f"{_HOME}/stderr"
        result = await self._guest.run(["tail", "-c", str(_TAIL_BYTES), path], limit_s=_VERB_LIMIT_S)
        return printable(result.stdout)

    async def remove(self, names: Sequence[str]) -> None:
        """Remove files from datadir. Nothing relies on it."""
        await self._guest.run(["rm", "-f", "--", *(f"{self._datadir}/{name}" for name in names)], limit_s=_VERB_LIMIT_S)

    async def _with_packages(self, verb: str, kind: PackageKind, names: Sequence[str]) -> CommandResult:
        paths = (f"./{name}" for name in names)
        return await self._run(
            verb, kind, *paths, functions=script(__package__, "packages.sh"), limit_s=_INSTALL_LIMIT_S
        )

    async def _run(self, *arguments: str, functions: str = "", limit_s: float = _VERB_LIMIT_S) -> CommandResult:
        stdin = (functions + self._script).encode()
        return await self._guest.run(["sh", "-s", "--", *arguments], stdin=stdin, limit_s=limit_s)


def _command(program: Program, datadir: str) -> str:
    """A POSIX shell script that becomes the program; run as the program's user, it opens the program's files."""
    redirections = [("<", program.stdin), (">>", program.stdout), ("2>>", program.stderr)]
    words = [
        "exec",
        shlex.quote(f"./{program.path}"),
        *map(shlex.quote, program.arguments),
        *(f"{sign}{shlex.quote(f'./{name}')}" for sign, name in redirections if name),
    ]
    folders = {posixpath.dirname(name) for name in (program.stdout, program.stderr) if name} - {""}
    lines = [
        f"cd {shlex.quote(datadir)} || exit 126",
        *(f"mkdir -p {shlex.quote(f'./{folder}')}" for folder in sorted(folders)),
        *(f"export {name}={shlex.quote(value)}" for name, value in program.environment.items()),
        " ".join(words),
    ]
    return "\n".join(lines) + "\n"
