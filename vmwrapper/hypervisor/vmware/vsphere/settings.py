"""Which vSphere server there is, and who logs in there: from a file that nobody else can read, or the environment.

Never from the command line or a job: those are seen by others, and written by them.
"""

import os
import re
import secrets
import stat
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmwrapper.durable import sync
from vmwrapper.errors import NoUsableHypervisor

FILE_VARIABLE = "VMWRAPPER_VSPHERE"
"""Names the file, where it is not vsphere.toml in the folder `vmwrapper` of the user's settings."""
_PREFIX = "VMWRAPPER_VSPHERE_"
_REQUIRED = ("host", "user")
_OPTIONAL = ("ca_file", "datacenter", "folder", "resource_pool", "datastore")
_PASSWORDS = ("password", "password_file")
_KNOWN = (*_REQUIRED, *_OPTIONAL, *_PASSWORDS, "port")
_LONGEST_BYTES = 64 * 1024
_OWNER_FILE = "vsphere-owner"
_OWNER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A server, and where on it our machines belong. What is None is as with the base machine."""

    host: str
    port: int = 443
    user: str
    password: str = field(repr=False)
    owner: str
    """By which machines there are known as ours: a random name of this installation's."""
    ca_file: Path | None = None
    """Whose certificates are trusted, PEM; None for those that the system trusts."""
    datacenter: str | None = None
    folder: str | None = None
    """Inventory path of a folder of machines."""
    resource_pool: str | None = None
    """Inventory path."""
    datastore: str | None = None
    """Name, in the datacenter."""


def default_file() -> Path:
    """Where the settings are, unless FILE_VARIABLE names another file."""
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA") or os.path.expanduser("~")  # noqa: PTH111
    else:
        folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    return Path(folder) / "vmwrapper" / "vsphere.toml"


def is_configured(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a server is named at all. Never raises."""
    if environment.get(FILE_VARIABLE) or environment.get(f"{_PREFIX}HOST"):
        return True
    try:
        return default_file().exists()
    except OSError:
        return False


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """What the file says; what the environment says comes before it. Raises NoUsableHypervisor with what is wrong."""
    chosen = environment.get(FILE_VARIABLE)
    file = Path(chosen) if chosen else default_file()
    said: dict[str, Any] = _read(file) if chosen or file.exists() else {}
    named = {
        name: environment[f"{_PREFIX}{name.upper()}"] for name in _KNOWN if f"{_PREFIX}{name.upper()}" in environment
    }
    if named.keys() & set(_PASSWORDS):
        said = {name: value for name, value in said.items() if name not in _PASSWORDS}
    return _checked(said | named, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_secret(file))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise NoUsableHypervisor(f"{file} is no TOML: {error}") from error


def _secret(file: Path) -> str:
    """A file that only its owner may read."""
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
                raise NoUsableHypervisor(f"others may read {file}, which has a password: chmod 600 {file}")
            content = opened.read(_LONGEST_BYTES)
        return content.decode()
    except OSError as error:
        raise NoUsableHypervisor(f"can't read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NoUsableHypervisor(f"{file} is not in UTF-8") from error


def _checked(said: Mapping[str, Any], file: Path) -> Settings:
    if unknown := said.keys() - set(_KNOWN):
        raise NoUsableHypervisor(f"{file} has {', '.join(sorted(unknown))}, which mean nothing there")
    for name in _REQUIRED:
        if not said.get(name):
            raise NoUsableHypervisor(f"the vSphere server's {name} is missing: write it into {file}")
    for name, value in said.items():
        if name != "port" and not isinstance(value, str):
            raise NoUsableHypervisor(f"{name} must be a text in quotation marks in {file}")
    texts = {name: said[name] for name in (*_REQUIRED, *_OPTIONAL) if said.get(name)}
    ca_file = texts.pop("ca_file", None)
    return Settings(
        **texts,
        port=_port(said.get("port", 443), file),
        password=_password(said, file),
        owner=_owner(default_file().with_name(_OWNER_FILE)),
        ca_file=Path(ca_file) if ca_file else None,
    )


def _port(said: object, file: Path) -> int:
    if isinstance(said, int | str) and str(said).isdecimal() and 0 < int(said) < 65536:
        return int(said)
    raise NoUsableHypervisor(f"port must be a number from 1 to 65535 in {file}")


def _password(said: Mapping[str, Any], file: Path) -> str:
    given = [name for name in _PASSWORDS if said.get(name)]
    if len(given) != 1:
        what = "both password and password_file" if given else "neither password nor password_file"
        raise NoUsableHypervisor(f"{file} has {what}: one of them is needed")
    if given == ["password"]:
        return str(said["password"])
    return _secret(Path(said["password_file"])).rstrip("\r\n")


def _owner(file: Path) -> str:
    """What the file says, which is made if it is not there. Many computers share a server, some of one name."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f"{file.name}.{secrets.token_hex(8)}.new")
            try:
                new.write_text(f"{secrets.token_hex(16)}\n")
                sync(new)
                with suppress(FileExistsError):  # another job was first
                    file.hardlink_to(new)
            finally:
                new.unlink(missing_ok=True)
        said = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NoUsableHypervisor(f"can't know our machines on the vSphere server by {file}: {error}") from error
    if not _OWNER.fullmatch(said):
        raise NoUsableHypervisor(f"{file} has no 32 hexadecimal digits, by which our machines are known: remove it")
    return said
