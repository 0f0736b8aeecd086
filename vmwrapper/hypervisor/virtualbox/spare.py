"""What brings a machine back whose episode died while VirtualBox was changing its files.

VirtualBox first deletes the disk that it has merged into another one, and then writes the settings that do without it:
a machine whose process or whose service dies in between can't be opened any more. So there are second names of all
disks meanwhile: a disk is only read when it is merged into another, which reads as before once it is there again. Of
the settings there is a copy from the last time when nothing was changing.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vmwrapper.durable import sync, write_durably
from vmwrapper.errors import HostDiskFailed
from vmwrapper.hypervisor.virtualbox.disks import files
from vmwrapper.hypervisor.virtualbox.place import Place


def keep_settings(place: Place) -> None:
    """Have a copy of the settings; none where the host's disk refuses."""
    with suppress(OSError, HostDiskFailed):
        write_durably(place.good_settings, place.settings.read_bytes())


def restore_settings(place: Place) -> None:
    """Have the last good ones, where there are any. Raises HostDiskFailed."""
    with suppress(FileNotFoundError):
        write_durably(place.settings, place.good_settings.read_bytes())


@contextmanager
def disks_kept(place: Place) -> Iterator[None]:
    """Have second names of all disks, until the block has come to its end; see `disks.put_in_order`."""
    with suppress(OSError):  # where the file system has none
        for disk in files(place.folder):
            second = place.second_names / disk.relative_to(place.folder)
            second.parent.mkdir(parents=True, exist_ok=True)
            second.unlink(missing_ok=True)
            os.link(disk, second)
        for folder in (place.second_names / "Snapshots", place.second_names, place.folder):
            sync(folder)
    yield
    forget_disks(place)


def forget_disks(place: Place) -> None:
    """Remove the second names, once VirtualBox has the machine as it is."""
    shutil.rmtree(place.second_names, ignore_errors=True)
