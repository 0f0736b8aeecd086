"""A VirtualBox of one's own: what one profile registers and runs is not seen by any other."""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from . import virtualbox_chroot

MACHINE_PROCESS = "VirtualBoxVM"
"""What a VBoxHeadless is called by the system."""
_LIMIT_S = 120


class Profile:
    """A user of VirtualBox, with a folder for its settings. `end` ends all that runs of it."""

    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._home.mkdir(parents=True, exist_ok=True)
        self._socket_id = f"vmwrapper-{secrets.token_hex(4)}"
        programs = virtualbox_chroot.programs()
        self.vboxmanage = programs / "VBoxManage"
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "VBOX_USER_HOME": str(self._home),
            "VBOX_IPC_SOCKETID": self._socket_id,
        }

    def manage(self, *arguments: str | Path, limit_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
        """What VBoxManage answers, also where it fails."""
        argv: Sequence[str | Path] = [self.vboxmanage, *arguments]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False, timeout=limit_s)

    def must(self, *arguments: str | Path) -> str:
        """What VBoxManage prints; it must not fail."""
        done = self.manage(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def state(self, machine: str) -> str | None:
        """Its VMState, such as `running` or `poweroff`; None where that can't be told, as when it has just died.

        It locks the machine for a moment: a VBoxHeadless that starts at the same time may fail.
        """
        found = re.search(
            r'^VMState="(.*)"$', self.manage("showvminfo", machine, "--machinereadable").stdout, re.MULTILINE
        )
        return found and found[1]

    def vms(self) -> list[str]:
        """The lines of `list vms`."""
        return self.must("list", "vms").splitlines()

    def hdds(self) -> list[str]:
        return self._locations("hdds")

    def dvds(self) -> list[str]:
        return self._locations("dvds")

    def _locations(self, kind: str) -> list[str]:
        return re.findall(r"^Location: +(.*)$", self.must("list", kind), re.MULTILINE)

    def processes(self) -> list[psutil.Process]:
        """Its machines, its server and whatever else was started with its environment, but not by us."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def machines(self) -> list[psutil.Process]:
        """Of these, those that run a machine."""
        return [process for process in self.processes() if _name(process) == MACHINE_PROCESS]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("VBOX_USER_HOME") == str(self._home)
        except (psutil.Error, OSError):
            return False

    def end(self) -> None:
        """Kill them all. What was registered stays so."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=_LIMIT_S)
        shutil.rmtree(f"/tmp/.vbox-{self._socket_id}-ipc", ignore_errors=True)


@contextlib.contextmanager
def clean_profile(folder: Path) -> Iterator[Profile]:
    """A profile that must be left with nothing registered and no machine running."""
    profile = Profile(folder)
    try:
        yield profile
        left = [*profile.vms(), *profile.hdds(), *profile.dvds(), *map(str, profile.machines())]
    finally:
        profile.end()
    assert left == [], left


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
