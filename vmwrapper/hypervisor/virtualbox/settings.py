"""What a machine consists of: little hardware, and no road to the host but the two folders for requests and answers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.hypervisor.interface import SCRATCH_SERIAL, MachineSpec

CONTROLLER = "disks"
CONTROLLER_OPTIONS = ("--add", "ide", "--controller", "PIIX4")
"""Not SATA: see docs/adr/007."""
ROOT, SCRATCH, CD = (
    ("--port", "0", "--device", "0"),
    ("--port", "1", "--device", "0"),
    ("--port", "1", "--device", "1"),
)
REQUESTS, ANSWERS = "vmwrapper-requests", "vmwrapper-answers"
"""The names of folders that host and guest share: see requests.py."""
SHARED = "shared"
INTERPRETED = ("--vm-execution-engine", "interpreter")

_ALWAYS = {
    "ioapic": "on",
    "rtc-use-utc": "on",
    "boot1": "disk",
    "boot2": "dvd",
    "boot3": "none",
    "boot4": "none",
    "nic1": "none",
    "audio-driver": "none",
    "clipboard-mode": "disabled",
    "drag-and-drop": "disabled",
    "vrde": "off",
    "mouse": "ps2",
    "graphicscontroller": "vmsvga",
    "vram": "9",
    "firmware-logo-fade-in": "off",
    "firmware-logo-fade-out": "off",
    "firmware-logo-display-time": "0",
    "firmware-boot-menu": "disabled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine's."""

    spec: MachineSpec
    disk_format: str | None
    """Of the base image, as VirtualBox calls it; None where that is a CD, and there is no disk but the scratch disk."""
    is_interpreted: bool
    """For hosts whose processor can run no guests."""

    @property
    def is_cd(self) -> bool:
        return self.disk_format is None

    def options(self, console: Path) -> Iterator[str]:
        """Of `VBoxManage modifyvm`. Source: VirtualBox's manual, "VBoxManage modifyvm"."""
        yield from ("--description", str(self.spec.identity), "--uart1", "0x3F8", "4")
        yield from ("--uart-mode1", "file", str(console), "--cpuexecutioncap", str(self.spec.cpu_cap_percent))
        yield from self._options()

    def _options(self) -> Iterator[str]:
        yield from ("--memory", str(self.spec.memory_mib), "--cpus", str(self.spec.cpus))
        for name, value in _ALWAYS.items():
            yield from (f"--{name}", value)
        if self.is_interpreted:
            yield from INTERPRETED

    def scratch_serial(self) -> tuple[str, str]:
        """The extra data by which the guest finds its scratch disk."""
        return "VBoxInternal/Devices/piix3ide/0/Config/SecondaryMaster/SerialNumber", SCRATCH_SERIAL

    def digest(self) -> str:
        """Another one for a machine that a guest's memory does not fit."""
        facts = [*CONTROLLER_OPTIONS, *self._options(), self.is_cd, self.spec.scratch_mib, REQUESTS, ANSWERS]
        if self.spec.shared:
            facts.append(SHARED)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
