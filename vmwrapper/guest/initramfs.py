"""An initramfs, that is a cpio archive in the format `newc`, made in memory and without root.

It stays uncompressed: with LZ4 it is half as large and boots no faster.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Node:
    """A file of any kind, owned by root. `mode` has the file type in it; `device` is (major, minor)."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, *, mode: int = 0o644) -> Node:
    return Node(stat.S_IFREG | mode, data)


def folder(*, mode: int = 0o755) -> Node:
    return Node(stat.S_IFDIR | mode)


def link(target: str) -> Node:
    """A symbolic link."""
    return Node(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, *, mode: int = 0o600) -> Node:
    return Node(stat.S_IFCHR | mode, device=(major, minor))


def archive(nodes: Mapping[str, Node]) -> bytes:
    """A cpio archive of nodes by relative path; folders that are only implied are added. Equal nodes give equal bytes.

    Source: Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    implied = {str(parent): folder() for path in nodes for parent in PurePosixPath(path).parents}
    complete = implied | dict(nodes)
    packed = bytearray()
    for inode, path in enumerate(sorted(complete), start=1):
        packed += b"".join(_record(path, complete[path], inode))
    packed += b"".join(_record("TRAILER!!!", Node(0), 0))
    return bytes(packed)


def _record(path: str, node: Node, inode: int) -> Iterator[bytes]:
    name = path.encode() + b"\0"
    owner, group, links, changed, checksum = 0, 0, 1, 0, 0
    archive_device = (0, 0)
    fields = (inode, node.mode, owner, group, links, changed, len(node.data), *archive_device, *node.device)
    header = b"070701" + b"".join(b"%08x" % field for field in (*fields, len(name), checksum))
    yield header + name
    yield bytes(-len(header + name) % 4)
    yield node.data
    yield bytes(-len(node.data) % 4)
