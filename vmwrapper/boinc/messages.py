"""What stands in the messages between client and app.

They are searched for tags, not parsed, and numbers reach as far as C's strtod goes. Source: BOINC's api/boinc_api.cpp,
handle_process_control_msg and handle_heartbeat_msg; client/app_control.cpp, get_app_status_msg and get_graphics_msg.
"""

import math
import re
from dataclasses import dataclass
from enum import Enum

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.init_data import InitData

REREAD_INIT_DATA = b"<reread_app_info/>"
HAVE_TRICKLE_UP = b"<have_new_trickle_up/>\n"
HAVE_UPLOAD_FILE = b"<have_new_upload_file/>\n"
HAVE_TRICKLE_DOWN = b"<have_trickle_down/>"

_HEARTBEAT = b"<heartbeat/>"
_NETWORK_SUSPENDED = b"<network_suspended/>"
_NUMBER = re.compile(rb"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_LARGEST_PID = (1 << 31) - 1
_LONGEST_ADDRESS_BYTES = 255


class Address(Enum):
    """What the client's manager can show to its user, by its element's name."""

    WEB_GRAPHICS = "web_graphics_url"
    REMOTE_DESKTOP = "remote_desktop_addr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What the client said last of our memory and the network, which it does once a second."""

    working_set_bytes: float | None = None
    """What it counts for us; None where it has not said it yet."""
    max_working_set_bytes: float | None = None
    """What all jobs together may have now."""
    network_suspended: bool = False


def requests_in(message: bytes) -> list[Request]:
    """What the client wants by one message, in the order in which BOINC's own API does it."""
    return [request for request in Request if f"<{request.value}/>".encode() in message]


def is_heartbeat(message: bytes) -> bool:
    """Whether it is a sign of life; other messages come the same way."""
    return _HEARTBEAT in message


def heard(before: Heartbeat, message: bytes) -> Heartbeat:
    """What is known after a message of the client's heartbeat; what it does not mention is as before."""
    working_set_bytes = _number(message, b"<wss>")
    max_working_set_bytes = _number(message, b"<max_wss>")
    return Heartbeat(
        working_set_bytes=before.working_set_bytes if working_set_bytes is None else working_set_bytes,
        max_working_set_bytes=before.max_working_set_bytes if max_working_set_bytes is None else max_working_set_bytes,
        network_suspended=_NETWORK_SUSPENDED in message,
    )


def status_message(status: Status, init_data: InitData) -> bytes | None:
    """A status as the client reads it, below 1 KiB; without those of its numbers that are not finite.

    None where that is one of the CPU times: a message without it would tell the client that it is 0.
    """
    begin, end = init_data.fraction_done_start, init_data.fraction_done_end
    cpu_times = [
        _tag("current_cpu_time", status.cpu_time_s, ".6e"),
        _tag("checkpoint_cpu_time", status.checkpoint_cpu_time_s, ".6e"),
    ]
    if not all(cpu_times):
        return None
    others = [_tag("fraction_done", begin + status.fraction_done * (end - begin), ".6e")]
    if status.other_pid is not None and 0 < status.other_pid <= _LARGEST_PID:  # else the client would kill itself
        others.append(f"<other_pid>{status.other_pid}</other_pid>\n")
    if status.want_network:
        others.append("<want_network>1</want_network>\n")
    if status.working_set_bytes is not None:
        others.append(_tag("wss", status.working_set_bytes, ".0f"))
    if status.operations is not None:
        others.append(_tag("fpops_cumulative", status.operations.floating_point, ".6e"))
        others.append(_tag("intops_cumulative", status.operations.integer, ".6e"))
    return "".join(cpu_times + others).encode()


def address_message(kind: Address, address: str) -> bytes:
    """An address as the client reads it. Raises ValueError where it is not one line of at most 255 bytes."""
    text = address.replace("&", "&amp;").encode()
    if not address.isprintable() or " " in address or b"<" in text or not 0 < len(text) <= _LONGEST_ADDRESS_BYTES:
        raise ValueError(
            f"{address[:_LONGEST_ADDRESS_BYTES]!r} is no address of at most {_LONGEST_ADDRESS_BYTES} bytes"
        )
    tag = kind.value.encode()
    return b"<%b>%b</%b>" % (tag, text, tag)


def _tag(name: str, value: float, form: str) -> str:
    try:
        number = float(value)
    except OverflowError:
        return ""
    return f"<{name}>{number:{form}}</{name}>\n" if math.isfinite(number) else ""


def _number(message: bytes, tag: bytes) -> float | None:
    at = message.find(tag)
    if at < 0 or not (found := _NUMBER.match(message, at + len(tag))):
        return None
    number = float(found[1])
    return number if math.isfinite(number) else None
