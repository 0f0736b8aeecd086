"""A folder in which every change is written down in order, by a process of its own, for `power_cut` to play back.

    with recorded_folder(slot, backing=tmp / "backing", log=tmp / "log") as recorded:
        ...  # programs work in `slot`; recorded.mark("told the client of checkpoint 3")
    recording = Recording.read(tmp / "log")

Afterwards `slot` is an ordinary, empty folder again: the place to put what survived a power cut, so that absolute paths
in it still lead there. What lies in `backing` at the start is in the folder, and counts as being on the disk.

Programs find here what they want of a file system, save for what others lack, too: O_TMPFILE (Python's tempfile falls
back), extended attributes, RENAME_EXCHANGE, FALLOC_FL_COLLAPSE_RANGE. Locks are the kernel's, of all kinds. A shared
mapping is recorded when the kernel writes its pages back, as late as at msync or the last close. Not recorded are
sync() and syncfs(), which FUSE isn't told of, owners and times.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .fuse import Kernel, mount, unmount
from .operations import Log, Recording
from .passthrough import MARK, Passthrough

_ENDS_WITHIN_S = 30
_READY = "ready\n"


@dataclass(frozen=True, slots=True)
class RecordedFolder:
    folder: Path
    backing: Path
    """Looks the same, but what is changed there goes by the log."""
    log: Path

    def mark(self, text: str) -> None:
        """Behind all that has been done in the folder. Any program can do so: it sets an extended attribute."""
        os.setxattr(self.folder, MARK, text.encode())

    def recording(self) -> Recording:
        """As far as it is."""
        return Recording.read(self.log)


class RecorderFailed(Exception):
    """The process that records ended by itself; its last words are in the message."""


@cache
def why_not() -> str | None:
    """The reason why folders can't be recorded on this machine, if there is one, for a test to skip with."""
    if sys.platform != "linux":
        return "needs Linux, for its FUSE"
    if shutil.which("fusermount3") is None:
        return "needs fusermount3: apt-get install fuse3"
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.close(mount(Path(folder)))
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs to mount through FUSE: {getattr(error, 'stderr', None) or error}".rstrip()
        unmount(Path(folder))
    return None


@contextmanager
def recorded_folder(folder: Path, *, backing: Path, log: Path) -> Iterator[RecordedFolder]:
    """Mount, and unmount at the end. Makes the three folders where they are missing; the log's must be empty.

    Raises RecorderFailed, also at the end where the recording is not whole.
    """
    for each in (folder, backing, log):
        each.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"{__package__}.recorded_folder", *map(str, (folder, backing, log))]
    words = log / "recorder.err"
    with (
        words.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=Path(__file__).parents[2],
            text=True,
            start_new_session=True,  # what a test sends to its group is not for the recorder
        ) as recorder,
    ):
        assert recorder.stdin is not None
        assert recorder.stdout is not None
        try:
            if recorder.stdout.readline() == _READY:
                yield RecordedFolder(folder, backing, log)
        finally:
            recorder.stdin.close()
            try:
                status = recorder.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                recorder.kill()
                unmount(folder)
                raise RecorderFailed(f"{folder} is still in use by a program") from None
            if status != 0:
                raise RecorderFailed(words.read_text())


def _unmount_when_left_alone(folder: Path) -> None:
    """Whoever wanted the folder closes our standard input, be it by dying."""
    os.read(sys.stdin.fileno(), 1)
    unmount(folder)


def main(folder: Path, backing: Path, log_folder: Path) -> None:
    with Log(log_folder) as log:
        passthrough = Passthrough(backing, log)
        os.umask(0)  # the kernel has applied that of whoever asks
        try:
            kernel = Kernel(mount(folder))
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{error.stderr}")
        threading.Thread(target=_unmount_when_left_alone, args=[folder], daemon=True).start()
        print(_READY, end="", flush=True)
        try:
            passthrough.serve(kernel)
        except BaseException:
            unmount(folder)
            raise


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
