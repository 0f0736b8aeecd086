"""The files by which an app and its client talk in the slot: what a name stands for, and how the episode ended."""

import os
import re
from pathlib import Path

from vmwrapper.boinc.elements import unescaped
from vmwrapper.durable import write_durably
from vmwrapper.errors import HostDiskFailed, TemporaryFailure
from vmwrapper.hostile import one_line

FINISH_FILE = "boinc_finish_called"
TEMPORARY_EXIT_FILE = "boinc_temporary_exit"
LONGEST_LINK = 511
"""How many bytes of a file's first line may be one."""

_LONGEST_REASON_BYTES = 254
"""With its line's end 255; the rest of a longer one is taken for the next line.

Source: BOINC's client/app_control.cpp, temporary_exit_file_present.
"""
_NO_REASON = "for a reason that is not known"
"""An empty one would be taken for a premature exit."""
_LINK = re.compile(rb"<soft_link>(.*?)</soft_link>")


def resolve(slot: Path, logical_name: str) -> Path:
    """The file that a logical name stands for, absolute where `slot` is; neither need exist.

    Source: BOINC's lib/app_ipc.cpp, boinc_resolve_filename.
    """
    path = slot / logical_name
    try:
        if path.is_symlink() or not path.is_file():
            return path
        with path.open("rb") as file:
            line = file.readline(LONGEST_LINK)
    except OSError:
        return path
    link = _LINK.search(line)
    target = unescaped(link[1].strip()) if link else b""
    return slot / os.fsdecode(target) if link and b"\0" not in target else path  # no file has a NUL in its name


def is_soft_link(path: Path) -> bool:
    """Whether the name of this file would stand for another: a guest's output that did could become any file."""
    return resolve(path.parent, path.name) != path


def write_finish(slot: Path, *, status: int = 0, notice: str = "") -> None:
    """Say that the job is done, which an exit status of 0 alone does not say. Raises HostDiskFailed.

    The volunteer is shown the notice. Source: BOINC's api/boinc_api.cpp, boinc_finish_message.
    """
    shown = f"{_line_of_client(notice)}\nnotice\n" if notice.strip() else ""
    write_durably(slot / FINISH_FILE, f"{status}\n{shown}".encode())


def remove_finish(slot: Path) -> None:
    """Take back what an earlier episode said, which the client never does. Raises HostDiskFailed."""
    path = slot / FINISH_FILE
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostDiskFailed(f"can't remove {path}: {error.strerror}") from error


def _line_of_client(text: str) -> str:
    return one_line(text.strip()).encode()[:_LONGEST_REASON_BYTES].decode(errors="ignore")


def write_temporary_exit(slot: Path, error: TemporaryFailure) -> None:
    """Ask for another start after the error's delay, with its reason. Raises HostDiskFailed."""
    reason = _line_of_client(str(error)) or _NO_REASON
    notice = "notice\n" if error.concerns_volunteer else ""
    write_durably(slot / TEMPORARY_EXIT_FILE, f"{error.retry_after_s}\n{reason}\n{notice}".encode())
