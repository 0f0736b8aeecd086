"""Elements of what BOINC writes, which looks like XML and is none, read into dataclasses.

Names and paths stand in it as they are. An element reaches to the first end tag of its name, whatever is inside.
"""

import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmwrapper.boinc.secret import Secret
from vmwrapper.hostile import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)

Elements = Mapping[bytes, list[bytes]]
"""The contents of all elements of a name, in their order."""

_TAG = re.compile(rb"<(\w+)\s*(/?)>")
_END_TAG = re.compile(rb"</(\w+)>")
_INTEGER = re.compile(rb"[+-]?\d{1,10}")
_INT_MAX = (1 << 31) - 1
_ENTITY = re.compile(rb"&(?:(lt|gt|amp|quot|apos)|#(\d{1,3}));")
_ENTITIES = {b"lt": b"<", b"gt": b">", b"amp": b"&", b"quot": b'"', b"apos": b"'"}


def scan(content: bytes) -> Elements:
    """The elements at the top of `content`; of `<x/>`, which stands for true, the content is 1."""
    ends: dict[bytes, list[int]] = {}  # looked for once: a search for each tag's would take for ever where none ends
    for end_tag in _END_TAG.finditer(content):
        ends.setdefault(end_tag[1], []).append(end_tag.start())
    found: dict[bytes, list[bytes]] = {}
    at = 0
    while tag := _TAG.search(content, at):
        at, name = tag.end(), tag[1]
        if tag[2]:
            found.setdefault(name, []).append(b"1")
        elif (next_end := bisect_left(its_ends := ends.get(name, []), at)) < len(its_ends):
            end = its_ends[next_end]
            found.setdefault(name, []).append(content[at:end])
            at = end
    return found


def unescaped(text: bytes) -> bytes:
    """The opposite of xml_escape in BOINC's lib/str_util.cpp, which writes a byte above 127 as its number."""
    return _ENTITY.sub(lambda entity: _ENTITIES[entity[1]] if entity[1] else bytes([int(entity[2]) & 0xFF]), text)


def tagged(tag: str, default: Any) -> Any:
    """A dataclass's field whose element is not called as it is."""
    return field(default=default, metadata={"tag": tag})


def sound(default: Any) -> Any:
    """A dataclass's field whose element must make sense if it is there."""
    return field(default=default, metadata={"sound": True})


def escaped(default: Any = "") -> Any:
    """A dataclass's field whose text the client escapes."""
    return field(default=default, metadata={"escaped": True})


def read(record: "type[Record]", found: Elements) -> "Record":
    """A dataclass filled from the elements called as its fields are, of which the last counts.

    A field whose element is missing or makes no sense has its default. Raises ValueError, which tells nothing of the
    content, where it has none or must be `sound`.
    """
    values: dict[str, object] = {}
    for item in fields(record):
        contents = found.get(item.metadata.get("tag", item.name).encode(), [])
        if not contents and item.default is not MISSING:
            continue
        try:
            values[item.name] = _value(item, contents)
        except ValueError as error:
            if item.default is MISSING or item.metadata.get("sound"):
                raise ValueError(f"<{item.name}> is {error}") from None
    return record(**values)


def _value(item: "Field[Any]", contents: list[bytes]) -> object:
    kind: object = item.type
    if isinstance(kind, type) and is_dataclass(kind):
        return read(kind, scan(contents[-1] if contents else b""))
    if kind == tuple[str, ...]:
        return tuple(_text(content) for content in contents)
    if not contents:
        raise ValueError("missing")
    content = unescaped(contents[-1]) if item.metadata.get("escaped") else contents[-1]
    return _KINDS[kind](content)


def _line(content: bytes) -> bytes:
    line = content.strip()
    if not line or b"\0" in line or b"\n" in line:
        raise ValueError("missing or no line of text")
    return line


def _text(content: bytes) -> str:
    return one_line(_line(content).decode(errors="replace"))


def _path(content: bytes) -> Path:
    path = Path(os.fsdecode(_line(content)))
    if not path.is_absolute():
        raise ValueError("no absolute path")
    return path


def _secret(content: bytes) -> Secret:
    return Secret(_line(content).decode(errors="surrogateescape"))


def _integer(content: bytes) -> int:
    if not _INTEGER.fullmatch(content.strip()) or abs(number := int(content)) > _INT_MAX:
        raise ValueError("no integer")
    return number


def _boolean(content: bytes) -> bool:
    return _integer(content) != 0


def _number(content: bytes) -> float:
    try:
        number = float(content)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("no finite number of at least 0")
    return number


_KINDS: dict[object, Callable[[bytes], object]] = {
    str: _text,
    str | None: _text,
    bytes | None: bytes,
    int: _integer,
    bool: _boolean,
    float: _number,
    Path: _path,
    Path | None: _path,
    Secret | None: _secret,
}
