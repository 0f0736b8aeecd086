"""A person's side: commands for the guest of a job that a wrapper keeps, or runs to keep it."""

import socket
import sys
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from vmwrapper.errors import GuestError, GuestSilent, NobodyThere, TransferFailed
from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hostile import printable, shown
from vmwrapper.shell.protocol import (
    LINE_LIMIT_BYTES,
    Answer,
    BadMessage,
    Question,
    Refusal,
    connected,
    decoded_answer,
    encoded,
)

COMMAND_LIMIT_S = 60.0
_ENDING_LIMIT_S = 30.0
_PART_BYTES = 64 * 1024


class Session:
    """A shell in a guest, which stays where the last command has left it."""

    def __init__(self, slot: Path, *, limit_s: float) -> None:
        """Each command is ended after `limit_s`, wall-clock seconds."""
        self._slot = slot
        self._limit_s = limit_s
        self._directory: str | None = None

    def run(self, command: str) -> int:
        """Run a line for the guest's shell, show what it says, and return its status.

        Ctrl-C and the limit end the command; a second Ctrl-C raises KeyboardInterrupt at once. Raises NobodyThere, and
        GuestError for a command that could not be run.
        """
        match self._answer(encoded(Question(command, self._directory))):
            case Refusal(reason):
                raise GuestError(printable(reason))
            case Answer() as answer:
                self._directory = answer.directory
                _show(answer.stdout, sys.stdout)
                _show(answer.stderr, sys.stderr)
                return answer.status

    def converse(self) -> int:
        """Run the lines of our standard input, asking for them at a terminal; the status of the last one."""
        status = self.run(":")  # tells where we are, and whether anybody is there
        if not isinstance(sys.stdin, TextIOWrapper):
            return status
        sys.stdin.reconfigure(errors="surrogateescape")
        if at_terminal := sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401, PLC0415  (gives `input` a history)
            print(f"In the guest of {self._slot}. exit or Ctrl-D leaves it as it is.", file=sys.stderr)  # noqa: T201
        while True:
            try:
                line = input(self._prompt if at_terminal else "").strip()
                if line == "exit":
                    return status
                status = self.run(line) if line else status
            except EOFError:
                return status
            except KeyboardInterrupt:
                if not at_terminal:
                    raise
                print(file=sys.stderr)  # noqa: T201
            except GuestError as error:
                print(error, file=sys.stderr)  # noqa: T201
                status = error.exit_status

    @property
    def _prompt(self) -> str:
        return f"guest:{printable(self._directory or '')}# "

    def _answer(self, question: bytes) -> Answer | Refusal:
        with connected(self._slot / MACHINE_FOLDER) as connection:
            try:
                connection.sendall(question, socket.MSG_NOSIGNAL)
                return decoded_answer(self._line(connection))
            except TimeoutError as error:
                raise GuestSilent("the command can't be ended: it may run on in the guest") from error
            except OSError as error:
                raise NobodyThere(f"the machine of {self._slot} is gone ({error.strerror or error})") from error
            except BadMessage as error:
                raise TransferFailed(
                    f"what answers in {self._slot / MACHINE_FOLDER} is no vmwrapper: {error}"
                ) from error

    def _line(self, connection: socket.socket) -> bytes:
        line = bytearray()
        try:
            _receive(connection, line, limit_s=self._limit_s)
        except (KeyboardInterrupt, TimeoutError) as reason:
            why = f" after its {self._limit_s:g} s" if isinstance(reason, TimeoutError) else ""
            print(f"\nEnding the command{why}", file=sys.stderr)  # noqa: T201
            connection.shutdown(socket.SHUT_WR)  # tells that nobody waits for it any more
            _receive(connection, line, limit_s=_ENDING_LIMIT_S)
        return bytes(line)


def _receive(connection: socket.socket, line: bytearray, *, limit_s: float) -> None:
    """Receive the rest of a line. Raises TimeoutError, ConnectionError where it has no end, BadMessage if too long."""
    ends_at_s = time.monotonic() + limit_s
    while not line.endswith(b"\n"):
        connection.settimeout(max(ends_at_s - time.monotonic(), 1e-3))  # 0 would mean not to wait at all
        part = connection.recv(_PART_BYTES)
        if not part:
            raise ConnectionError("it hung up")
        line += part
        if len(line) > LINE_LIMIT_BYTES:
            raise BadMessage("its line has no end")


def _show(output: bytes, stream: TextIO) -> None:
    """Let a terminal show it without obeying it; anything else gets it as it is."""
    if stream:  # there is none where it was closed
        stream.buffer.write(shown(output).encode(stream.encoding, "replace") if stream.isatty() else output)
        stream.flush()
