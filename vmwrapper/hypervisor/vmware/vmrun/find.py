"""Where vmrun is: on PATH, or where VMware's installers put it.

Source: VMware's "Using vmrun to Control Virtual Machines"; its manuals of Workstation, Player and Fusion.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_LINUX = (Path("/usr/bin/vmrun"), Path("/usr/local/bin/vmrun"), Path("/usr/lib/vmware-vix/bin/vmrun"))
_MAC_OS = (
    Path("/Applications/VMware Fusion.app/Contents/Public/vmrun"),
    Path("/Applications/VMware Fusion.app/Contents/Library/vmrun"),
)
_WINDOWS = ("VMware Workstation", "VMware Player", "VMware VIX")
_REGISTRY_KEYS = (
    r"SOFTWARE\WOW6432Node\VMware, Inc.\VMware Workstation",
    r"SOFTWARE\VMware, Inc.\VMware Workstation",
    r"SOFTWARE\WOW6432Node\VMware, Inc.\VMware Player",
)


def find_vmrun() -> Path | None:
    """The program, or None where there is none."""
    return next((place for place in places(sys.platform, os.environ) if place.is_file()), None)


def products(platform: str) -> tuple[str, ...]:
    """What may be there, as vmrun's option -T has it, best first."""
    return ("fusion",) if platform == "darwin" else ("ws", "player")


def places(platform: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """Where it may be, best first."""
    if found := shutil.which("vmrun", path=environment.get("PATH")):
        yield Path(found)
    if platform == "win32":
        yield from (Path(folder, "vmrun.exe") for folder in _windows_folders(environment))
    elif platform == "darwin":
        yield from _MAC_OS
    else:
        yield from _LINUX


def _windows_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    for key in _REGISTRY_KEYS:
        if folder := _registered(key):
            yield Path(folder)
    for variable in ("PROGRAMFILES(X86)", "PROGRAMFILES"):
        if folder := environment.get(variable):
            yield from (Path(folder, "VMware", product) for product in _WINDOWS)


if sys.platform == "win32":
    import winreg

    def _registered(name: str) -> str | None:
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, name) as key:
                return str(winreg.QueryValueEx(key, "InstallPath")[0])
        except OSError:
            return None

else:

    def _registered(name: str) -> str | None:
        """There is no registry."""
