"""A base image on a vSphere server: a small file of ours that names a machine there.

    machine = "DC0/vm/guests/debian"          # inventory path, "[datastore] folder/name.vmx", or UUID

The machine must have a snapshot of the name in SNAPSHOT, taken while it was off: by that its owner allows jobs to be
run on linked clones of it. A job file comes from strangers, and must not choose among all machines of a volunteer's.
"""

import re
import tomllib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vmwrapper.errors import JobError

IMAGE_SUFFIXES = (".vsphere",)
SNAPSHOT = "vmwrapper"
_LONGEST_BYTES = 4096
_LONGEST_NAME = 1000
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EXAMPLE = 'machine = "DC0/vm/name"'


class By(Enum):
    """How a machine is named; the values begin a sentence's object."""

    PATH = "the inventory path"
    FILE = "the file"
    UUID = "the UUID"


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base machine's name."""

    file: Path
    """That it was read from."""
    by: By
    name: str

    def __str__(self) -> str:
        return f"{self.by.value} {self.name!r}, which {self.file} names"


def base_image(file: Path) -> BaseImage:
    """What the file names. Raises JobError with what is wrong."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LONGEST_BYTES + 1)
        said = tomllib.loads(content.decode()) if len(content) <= _LONGEST_BYTES else {}
    except OSError as error:
        raise JobError(f"can't read the image {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise JobError(f"the image {file} names no machine of vSphere's, as by {_EXAMPLE}: {error}") from error
    name = said.get("machine")
    if said.keys() != {"machine"} or not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise JobError(f"the image {file} must name a machine of vSphere's, and nothing else: {_EXAMPLE}")
    if not name.isprintable():
        raise JobError(f"the image {file} names a machine by what can't be printed")
    return BaseImage(file, _kind(name), name)


def _kind(name: str) -> By:
    if name.startswith("["):
        return By.FILE
    return By.UUID if _UUID.fullmatch(name) else By.PATH
