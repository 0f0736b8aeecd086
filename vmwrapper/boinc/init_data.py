"""What the client tells an app of its job before it starts it: `init_data.xml`.

Which is not XML: names and paths stand in it as they are. Source: BOINC's lib/app_ipc.cpp, write_init_data_file.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.errors import ClientUnreachable
from vmwrapper.hostile import one_line

INIT_DATA_FILE = "init_data.xml"
SHARED_BY_FILE = -1
"""The `shm_key` of an app version whose channels are a file."""

_LARGEST_BYTES = 1 << 18
_BEGIN, _END = b"<app_init_data>", b"</app_init_data>"
_TAG = re.compile(rb"<(\w+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitData:
    """What we need of it. The volunteer's authenticator, which is in the file, too, is never kept."""

    project_dir: Path
    """Absolute."""
    result_name: str
    client_pid: int
    """0 where the client doesn't say it."""
    shm_key: int
    checkpoint_cpu_time_s: float
    """As of the last checkpoint, over all episodes."""
    fraction_done_start: float
    fraction_done_end: float


def read_init_data(slot: Path) -> InitData:
    """What the client says of the slot's job. Raises ClientUnreachable with the reason why it can't be used."""
    path = slot / INIT_DATA_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES)
    except OSError as error:
        raise ClientUnreachable(f"can't read {path}: {error.strerror}") from error
    try:
        return parse_init_data(content)
    except ValueError as error:
        raise ClientUnreachable(f"{path} is not as the client writes it: {error}") from error


def parse_init_data(content: bytes) -> InitData:
    """Raises ValueError with what is wrong, which tells nothing secret."""
    values = _Values(content)
    project_dir = Path(os.fsdecode(values.line(b"project_dir")))
    if not project_dir.is_absolute():
        raise ValueError("<project_dir> is no absolute path")
    return InitData(
        project_dir=project_dir,
        result_name=one_line(values.line(b"result_name").decode(errors="replace")),
        client_pid=values.integer(b"client_pid", at_least=0),
        shm_key=values.integer(b"shm_key", at_least=SHARED_BY_FILE),
        checkpoint_cpu_time_s=values.number(b"wu_cpu_time", default=0.0),
        fraction_done_start=values.number(b"fraction_done_start", default=0.0),
        fraction_done_end=values.number(b"fraction_done_end", default=1.0),
    )


class _Values:
    """The elements directly below the root.

    Each reaches to the first end tag of its name, whatever is inside. The last one of a name counts: what strangers may
    have called a team or a user stands before what the client says of the job.
    """

    def __init__(self, content: bytes) -> None:
        begin, end = content.find(_BEGIN), content.rfind(_END)
        if not 0 <= begin < end:
            raise ValueError("it is cut short")
        content = content[begin + len(_BEGIN) : end]
        self._found: dict[bytes, bytes] = {}
        at = 0
        while tag := _TAG.search(content, at):
            at = tag.end()
            if (end := content.find(b"</%b>" % tag[1], at)) >= 0:
                self._found[tag[1]] = content[at:end]
                at = end

    def line(self, name: bytes) -> bytes:
        """A text that must be there, on one line."""
        value = self._found.get(name, b"").strip()
        if not value or b"\0" in value or b"\n" in value:
            raise ValueError(f"<{name.decode()}> is missing or no line of text")
        return value

    def integer(self, name: bytes, *, at_least: int) -> int:
        value = self._found.get(name, b"0")
        if not re.fullmatch(rb"\s*-?\d{1,10}\s*", value) or int(value) < at_least:
            raise ValueError(f"<{name.decode()}> is no integer of at least {at_least}")
        return int(value)

    def number(self, name: bytes, *, default: float) -> float:
        try:
            value = float(self._found.get(name, default))
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"<{name.decode()}> is no finite number of at least 0")
        return value
