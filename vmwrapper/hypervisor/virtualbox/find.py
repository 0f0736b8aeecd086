"""Where VBoxManage is: on PATH, or where VirtualBox's installers put it.

Source: VirtualBox's manual, "Installation Details"; its src/VBox/Installer.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_NEXT_TO = Path("/usr/lib/virtualbox/VBoxManage")
"""Debian's /usr/bin/VBoxManage is a script that prints warnings, and then runs this."""
_MAC_OS = Path("/Applications/VirtualBox.app/Contents/MacOS/VBoxManage")
_REGISTRY_KEY = r"SOFTWARE\Oracle\VirtualBox"


def find_vboxmanage() -> Path | None:
    """The program, or None where there is none."""
    return next((place for place in _places(sys.platform, os.environ) if place.is_file()), None)


def _places(platform: str, environment: Mapping[str, str]) -> Iterator[Path]:
    if found := shutil.which("VBoxManage", path=environment.get("PATH")):
        yield from (_NEXT_TO, Path(found)) if Path(found) == Path("/usr/bin/VBoxManage") else (Path(found),)
    if platform == "win32":
        for folder in _windows_folders(environment):
            yield folder / "VBoxManage.exe"
    elif platform == "darwin":
        yield _MAC_OS


def _windows_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("VBOX_MSI_INSTALL_PATH", "VBOX_INSTALL_PATH"):
        if folder := environment.get(variable):
            yield Path(folder)
    if folder := _registered():
        yield Path(folder)
    if folder := environment.get("PROGRAMFILES"):
        yield Path(folder, "Oracle", "VirtualBox")


if sys.platform == "win32":
    import winreg

    def _registered() -> str | None:
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _REGISTRY_KEY) as key:
                return str(winreg.QueryValueEx(key, "InstallDir")[0])
        except OSError:
            return None

else:

    def _registered() -> str | None:
        """There is no registry."""
