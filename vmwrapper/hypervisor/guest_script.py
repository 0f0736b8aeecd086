"""Our scripts in a guest, for hypervisors without an agent of their own there, and what they answer."""

import re
from dataclasses import dataclass
from importlib.resources import files as package_files

from vmwrapper.errors import GuestError
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import CommandResult

_NOT_NEEDED = re.compile(r"^ *(?:#.*\n)?", re.MULTILINE)
_MOST_OUTPUT_BYTES = 512 * 1024


def script(package: str, name: str) -> str:
    """A shell script of a package's, without its comments and indentation: emulated processors take long to read it."""
    return _NOT_NEEDED.sub("", (package_files(package) / name).read_text("utf-8"))


def guest_script(package: str, name: str, *, has_files: bool = True) -> str:
    """The same with what these have in common in front of it, in guest_begin.sh and guest_files.sh."""
    common = ("guest_begin.sh", "guest_files.sh") if has_files else ("guest_begin.sh",)
    return "".join(script(__package__, part) for part in common) + script(package, name)


@dataclass(frozen=True, slots=True)
class Said:
    """What such a script found. All of it was said by the guest: hostile."""

    status: str
    """Digits, or a word of the script's."""
    found: bytes
    wrong: bytes
    """What went wrong, or a second answer."""

    def must(self) -> "Said":
        """Itself. Raises GuestError where something went wrong."""
        if self.status != "0":
            raise GuestError(f"the guest's end of a transfer failed with status {self.status}: {printable(self.wrong)}")
        return self

    def content(self, path: str, *, limit_bytes: int) -> bytes | None:
        """The answer to `read`: see `Guest.read`."""
        if self.status == "missing":
            return None
        if self.status != "0":
            raise GuestError(f"the guest can't read {path!r}: {printable(self.wrong)}")
        return self.found[:limit_bytes]

    def result(self, command: str) -> CommandResult:
        """The answer to `run`. Raises GuestError for a command that is not there, or printed too much."""
        if self.status == "missing":
            raise GuestError(f"the guest has no command {command!r}")
        if len(self.found) > _MOST_OUTPUT_BYTES:
            raise GuestError(f"the command {command!r} in the guest printed more than {_MOST_OUTPUT_BYTES} bytes")
        if not self.status.isdecimal() or len(self.status) > 3:
            raise GuestError(f"the guest does not say how a command ended: {self.status!r}")
        return CommandResult(int(self.status), self.found, self.wrong)


def end_of(nonce: str) -> bytes:
    """What a whole answer ends with."""
    return f" {nonce}".encode()


def said(answer: bytes, nonce: str) -> Said | None:
    """What an answer means, or None for one that is not whole.

    Of its lines, the last that begins with the nonce has the status.
    """
    if not answer.endswith(end_of(nonce)):
        return None
    found, mark, rest = answer.removesuffix(end_of(nonce)).rpartition(f"\n{nonce} ".encode())
    if not mark:
        return None
    status, _, wrong = rest.partition(b"\n")
    return Said(printable(status, limit=20), found, wrong)
