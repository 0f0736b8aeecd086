"""Where VBoxManage is looked for, on each kind of host."""

import os
import stat
from pathlib import Path

import pytest

from vmwrapper.hypervisor.virtualbox import find
from vmwrapper.hypervisor.virtualbox.find import _places, find_vboxmanage

MAC_OS = Path("/Applications/VirtualBox.app/Contents/MacOS/VBoxManage")


@pytest.fixture
def on_path(tmp_path: Path) -> Path:
    """A VBoxManage in a folder of PATH."""
    program = tmp_path / "VBoxManage"
    program.touch()
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has none."""
    return {"PATH": str(tmp_path / "empty")}


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin", "freebsd14"])
def test_that_on_path_comes_first(on_path: Path, platform: str) -> None:
    found = list(_places(platform, {"PATH": f"/nowhere{os.pathsep}{on_path.parent}", "PROGRAMFILES": "/programs"}))
    assert found[0] == on_path


def test_on_linux_nowhere_else(nothing: dict[str, str]) -> None:
    assert list(_places("linux", nothing)) == []


def test_on_macos_in_its_bundle(nothing: dict[str, str]) -> None:
    """A program that is started by no shell has a PATH without /usr/local/bin."""
    assert list(_places("darwin", nothing)) == [MAC_OS]


def test_on_windows_where_the_installer_says(nothing: dict[str, str]) -> None:
    """The installer sets VBOX_MSI_INSTALL_PATH, which ends with a backslash there, and leaves PATH alone."""
    told = {
        "VBOX_MSI_INSTALL_PATH": "/msi/",
        "VBOX_INSTALL_PATH": "/old",
        "PROGRAMFILES": "/programs",
    }
    assert list(_places("win32", nothing | told)) == [
        Path("/msi/VBoxManage.exe"),
        Path("/old/VBoxManage.exe"),
        Path("/programs/Oracle/VirtualBox/VBoxManage.exe"),
    ]


def test_on_windows_with_nothing_said(nothing: dict[str, str]) -> None:
    assert list(_places("win32", nothing | {"VBOX_MSI_INSTALL_PATH": ""})) == []


def test_on_windows_by_its_registry(nothing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_registered", lambda: "/registered")
    found = list(_places("win32", nothing | {"VBOX_MSI_INSTALL_PATH": "/msi", "PROGRAMFILES": "/programs"}))
    assert [place.parent for place in found] == [Path("/msi"), Path("/registered"), Path("/programs/Oracle/VirtualBox")]


def test_found(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_vboxmanage() == on_path


def test_not_found(nothing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nothing["PATH"])
    assert find_vboxmanage() is None
