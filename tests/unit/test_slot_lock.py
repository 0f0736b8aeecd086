"""One wrapper at a time in a slot; and what of this package is the same on Windows."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmwrapper.boinc import slot_lock as module
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.errors import HostDiskFailed, SlotBusy

TAKES = "import sys; from pathlib import Path; from vmwrapper.boinc.slot_lock import slot_lock\n"
TAKES += "with slot_lock(Path(sys.argv[1])): print('taken')"

ON_WINDOWS = """\
import asyncio, logging, mmap, psutil, queue, signal, sys, threading, types
taken = []
windows = types.ModuleType("msvcrt")
windows.LK_NBLCK = 2
windows.locking = lambda *arguments: taken.append(arguments)
sys.modules["msvcrt"], sys.modules["fcntl"] = windows, None
sys.platform = "win32"
from pathlib import Path
import vmwrapper.boinc.client
from vmwrapper.boinc.slot_files import write_durably
from vmwrapper.boinc.slot_lock import slot_lock
with slot_lock(Path(sys.argv[1])):
    write_durably(Path(sys.argv[1]) / "file", b"x")
print(len(taken), taken[0][1:])
"""


def run(script: str, slot: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script, slot], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def test_one_after_the_other(tmp_path: Path) -> None:
    with slot_lock(tmp_path):
        assert "SlotBusy" in run(TAKES, tmp_path)
        assert (tmp_path / "boinc_lockfile").exists()
    assert run(TAKES, tmp_path) == "taken\n"
    assert not (tmp_path / "boinc_lockfile").exists()


def test_a_file_that_its_owner_has_just_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_take", lambda file: Path(file.name).unlink())
    with pytest.raises(SlotBusy, match="just ended"), slot_lock(tmp_path):
        pass


def test_a_file_that_cant_be_removed_is_left(tmp_path: Path) -> None:
    with slot_lock(tmp_path):
        (tmp_path / "boinc_lockfile").unlink()
        (tmp_path / "boinc_lockfile").mkdir()
    assert (tmp_path / "boinc_lockfile").is_dir()


def test_without_a_slot_it_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(HostDiskFailed, match="can't write"), slot_lock(tmp_path / "none"):
        pass


@pytest.mark.parametrize(("number", "outcome"), [(errno.ENOSYS, None), (errno.ENOLCK, HostDiskFailed)])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, outcome: type[Exception] | None
) -> None:
    def fail(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_take", fail)
    if outcome:
        with pytest.raises(outcome, match="can't lock"), slot_lock(tmp_path):
            pass
    else:
        with slot_lock(tmp_path):
            assert (tmp_path / "boinc_lockfile").exists()


def test_windows_has_its_own_lock(tmp_path: Path) -> None:
    assert run(ON_WINDOWS, tmp_path) == "1 (2, 1)\n"
    assert {path.name for path in tmp_path.iterdir()} == {"boinc_lockfile", "file"}
