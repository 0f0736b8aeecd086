"""By what a machine of ours is known on a server that many share."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from vmwrapper.hypervisor.interface import MachineIdentity

IDENTITY_KEY = "vmwrapper.identity"
"""In a machine's extraConfig: by whom it is ours, as `Place.mark` has it."""
PREFIX = "vmwrapper "
_FAMILY = UUID("0f0a5c0e-6d0b-5d0c-9c1b-0f3d4b3f2f0e")
_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LIMIT = 50


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's."""

    uuid: str
    """Its instance UUID; that of its slot, always the same, so that none of an earlier episode is forgotten."""
    name: str
    """What a person sees in the inventory."""
    mark: str
    """What is in IDENTITY_KEY."""


def place_of(identity: MachineIdentity, owner: str) -> Place:
    """The place of a machine of this owner's, as `Settings` has it."""
    uuid = uuid_of(Path(identity.slot), owner)
    name = _ODD.sub("_", identity.result_name)[:_NAME_LIMIT]
    return Place(uuid, f"{PREFIX}{name} {uuid[:8]}", mark_of(str(identity), owner))


def mark_of(identity: str, owner: str) -> str:
    return f"{owner}\n{identity}"


def identity_of(extra_config: Iterable[Any], owner: str) -> str | None:
    """The identity of a machine with this extraConfig, where it is this owner's, and nobody else's as well."""
    marks = {option.value for option in extra_config if option.key == IDENTITY_KEY}
    if len(marks) != 1:
        return None
    whose, _, identity = str(*marks).partition("\n")
    return identity if whose == owner else None


def uuid_of(slot: Path, owner: str) -> str:
    text = f"{owner}\n{slot}"
    return str(uuid5(_FAMILY, hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()))
