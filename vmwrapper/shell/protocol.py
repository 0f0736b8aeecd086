"""What `vmwrapper shell` and a wrapper that lets it in say to each other.

One connection for one command: a line of JSON there, a line of JSON back. Who has waited long enough closes his sending
half, or dies; the command is then ended, and what it had said comes back. What it said is the guest's: hostile.
"""

import base64
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.errors import HostDiskFailed, NobodyThere

LINE_LIMIT_BYTES = 2 * 1024 * 1024

_SOCKET = "shell"
_CONNECTION_LIMIT_S = 10.0
_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


class BadMessage(Exception):
    """The other side sent what makes no sense."""


@dataclass(frozen=True, slots=True)
class Question:
    """A command for the guest's shell."""

    command: str
    directory: str | None
    """Where to run it; None for where the job's files are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the command ended."""

    status: int
    """0 to 255; 128 and more for a signal."""
    stdout: bytes
    stderr: bytes
    directory: str
    """Where it left the shell: where the next command goes on."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The command could not be run, or its end is not known."""

    reason: str


def encoded(message: Question | Answer | Refusal) -> bytes:
    """The line to send."""
    match message:
        case Question(command, directory):
            return _line({"command": command, "directory": directory})
        case Answer(status=status, stdout=stdout, stderr=stderr, directory=directory):
            said = {"stdout": base64.b64encode(stdout).decode(), "stderr": base64.b64encode(stderr).decode()}
            return _line({"status": status, "directory": directory} | said)
        case Refusal(reason):
            return _line({"refusal": reason})


def decoded_question(line: bytes) -> Question:
    """Raises BadMessage for anything but a question."""
    match _parsed(line):
        case {"command": str(command), "directory": str() | None as directory}:
            return Question(command, directory)
    raise BadMessage("this is no command")


def decoded_answer(line: bytes) -> Answer | Refusal:
    """Raises BadMessage for anything but an answer or a refusal."""
    match _parsed(line):
        case {"refusal": str(reason)}:
            return Refusal(reason)
        case {"status": int(status), "stdout": str(out), "stderr": str(err), "directory": str(directory)} if (
            0 <= status <= 255
        ):
            return Answer(status=status, stdout=_bytes(out), stderr=_bytes(err), directory=directory)
    raise BadMessage("this is no answer")


def _line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage("this is no JSON") from error


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadMessage("this is no base64") from error


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """A socket in a folder, for its owner only. Its name goes with the folder."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with _socket_name(folder) as name:
                listener.bind(name)
                Path(name).chmod(0o600)
                listener.listen()
        except OSError as error:
            raise HostDiskFailed(f"can't make a socket in {folder}: {error.strerror}") from error
        listener.settimeout(0)
        yield listener


@contextmanager
def connected(folder: Path) -> Iterator[socket.socket]:
    """A connection to who listens in a folder. Raises NobodyThere."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECTION_LIMIT_S)
        try:
            with _socket_name(folder) as name:
                connection.connect(name)
        except OSError as error:
            raise NobodyThere(
                f"no `vmwrapper run --keep` has a machine in {folder.parent} ({error.strerror or error})"
            ) from error
        yield connection


@contextmanager
def _socket_name(folder: Path) -> Iterator[str]:
    """A short name, for the length of the block: a socket's has at most 108 bytes, a slot's path can have more."""
    descriptor = os.open(folder, _OPEN_FOLDER)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
