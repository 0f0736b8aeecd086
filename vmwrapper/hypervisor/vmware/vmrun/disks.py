"""Virtual disks in VMware's own format, made without a tool of VMware's: Player has none.

Source: VMware's Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Delta Links".
"""

import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

_SECTOR = 512
_GRAIN_SECTORS = 128
_ENTRIES = 512
"""Of a grain table."""
_DESCRIPTION_SECTORS = 20
_DESCRIPTION_AT = 1
_TABLE_SECTORS = _ENTRIES * 4 // _SECTOR
_FLAGS = 3  # newlines are to be checked; there is a second grain directory
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_NO_PARENT = "ffffffff"
_DISK_DATA = """\

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "10"
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.uuid = "{uuid}"
"""


@dataclass(frozen=True, slots=True)
class Parent:
    """The disk that another one is built on."""

    file: Path
    content: str
    """Its content identity."""


def make_overlay(file: Path, sectors: int, parent: Parent) -> None:
    """Make a disk that has what its parent has, until it is written to. Raises OSError."""
    hint = f'parentFileNameHint="{parent.file}"\n'
    _make(file, sectors, f'parentCID={parent.content}\nisNativeSnapshot="no"\n', hint, "")


def make_disk(file: Path, sectors: int, *, serial: str) -> None:
    """Make an empty disk, whose serial number has 32 hexadecimal digits. Raises OSError."""
    pairs = [serial[at : at + 2] for at in range(0, 32, 2)]
    uuid = f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"
    data = _DISK_DATA.format(cylinders=max(1, sectors // (255 * 63)), uuid=uuid)
    _make(file, sectors, f"parentCID={_NO_PARENT}\n", "", data)


def _make(file: Path, sectors: int, parent: str, hint: str, data: str) -> None:
    description = (
        f'# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID={secrets.randbelow(0xFFFFFFFE):08x}\n{parent}'
        f'createType="monolithicSparse"\n{hint}\n# Extent description\nRW {sectors} SPARSE "{file.name}"\n{data}'
    ).encode()
    if len(description) > _DESCRIPTION_SECTORS * _SECTOR:
        raise OSError(0, "the base image's path is too long for VMware", str(file))
    tables = -(-sectors // (_GRAIN_SECTORS * _ENTRIES))
    directory_sectors = -(-tables * 4 // _SECTOR)
    second_at = _DESCRIPTION_AT + _DESCRIPTION_SECTORS
    first_at = second_at + directory_sectors + tables * _TABLE_SECTORS
    end = first_at + directory_sectors + tables * _TABLE_SECTORS
    overhead = -(-end // _GRAIN_SECTORS) * _GRAIN_SECTORS
    header = _HEADER.pack(
        b"KDMV",
        1,
        _FLAGS,
        sectors,
        _GRAIN_SECTORS,
        _DESCRIPTION_AT,
        _DESCRIPTION_SECTORS,
        _ENTRIES,
        second_at,
        first_at,
        overhead,
        0,  # it was closed in good order
        b"\n \r\n",
        0,  # not compressed
    )
    with file.open("xb") as made:
        made.write(header)
        made.seek(_DESCRIPTION_AT * _SECTOR)
        made.write(description)
        for at in (second_at, first_at):
            begin = at + directory_sectors
            made.seek(at * _SECTOR)
            made.write(struct.pack(f"<{tables}I", *range(begin, begin + tables * _TABLE_SECTORS, _TABLE_SECTORS)))
        made.truncate(overhead * _SECTOR)  # grain tables of zeros: all is the parent's
