"""What the story asks of a hypervisor, in six nouns; each backend turns them into its own.

Hypervisor   finds out whether it can be used here, and creates machines
Machine      one virtual machine of one task, from power-on to removal
Guest        what runs inside it: files in and out, commands
Snapshot     a saved state of a machine, to which a later episode reverts
Abilities    what this hypervisor can do at all; what is missing, nobody asks for
MachineSpec  what a machine is made from

Every verb names the state it brings about, so that a second call does nothing. Every verb may be cancelled at any
await; the machine is then good for nothing but the end of its block, which puts the world right. Time limits count on
the RunningClock that the machine was created with. Errors are those of errors.py.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NoReturn, Protocol

from vmwrapper.clock import RunningClock

MIB = 1024 * 1024

SCRATCH_SERIAL = "vmwrapper-scratch"
"""The serial number by which a guest finds its scratch disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a hypervisor can do beyond running a machine."""

    guest_commands: bool = False
    """Commands are run in the guest, and files copied: a job needs it."""
    needs_login: bool = False
    """They are given in the name of a user of the guest, by the machine's `login`, but in an image made for it."""
    shows_password: bool = False
    """That login's password is seen by other users of the host: so only those get it who name the hypervisor."""
    memory_snapshots: bool = False
    """A snapshot contains the guest's memory, so that a restart goes on where it was taken."""
    live_snapshots: bool = False
    """It is taken while the guest runs on, unless that shares a folder."""
    guest_network: bool = False
    """The guest can be given a network that reaches neither the host nor its neighbours."""
    screen: bool = False
    """There is a picture of the guest's screen."""
    cpu_cap: bool = False
    """A machine can be held to a part of its processors' time."""
    shared_folder: bool = False
    """A folder of the host can be seen in the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Whether a hypervisor can be used on this host."""

    name: str
    version: str | None
    """None where it was not found."""
    usable: bool
    accelerated: bool
    """Guests run on the processor itself."""
    reasons: tuple[str, ...]
    """Sentences for a volunteer: why it can't be used, or only slowly, what would help; what else is to be known."""
    abilities: Abilities


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """By whom a machine is ours: kept in the hypervisor's own name or description of it."""

    project: str
    result_name: str
    slot: str
    """The slot directory's absolute path."""

    def __str__(self) -> str:
        return f"vmwrapper {self.project} {self.result_name} {self.slot}"


def slot_in(identity: str) -> Path | None:
    """The slot of the identity that this is the text of, which any of its parts may make ambiguous: one that exists."""
    words = identity.split(" ")
    if words[0] != "vmwrapper":
        return None
    ends = (Path(" ".join(words[number:])) for number in range(3, len(words)))
    slots = [end for end in ends if end.is_absolute()]
    return next((slot for slot in slots if slot.is_dir()), slots[0] if slots else None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved state of a machine: the guest's memory and disks at one instant."""

    number: int
    """From 1; of two of a machine, the later one has the higher."""
    description: str
    """What the backend tells its own later self; to be read as if a stranger had written it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Of the host's disk."""

    state_bytes: int
    """For a snapshot itself."""
    disks_bytes: int
    """For what the guest then writes anew, while the snapshot keeps what was there."""


Standing = Callable[[], AbstractContextManager[None]]
"""Makes the block inside which a guest stands still for a snapshot."""


@dataclass(frozen=True, slots=True)
class Login:
    """An account in the guest."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What a machine is made from."""

    identity: MachineIdentity
    image: Path
    """Base image. Read only, and shared with other machines."""
    directory: Path
    """A directory for the machine's own files, which removes all others there but those of `snapshots`."""
    memory_mib: int
    cpus: int
    scratch_mib: int
    """Size of the empty second disk; 0 for none."""
    niceness: int | None = None
    """Of its processes, as POSIX has it, -20 to 19; None for ours."""
    cpu_cap_percent: int = 100
    """Of its processors' time, the most that it gets, 1 to 100; for those with the ability `cpu_cap`."""
    snapshots: Sequence[Snapshot] = ()
    """That an earlier episode took of it."""
    shared: Path | None = None
    """A folder of the host, which exists; the guest sees it by the name `shared`, reads and writes, and makes no links
    there. For those with the ability `shared_folder`. It is left alone also where it lies in `directory`."""
    login: Login | None = None
    """Who gives the guest its commands, for hypervisors that ask: root, or who may be that by `sudo -n`."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command in the guest ended. All of it was said by the guest: hostile."""

    status: int
    """Exit status; 128 and more for a signal, as a shell counts."""
    stdout: bytes
    stderr: bytes


class FileKind(Enum):
    """What a name in a guest stands for; the values end a sentence."""

    REGULAR = "a regular file"
    DIRECTORY = "a directory"
    LINK = "a symbolic link"
    SPECIAL = "a device, pipe or socket"
    MISSING = "nothing"


class Guest(Protocol):
    """The inside of a machine that is powered on."""

    @property
    def look_s(self) -> float:
        """So many seconds must lie between two looks at files, for that to cost next to nothing; at least 1."""

    async def ready(self, *, limit_s: float) -> None:
        """Wait until the guest takes commands. Raises GuestSilent after `limit_s`."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        """Run a command as the guest's administrator, to its end; at most 64 KiB of input, 512 KiB of output.

        `argv[0]` is looked up on the guest's PATH. Raises GuestSilent after `limit_s`; the command may then go on.
        """

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """A small file's first `limit_bytes`, or None where there is none: cheap enough to ask each `look_s`."""

    async def tail(self, path: str, *, limit_bytes: int) -> bytes | None:
        """A file's last `limit_bytes`, or None where there is nothing that can be read: cheap, too."""

    async def put(self, files: Mapping[str, Path], directory: str) -> None:
        """Copy files of the host into a directory of the guest, which exists.

        `files` maps names in the guest, relative to `directory`, to files of the host. The executable bit is kept,
        owners are not. On return all are there whole, by checksum. Raises TransferFailed, GuestError where the guest
        can't take them, as when its disk is full, and JobError for a file that can't be read.
        """

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        """Copy the regular files among these out of a directory of the guest; what each name stands for there.

        `files` maps names in the guest to files of the host, which must not exist: they are made new. On return all
        regular files are whole, by checksum, and executable where they were; on an error some of the files may have
        been made, whole or not. Raises TransferFailed, OutputChanged, OutputTooLarge for more than `limit_bytes` in
        all, and HostDiskFailed where a file can't be made or written.
        """


class Machine(Protocol):
    """One virtual machine. Created powered off; gone, with all of its own but its snapshots, at the end of its block.

    Only those with the ability `memory_snapshots` are asked for snapshots.
    """

    @property
    def guest(self) -> Guest: ...

    @property
    def console_tail(self) -> str:
        """The last lines that the guest wrote to its console: hostile, printable, at most 64 KiB."""

    async def power_on(self) -> None:
        """On return the guest boots. Raises MachineExited where the hypervisor gave up."""

    async def power_off(self) -> None:
        """On return the guest does not run and will not: a pulled plug. Never raises for a machine that is off."""

    async def pause(self) -> None:
        """On return no instruction of the guest is executed, and its clock stands still."""

    async def resume(self) -> None:
        """On return the guest runs on."""

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """All that there are, newest first, each described as of now: it may change while the machine is on.

        What an earlier description names is still there until `keep_snapshots`.
        """

    def room_for_snapshot(self) -> Room:
        """What one more snapshot may take of the host's disk."""

    async def take_snapshot(self, standing: Standing, *, most_bytes: int) -> None:
        """Take one more; on return it is on the host's disk.

        The guest stands still inside `standing`, which may be once or a few times, and is paused at its end; the last
        time is that of the snapshot. A hypervisor that stops and lets go on a running guest by itself enters it just
        before. Raises SnapshotFailed, also where the snapshot would be larger than that or the
        guest has not run since the last one, and then
        the guest and its other snapshots are none the worse; neither are they by a cancellation.
        """

    async def verify_snapshot(self, number: int) -> None:
        """Read it back from the host's disk. Raises SnapshotUnusable where it is not what was written."""

    async def keep_snapshots(self, numbers: Collection[int]) -> None:
        """Delete all snapshots but these, with what only they needed."""

    async def revert(self, snapshot: Snapshot) -> None:
        """Instead of power_on: on return the guest is as in the snapshot, and paused; its clock is late.

        Raises SnapshotUnusable where the machine can't get there, now or ever, and is then off; MachineExited.
        """

    async def watch(self) -> NoReturn:
        """Never returns: raises MachineExited, GuestPanicked or GuestPoweredOff when the machine ends by itself.

        To be awaited beside everything else, from power_on on.
        """

    def cpu_time_s(self) -> float:
        """CPU time that the machine has used on the host since it was created. Never falls, also when it is off."""

    def working_set_bytes(self) -> int:
        """Memory of the host that the machine has in RAM; 0 when it is off."""


class Screen(Protocol):
    """What a machine is, too, whose hypervisor has the ability `screen`."""

    async def screenshot(self, file: Path) -> None:
        """Make a picture of the guest's screen, as PNG, in a new file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a hypervisor still has of a machine of ours, which a living wrapper may need, or none."""

    what: str
    """As the beginning of a sentence, on one line."""
    slot: Path
    """Whoever needs it holds the lock of this folder, which may be gone."""
    files: Path
    """The folder of its files; it may be gone, or hold what a later episode goes on from."""
    remove: Callable[[], Awaitable[None]]
    """On return the hypervisor knows nothing of it; its files are as they were. Raises TemporaryFailure."""


class Hypervisor(Protocol):
    """One program or service that runs virtual machines."""

    @property
    def name(self) -> str:
        """As in a job file's <backend>."""

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """How the names of base images that it runs end, best first: what completes a name without extension."""

    @property
    def abilities(self) -> Abilities: ...

    async def probe(self, clock: RunningClock) -> ProbeResult:
        """Find out whether it can be used, within 10 s of the clock, with which it stops and goes.

        Never raises for a broken hypervisor.
        """

    def machine(self, spec: MachineSpec, clock: RunningClock) -> AbstractAsyncContextManager[Machine]:
        """Create a machine, powered off. Raises JobError for an image that it can't use."""

    async def leftovers(self) -> Sequence[Leftover]:
        """All that it has of this user's machines of ours, maybe living ones, too. It need not have been probed.

        Looking changes nothing and disturbs no machine. Raises TemporaryFailure where it can't be looked at; there is
        nothing where it is not installed.
        """
