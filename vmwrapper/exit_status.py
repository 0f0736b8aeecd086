"""How the process of an episode ends: the one table of exit statuses."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the client makes of an end by itself is `docs/boinc.md`'s.

    Source: BOINC's lib/error_numbers.h, where the names begin with EXIT_; 148 is its ERR_FOPEN in the eight bits that a
    Unix process has; 74 and 93 are its ERR_TIMEOUT and ERR_FILE_MISSING, with which its vboxwrapper ends, too. 75 is
    EX_TEMPFAIL of sysexits.h and 130 what a shell makes of Ctrl-C: both are seen by hand only.
    """

    meaning: str
    """A sentence for a person, without its full stop."""

    def __new__(cls, number: int, meaning: str) -> "ExitStatus":
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        return status

    SUCCESS = 0, "the job is done; or, without a finish file, it goes on in another episode"
    BUG = 1, "vmwrapper itself has an error: its log has the traceback"
    NO_HEARTBEAT = 74, "the guest, which works by itself, shows no more that it lives"
    TEMPORARY = 75, "it may succeed later: by hand only, since the client is asked for a temporary exit"
    NO_HEARTBEAT_FILE = 93, "the guest, which works by itself, has no file by which it shows that it lives"
    INTERRUPTED = 130, "a person has stopped it: by hand only, since the client may start it again"
    NO_JOB_FILE = 148, "there is no job file"
    STATEFILE_WRITE = 192, "what is safe could not be written down"
    SIGNAL = 193, "a signal ended the program"
    ABORTED_BY_CLIENT = 194, "the client wanted the job to end; or a guest, which works by itself, powered off undone"
    CHILD_FAILED = 195, "the program or its guest failed, or an output is missing"
    DISK_LIMIT_EXCEEDED = 196, "the job uses more of the disk than its workunit allows (rsc_disk_bound)"
    TIME_LIMIT_EXCEEDED = 197, "the program ran for longer than the job file allows (time_limit)"
    MEM_LIMIT_EXCEEDED = 198, "the job wants more memory than its workunit allows (rsc_memory_bound)"
    CLIENT_EXITING = 199, "the client ended"
    UNSTARTED_LATE = 200, "the client did not start the job before its deadline"
    MISSING_COPROC = 201, "a graphics processor is missing"
    ABORTED_BY_PROJECT = 202, "the project aborted the job"
    ABORTED_VIA_GUI = 203, "the volunteer aborted the job"
    UNKNOWN = 204, "the reason is unknown"
    OUT_OF_MEMORY = 205, "the computer's memory was short, again and again"
    INIT_FAILURE = 206, "the job can't run: its file, a name, its image, a wish or an option"
    NO_SUB_TASKS = 207, "there is nothing to run"
    SUB_TASK_FAILURE = 208, "what may succeed later failed again and again, and was given up"
    OVERDUE_EXCEEDED = 209, "the job is far over its deadline"

    @classmethod
    def meaning_of(cls, number: int) -> str:
        """That of the one with this number; any other is a self-running guest's own."""
        return next((status.meaning for status in cls if status == number), "the guest's own")
