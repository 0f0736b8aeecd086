"""Debian packages, fetched and unpacked as an ordinary user."""

import io
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vmwrapper import process
from vmwrapper.errors import VmwrapperError

_QUERY_LIMIT_S = 60
_DOWNLOAD_LIMIT_S = 900
_UNPACK_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Wanted:
    """A package to fetch: `name`, or what matches that pattern among the dependencies of the package `needed_by`.

    The latter finds names that change with each release, such as a kernel's.
    """

    name: str
    needed_by: str | None = None


class Package:
    """A package's name, version and files."""

    def __init__(self, name: str, version: str, files: bytes) -> None:
        """`files` is an uncompressed tar, from a source that is trusted."""
        self.name = name
        self.version = version
        self._tar = tarfile.open(fileobj=io.BytesIO(files))  # noqa: SIM115  (holds memory only)
        self._names = frozenset(self._tar.getnames())

    def has(self, path: str) -> bool:
        return self._name(path) is not None

    def read(self, path: str) -> bytes:
        """A file's bytes, links followed; VmwrapperError where there is none.

        A path in `usr/` also finds the file outside of it, where packages had it before Debian 13.
        """
        name = self._name(path)
        file = self._tar.extractfile(name) if name else None
        if file is None:
            raise VmwrapperError(f"the package {self.name} {self.version} has no file {path}")
        return file.read()

    def _name(self, path: str) -> str | None:
        places = (f"./{path}", f"./{path.removeprefix('usr/')}")
        return next((place for place in places if place in self._names), None)


def available() -> bool:
    """Whether this host has Debian's tools."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb"))


async def fetch(wanted: Sequence[Wanted], folder: Path, *, report: Callable[[str], None]) -> dict[Wanted, Package]:
    """Download packages into new folders in `folder` and read them.

    With the host's own package lists, or, where these are missing or name what the mirror has dropped, with new ones of
    our own. Raises VmwrapperError where that fails too.
    """
    try:
        return await _fetch(wanted, folder / "packages", options=())
    except VmwrapperError:
        report("apt's package lists are missing or too old: fetching new ones for this build")
    options = await _private_lists(folder / "apt")
    return await _fetch(wanted, folder / "fresh-packages", options=options)


async def _private_lists(folder: Path) -> tuple[str, ...]:
    """Options that make apt use package lists of our own, which are fetched now."""
    _made(folder / "state/lists/partial")
    _made(folder / "cache/archives/partial")
    settings = {"Dir::State": folder / "state", "Dir::Cache": folder / "cache", "Debug::NoLocking": 1}
    options = tuple(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))
    # Whatever its status: a source that the build does not need may be out of reach.
    await process.complete(["apt-get", *options, "update"], limit_s=_DOWNLOAD_LIMIT_S)
    return options


async def _fetch(wanted: Sequence[Wanted], folder: Path, *, options: Sequence[str]) -> dict[Wanted, Package]:
    names = {each: await _name(each, options) for each in wanted}
    command = ["apt-get", *options, "download", *names.values()]
    await process.run(command, limit_s=_DOWNLOAD_LIMIT_S, directory=_made(folder))
    found = [await _opened(file) for file in _files(folder)]
    by_name = {package.name: package for package in found}
    return {each: by_name[name] for each, name in names.items()}


async def _name(wanted: Wanted, options: Sequence[str]) -> str:
    if wanted.needed_by is None:
        return wanted.name
    said = await process.run(["apt-cache", *options, "depends", wanted.needed_by], limit_s=_QUERY_LIMIT_S)
    dependencies: list[str] = re.findall(r"Depends: (\S+)", said.decode())
    for dependency in dependencies:
        if fnmatchcase(dependency, wanted.name):
            return dependency
    raise VmwrapperError(f"no dependency of the package {wanted.needed_by} matches {wanted.name}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def _opened(file: Path) -> Package:
    shown = await process.run(["dpkg-deb", "--show", str(file)], limit_s=_QUERY_LIMIT_S)
    name, version = shown.decode().split()
    files = await process.run(["dpkg-deb", "--fsys-tarfile", str(file)], limit_s=_UNPACK_LIMIT_S)
    return Package(name, version, files)
