"""A job as the rest of the program sees it, whatever dialect its file was written in."""

from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

DEFAULT_IMAGE = "default"
DEFAULT_MEMORY_MIB = 256
DEFAULT_SCRATCH_MIB = 1024
DEFAULT_CHECKPOINT_INTERVAL_S = 600.0
DEFAULT_HEARTBEAT_INTERVAL_S = 600.0
DEFAULT_CREDIT_REPORT = "/tmp/creditreport"  # noqa: S108  (in the guest)

OWN_FILES = ("boinc_*", "init_data.xml", "job.xml", "vbox_job.xml", "stderr.txt", "trickle_up.xml", ".vmwrapper*")
"""Names in a slot that are neither written by a guest nor shown to one: the volunteer's authenticator is in there."""


def is_own_file(name: str) -> bool:
    """Whether the name directly in the slot is the wrapper's or the client's."""
    return any(fnmatchcase(name.casefold(), pattern) for pattern in OWN_FILES)


class PackageKind(StrEnum):
    """By what a package is installed in a guest."""

    TAR = "tar"
    DEB = "deb"
    RPM = "rpm"
    APK = "apk"


PACKAGE_SUFFIXES = {
    ".tar": PackageKind.TAR,
    ".tar.gz": PackageKind.TAR,
    ".tgz": PackageKind.TAR,
    ".tar.bz2": PackageKind.TAR,
    ".tar.xz": PackageKind.TAR,
    ".deb": PackageKind.DEB,
    ".rpm": PackageKind.RPM,
    ".apk": PackageKind.APK,
}
"""What kind of package a file is, by how its name ends."""


def package_kind(name: str) -> PackageKind | None:
    """What kind of package a file of this name is, or None for no package."""
    return next((kind for suffix, kind in PACKAGE_SUFFIXES.items() if name.endswith(suffix)), None)


class CpuTimeBasis(StrEnum):
    """Which time counts as a task's CPU time."""

    HOST = "host"
    """What its machine and the wrapper have used of this computer."""
    GUEST = "guest"
    """What the guest's kernel says that it has worked."""
    ELAPSED = "elapsed"
    """The time that its machine was there and was allowed to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfRunning:
    """How a guest ends that works by itself, and what it tells, by files in the shared folder. One of the two ends is.

    Source: BOINC's samples/vboxwrapper.
    """

    completion_file: str | None = None
    """It is done once that is there."""
    duration_s: float | None = None
    """It is done after so much running time."""
    temporary_exit_file: str | None = None
    """It wants to go on another time once that is there."""
    heartbeat_file: str | None = None
    """It has failed where that does not change any more."""
    heartbeat_interval_s: float = DEFAULT_HEARTBEAT_INTERVAL_S
    """How often that must change, in running time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One program, run once in one virtual machine. Names are as written in the job file, not yet resolved."""

    line: int
    """The line of the job file on which the task begins, from 1."""
    vm: str = DEFAULT_IMAGE
    """Base image: a logical name or path, with or without extension; `default` is the guest we build."""
    innerjob: str = ""
    """The program: the name of an input file; empty where `self_running` tells that there is none."""
    self_running: SelfRunning | None = None
    """For a guest that nobody logs in to."""
    user: str = "root"
    password: str | None = field(default=None, repr=False)
    datadir: str = "/tmp"  # noqa: S108  (in the guest)
    """Absolute directory in the guest: working directory, home of inputs and outputs."""
    data: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    partial_credit: bool = False
    """Whether the program tells how much it has computed, by its credit report."""
    snapshots: bool = True
    """Whether periodic checkpoints are taken."""
    checkpoint_interval_s: float = DEFAULT_CHECKPOINT_INTERVAL_S
    """Running time between them, at least."""
    backend: str | None = None
    memory_mib: int = DEFAULT_MEMORY_MIB
    cpus: int = 1
    scratch_mib: int = DEFAULT_SCRATCH_MIB
    """Size of the disk mounted at datadir; 0 for none. Of a self-running guest: what its shared folder may hold."""
    packages: tuple[str, ...] = ()
    """Files to install in the guest before the program runs; each has a `package_kind`."""
    weight: float = 1.0
    """Share of the job's fraction done, in units of its own; above 0."""
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    time_limit_s: float | None = None
    """Longest running time of the program."""
    fraction_done_filename: str | None = None
    """A file in the guest, absolute or relative to datadir, whose last number is the fraction done."""
    credit_report: str = DEFAULT_CREDIT_REPORT
    """A file in the guest, absolute or relative to datadir, which is looked at where `partial_credit` says so."""
    cpu_time_basis: CpuTimeBasis = CpuTimeBasis.HOST

    @property
    def title(self) -> str:
        """What works in the guest, for a person."""
        return self.innerjob or f"the guest {self.vm}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A whole job file: at least one task, run one after the other."""

    tasks: tuple[Task, ...]
