"""Where a machine is on the host's disk. VMware itself lists none but those that run."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hypervisor.interface import MachineIdentity

_PREFIX = "vmwrapper-"
_DIGEST = 16
_NAME = "machine"
_ODD = re.compile(r"[^A-Za-z0-9._]+")
_NAME_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's."""

    folder: Path
    """Its own, where VMware keeps its files."""
    display_name: str
    """What the volunteer sees in VMware's own window."""

    @property
    def vmx(self) -> Path:
        return self.folder / f"{_NAME}.vmx"

    @property
    def log(self) -> Path:
        return self.folder / "vmware.log"

    @property
    def console(self) -> Path:
        return self.folder / "console"


def place_of(identity: MachineIdentity, directory: Path) -> Place:
    """Its folder is called after its slot, always the same: so none of an earlier episode is ever forgotten there."""
    name = _ODD.sub("_", identity.result_name)[:_NAME_LIMIT]
    return Place(directory.absolute() / (_PREFIX + _slot_digest(identity.slot)), f"vmwrapper {name}")


def slot_of(vmx: Path) -> Path | None:
    """The slot of a machine by its .vmx file, where that is one of ours: no other passes for one."""
    folder = vmx.parent
    slot = folder.parent.parent
    is_its_own = folder.parent.name == MACHINE_FOLDER and folder.name == _PREFIX + _slot_digest(str(slot))
    return slot if is_its_own and vmx.name == f"{_NAME}.vmx" else None


def _slot_digest(slot: str) -> str:
    return hashlib.sha256(os.path.normpath(slot).encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
