"""What can go wrong, by its consequence for the job.

    VmwrapperError                     one clear sentence, no traceback
    ├── JobError                  206  the job can't run here: its file, its names, its image, its wishes
    │   ├── BadJobFile                 its problems, line by line (job/problems.py)
    │   ├── JobFileMissing        148  there is no job file
    │   └── MemoryLimitExceeded   198  it wants more than its workunit allows
    ├── ProgramFailed             195  the program in the guest ended badly, or its outputs are missing
    │   └── SelfRunFailed         its own  a self-running guest says that it has failed
    ├── TimeLimitExceeded         197  the job's own limit of running time
    ├── DiskLimitExceeded         196  the job's files are larger than its workunit allows
    ├── GivenUp              205-208  what may succeed later failed too often
    ├── GuestError                195  the guest ended or stopped answering under the program
    │   ├── GuestPanicked
    │   ├── GuestPoweredOff
    │   │   └── SelfRunCutShort   194  a self-running guest powered off or rebooted, and has not said that it is done
    │   ├── HeartbeatFileMissing   93  the file by which a self-running guest shows that it lives
    │   ├── HeartbeatLost          74  nobody changes it any more
    │   ├── GuestSilent
    │   ├── OutputChanged              a file was written to while it was copied out
    │   └── OutputTooLarge             more than the guest's disk and memory can hold
    ├── QuitRequested             130  stop now, and go on another time (0 under the client)
    ├── AbortRequested            194  stop now, and for good
    └── TemporaryFailure           75  may succeed later: under the client a temporary exit
        ├── NoUsableHypervisor
        ├── SlotBusy
        ├── ClientUnreachable          the BOINC client is there, and what it left for us can't be used
        ├── NobodyThere                nobody has a machine to look into
        ├── PostponedByGuest           a self-running guest wants to go on later
        ├── MachineExited              the hypervisor's process ended by itself
        │   └── RevertedMachineExited  maybe for what it was reverted to: too often, and that is not used any more
        ├── HostDiskFailed             a file on the host can't be written: the disk is full, or forbidden
        ├── HostMemoryShort            the host has less memory free than the machine needs
        ├── ProcessFailed              a program that we started on the host
        ├── SnapshotFailed             the job goes on without a new checkpoint
        ├── SnapshotUnusable           the job goes on from an older checkpoint, or from the task's beginning
        └── TransferFailed             data did not cross the border whole

The numbers are the process's exit status: see exit_status.py.
"""

from vmwrapper.exit_status import ExitStatus


class VmwrapperError(Exception):
    """Something that the message explains to a person; `exit_status` is what the process then ends with."""

    exit_status: int = ExitStatus.BUG


class JobError(VmwrapperError):
    """The job can't run: trying again would not help."""

    exit_status = ExitStatus.INIT_FAILURE


class JobFileMissing(JobError):
    """There is no job file where one was expected."""

    exit_status = ExitStatus.NO_JOB_FILE


class MemoryLimitExceeded(JobError):
    """The job wants more memory than its workunit allows."""

    exit_status = ExitStatus.MEM_LIMIT_EXCEEDED


class ProgramFailed(VmwrapperError):
    """The program in the guest ended with a failure, or without an output that the job declares."""

    exit_status: int = ExitStatus.CHILD_FAILED


class SelfRunFailed(ProgramFailed):
    """A guest that works by itself says that it has failed."""

    def __init__(self, message: str, *, status: int) -> None:
        """`status` is what it has as its exit status: in the eight bits that a process has, it must not be 0."""
        super().__init__(message)
        self.exit_status = status


class TimeLimitExceeded(VmwrapperError):
    """The program ran for longer than the job allows."""

    exit_status = ExitStatus.TIME_LIMIT_EXCEEDED


class DiskLimitExceeded(VmwrapperError):
    """The job's files are larger than its workunit allows."""

    exit_status = ExitStatus.DISK_LIMIT_EXCEEDED


class GivenUp(VmwrapperError):
    """What may succeed later has failed too often."""

    def __init__(self, failure: "TemporaryFailure") -> None:
        super().__init__(f"{failure} (given up after {failure.tries} tries in a row)")
        self.exit_status = failure.given_up_as


class GuestError(VmwrapperError):
    """The guest operating system failed under the program."""

    exit_status = ExitStatus.CHILD_FAILED


class GuestPanicked(GuestError):
    """The guest's kernel panicked."""


class GuestPoweredOff(GuestError):
    """The guest powered off or rebooted by itself before the task was done."""


class SelfRunCutShort(GuestPoweredOff):
    """A guest that works by itself powered off or rebooted, and has not said that it is done."""

    exit_status = ExitStatus.ABORTED_BY_CLIENT


class HeartbeatFileMissing(GuestError):
    """A guest that works by itself has no file by which it shows that it lives, or not any more."""

    exit_status = ExitStatus.NO_HEARTBEAT_FILE


class HeartbeatLost(GuestError):
    """A guest that works by itself does not show any more that it lives."""

    exit_status = ExitStatus.NO_HEARTBEAT


class GuestSilent(GuestError):
    """The guest does not answer any more, or never did."""


class OutputChanged(GuestError):
    """Something in the guest still writes to a file that is copied out."""


class OutputTooLarge(GuestError):
    """The guest sends more than it can have."""


class TemporaryFailure(VmwrapperError):
    """Trying again later, on this host, may succeed."""

    exit_status = ExitStatus.TEMPORARY
    first_delay_s = 15
    longest_delay_s = 600
    most_tries = 12
    """So many in a row are made; the client gives a task up after a hundred."""
    given_up_as = ExitStatus.SUB_TASK_FAILURE
    """What the job ends with after these."""
    concerns_volunteer = False
    """Whether the client shows it to its user as a notice."""

    tries = 1
    """How many in a row have failed, this one included."""

    @property
    def retry_after_s(self) -> int:
        """How long to wait until the next try: each time twice as long."""
        return min(self.first_delay_s << min(self.tries - 1, 16), self.longest_delay_s)


class NoUsableHypervisor(TemporaryFailure):
    """No hypervisor on this host can run the job; the message says what to install."""

    given_up_as = ExitStatus.INIT_FAILURE
    first_delay_s = longest_delay_s = 3600
    most_tries = 24
    concerns_volunteer = True


class SlotBusy(TemporaryFailure):
    """Another wrapper works in this directory."""

    first_delay_s = longest_delay_s = 600


class ClientUnreachable(TemporaryFailure):
    """There is a BOINC client, but no way to hear of its wishes; running without would make a job nobody can stop."""

    first_delay_s = longest_delay_s = 300


class NobodyThere(TemporaryFailure):
    """There is no machine to look into, or not any more."""


class PostponedByGuest(TemporaryFailure):
    """A guest that works by itself wants to go on later."""

    most_tries = 100  # as the client

    def __init__(self, message: str, *, delay_s: int, concerns_volunteer: bool) -> None:
        super().__init__(message)
        self._delay_s = delay_s
        self.concerns_volunteer = concerns_volunteer

    @property
    def retry_after_s(self) -> int:
        """As the guest wants."""
        return self._delay_s


class MachineExited(TemporaryFailure):
    """The hypervisor's process ended without being asked to."""


class RevertedMachineExited(MachineExited):
    """The same, of one that had been reverted to a snapshot."""


class HostDiskFailed(TemporaryFailure):
    """A file on the host can't be read or written."""

    most_tries = 60


class HostMemoryShort(TemporaryFailure):
    """The host has less memory free than the machine needs."""

    most_tries = 60
    given_up_as = ExitStatus.OUT_OF_MEMORY


class ProcessFailed(TemporaryFailure):
    """A program on the host failed; the message holds the command ready to paste, its status and its last words."""


class SnapshotFailed(TemporaryFailure):
    """No snapshot could be taken of a machine, which is none the worse for it."""


class SnapshotUnusable(TemporaryFailure):
    """A machine can't be reverted to a snapshot; the message is why, as the end of a sentence."""


class TransferFailed(TemporaryFailure):
    """Data did not cross between host and guest whole."""


class QuitRequested(VmwrapperError):
    """The client, or a person's Ctrl-C, wants the episode to end; the job may go on in another one."""

    exit_status = ExitStatus.INTERRUPTED


class AbortRequested(VmwrapperError):
    """The client wants the job to end."""

    exit_status = ExitStatus.ABORTED_BY_CLIENT
