"""Where a machine is: for VirtualBox, and on the host's disk."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hypervisor.interface import MachineIdentity

_FAMILY = UUID("5d1c7f3e-8f0f-4c53-9d0b-6a2f0c4f7e11")
_NAME_PREFIX = "vmwrapper "
_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's."""

    uuid: str
    folder: Path
    """The machine's own, where VirtualBox keeps its files; called like the machine."""

    @property
    def settings(self) -> Path:
        return self.folder / f"{self.folder.name}.vbox"

    @property
    def good_settings(self) -> Path:
        """A copy of the settings as they were when VirtualBox was not just changing them."""
        return self.folder / "settings.good"

    @property
    def second_names(self) -> Path:
        """A folder with second names of the disks, while VirtualBox is merging some."""
        return self.folder / "disks"

    @property
    def log(self) -> Path:
        return self.folder / "Logs" / "VBox.log"

    @property
    def requests(self) -> Path:
        """A folder that the guest reads."""
        return self.folder / "requests"

    @property
    def answers(self) -> Path:
        """And one that it writes."""
        return self.folder / "answers"

    @property
    def console(self) -> Path:
        return self.folder / "console"


def place_of(identity: MachineIdentity, directory: Path) -> Place:
    """Its UUID is that of its slot, always the same: so none of an earlier episode is ever forgotten there."""
    slot = _slot_digest(identity.slot)
    return Place(_uuid(slot), directory / _name(identity.result_name, slot))


def slot_of(uuid: str, settings: Path) -> Path | None:
    """The slot of the machine with this UUID and settings file, where that is one of ours.

    No other machine passes for one: its UUID is that of the slot in whose folder its settings are.
    """
    folder = settings.parent.parent
    is_its_own = folder.name == MACHINE_FOLDER and _uuid(_slot_digest(str(folder.parent))) == uuid
    return folder.parent if is_its_own else None


def _slot_digest(slot: str) -> str:
    """Of its path as VirtualBox writes it."""
    return hashlib.sha256(os.path.normpath(slot).encode(errors="surrogatepass")).hexdigest()


def _uuid(slot_digest: str) -> str:
    return str(uuid5(_FAMILY, slot_digest))


def _name(result_name: str, slot: str) -> str:
    """What the volunteer sees in VirtualBox's own window."""
    return f"{_NAME_PREFIX}{_ODD.sub('_', result_name)[:_NAME_LIMIT]} {slot[:8]}"


def is_ours(name: str) -> bool:
    """Whether a machine of this name was made by a vmwrapper."""
    return name.startswith(_NAME_PREFIX)
