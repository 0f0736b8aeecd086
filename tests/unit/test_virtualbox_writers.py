"""Whether somebody writes a file of a folder: by real files, and processes that have them open."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from vmwrapper.hypervisor.virtualbox import writers
from vmwrapper.hypervisor.virtualbox.writers import being_written

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

OPENED = "import sys; file = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"


@contextmanager
def opened(path: Path, mode: str) -> Iterator[None]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", OPENED, path, mode], **pipes) as other:
        assert other.stdin
        assert other.stdout
        other.stdout.readline()
        yield
        other.stdin.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").touch()
    (folder / "inner/file").touch()
    return folder


@pytest.mark.parametrize("name", ["file", "inner/file", "new"])
@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_a_file_that_is_open_for_writing(folder: Path, name: str, mode: str) -> None:
    (folder / name).touch()
    with opened(folder / name, mode):
        assert being_written([folder], Event()) == folder / name
    assert being_written([folder], Event()) is None


def test_one_that_is_read_is_none(folder: Path) -> None:
    with opened(folder / "file", "r"):
        assert being_written([folder], Event()) is None


def test_what_is_no_file_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "to folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with opened(tmp_path / "elsewhere", "w"):
        assert being_written([folder], Event()) is None
    assert being_written([tmp_path / "nothing"], Event()) is None


def test_who_opens_it_meanwhile_disturbs_nobody(folder: Path) -> None:
    script = "import sys\nwhile True:\n with open(sys.argv[1], 'w') as file: file.write('x')\n"
    with subprocess.Popen([sys.executable, "-c", script, folder / "file"]) as other:
        ends_at_s, seen = time.monotonic() + 1, set()
        while time.monotonic() < ends_at_s or len(seen) < 2:
            seen.add(being_written([folder], Event()))
        assert other.poll() is None
        other.kill()
    assert seen == {None, folder / "file"}


def test_what_a_full_or_foreign_disk_can_t_tell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS no file gets a lease, whether somebody writes it or not."""
    with opened(folder / "file", "w"):
        assert being_written([folder], Event())
        monkeypatch.setattr(writers, "_is_written", lambda _: True)
        assert being_written([folder], Event()) is None


def test_it_looks_at_so_many_files_only_and_no_longer_than_one_wants(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = Event()
    with opened(folder / "file", "w"):
        monkeypatch.setattr(writers, "_MOST_FILES", 0)
        assert being_written([folder], enough) is None
        monkeypatch.undo()
        assert being_written([folder], enough) == folder / "file"
        enough.set()
        assert being_written([folder], enough) is None
