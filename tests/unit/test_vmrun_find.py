"""Where vmrun is looked for, on each kind of host."""

import os
from pathlib import Path

import pytest

from vmwrapper.hypervisor.vmware.vmrun.find import places, products


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_that_on_path_comes_first(tmp_path: Path, platform: str) -> None:
    program = tmp_path / "vmrun"
    program.touch(mode=0o755)
    found = list(places(platform, {"PATH": f"/nowhere{os.pathsep}{tmp_path}", "PROGRAMFILES": "/programs"}))
    assert found[0] == program
    assert len(found) > 1


def test_on_linux() -> None:
    assert Path("/usr/bin/vmrun") in places("linux", {"PATH": "/nowhere"})


def test_on_macos_in_its_bundle() -> None:
    found = list(places("darwin", {"PATH": "/nowhere"}))
    assert Path("/Applications/VMware Fusion.app/Contents/Library/vmrun") in found


def test_on_windows_in_the_folders_of_programs() -> None:
    found = list(places("win32", {"PATH": "", "PROGRAMFILES(X86)": "/x86", "PROGRAMFILES": "/x64"}))
    assert found[0] == Path("/x86/VMware/VMware Workstation/vmrun.exe")
    assert Path("/x64/VMware/VMware Player/vmrun.exe") in found


def test_products() -> None:
    assert products("darwin") == ("fusion",)
    assert products("linux") == products("win32") == ("ws", "player")
