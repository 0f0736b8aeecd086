"""What can go wrong, by its consequence for the job.

    VmwrapperError                     one clear sentence, no traceback
    ├── JobError                  206  the job can't run here: its file, its names, its image, its wishes
    │   ├── BadJobFile                 its problems, line by line (job/problems.py)
    │   └── JobFileMissing        148  there is no job file
    ├── ProgramFailed             195  the program in the guest ended badly, or its outputs are missing
    ├── TimeLimitExceeded         197  the job's own limit of running time
    ├── GuestError                195  the guest ended or stopped answering under the program
    │   ├── GuestPanicked
    │   ├── GuestPoweredOff
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
        ├── MachineExited              the hypervisor's process ended by itself
        ├── HostDiskFailed             a file on the host can't be written: the disk is full, or forbidden
        ├── ProcessFailed              a program that we started on the host
        └── TransferFailed             data did not cross the border whole

The numbers are the process's exit status. Source: BOINC's lib/error_numbers.h (148 is ERR_FOPEN in eight bits); 75 is
EX_TEMPFAIL of sysexits.h, seen only by hand, since the client reads a temporary exit from its file.
"""

EXIT_INIT_FAILURE = 206
EXIT_CHILD_FAILED = 195
EXIT_TIME_LIMIT_EXCEEDED = 197
EXIT_ABORTED_BY_CLIENT = 194
EXIT_NO_JOB_FILE = 148
EXIT_TEMPORARY = 75
EXIT_INTERRUPTED = 130


class VmwrapperError(Exception):
    """Something that the message explains to a person; `exit_status` is what the process then ends with."""

    exit_status = 1


class JobError(VmwrapperError):
    """The job can't run: trying again would not help."""

    exit_status = EXIT_INIT_FAILURE


class JobFileMissing(JobError):
    """There is no job file where one was expected."""

    exit_status = EXIT_NO_JOB_FILE


class ProgramFailed(VmwrapperError):
    """The program in the guest ended with a failure, or without an output that the job declares."""

    exit_status = EXIT_CHILD_FAILED


class TimeLimitExceeded(VmwrapperError):
    """The program ran for longer than the job allows."""

    exit_status = EXIT_TIME_LIMIT_EXCEEDED


class GuestError(VmwrapperError):
    """The guest operating system failed under the program."""

    exit_status = EXIT_CHILD_FAILED


class GuestPanicked(GuestError):
    """The guest's kernel panicked."""


class GuestPoweredOff(GuestError):
    """The guest powered off or rebooted by itself before the task was done."""


class GuestSilent(GuestError):
    """The guest does not answer any more, or never did."""


class OutputChanged(GuestError):
    """Something in the guest still writes to a file that is copied out."""


class OutputTooLarge(GuestError):
    """The guest sends more than it can have."""


class TemporaryFailure(VmwrapperError):
    """Trying again later, on this host, may succeed."""

    exit_status = EXIT_TEMPORARY
    retry_after_s = 60
    """The client gives a task up after a hundred temporary exits without a checkpoint."""
    concerns_volunteer = False
    """Whether the client shows it to its user as a notice."""


class NoUsableHypervisor(TemporaryFailure):
    """No hypervisor on this host can run the job; the message says what to install."""

    retry_after_s = 3600
    concerns_volunteer = True


class SlotBusy(TemporaryFailure):
    """Another wrapper works in this directory."""

    retry_after_s = 600


class ClientUnreachable(TemporaryFailure):
    """There is a BOINC client, but no way to hear of its wishes; running without would make a job nobody can stop."""


class NobodyThere(TemporaryFailure):
    """There is no machine to look into, or not any more."""


class MachineExited(TemporaryFailure):
    """The hypervisor's process ended without being asked to."""


class HostDiskFailed(TemporaryFailure):
    """A file on the host can't be written."""


class ProcessFailed(TemporaryFailure):
    """A program on the host failed; the message holds the command ready to paste, its status and its last words."""


class TransferFailed(TemporaryFailure):
    """Data did not cross between host and guest whole."""


class QuitRequested(VmwrapperError):
    """The client, or a person's Ctrl-C, wants the episode to end; the job may go on in another one."""

    exit_status = EXIT_INTERRUPTED


class AbortRequested(VmwrapperError):
    """The client wants the job to end."""

    exit_status = EXIT_ABORTED_BY_CLIENT
