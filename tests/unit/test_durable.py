"""What is brought to the disk, and what the disk need not know how to do."""

import errno
import os
from pathlib import Path

import pytest

from vmwrapper.durable import sync


class Fsync:
    """Fails, as a file system does."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[os.stat_result] = []

    def __call__(self, descriptor: int) -> None:
        self.asked.append(os.fstat(descriptor))
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_file_system_may_sync_no_folders(tmp_path: Path, number: int) -> None:
    fsync = Fsync(number)
    sync(tmp_path, fsync=fsync)
    assert [os.path.samestat(asked, tmp_path.stat()) for asked in fsync.asked] == [True]


def test_a_folder_that_is_lost_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(tmp_path, fsync=Fsync(errno.EIO))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_a_file_that_is_not_synced_is_an_error(tmp_path: Path, number: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path / "file", fsync=Fsync(number))
