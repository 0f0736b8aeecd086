"""The wrapper's side: runs in its guest what its clients want."""

import asyncio
import logging
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from vmwrapper.concurrency import beside
from vmwrapper.errors import VmwrapperError
from vmwrapper.hypervisor.interface import Guest
from vmwrapper.shell.protocol import (
    LINE_LIMIT_BYTES,
    Answer,
    BadMessage,
    Question,
    Refusal,
    decoded_question,
    encoded,
    listening,
)

log = logging.getLogger(__name__)

_QUESTION_LIMIT_S = 10.0
_LONGEST_COMMAND_S = 24 * 3600.0
_ENDING_LIMIT_S = 10.0
_PATIENCE_S = 2.0

# A session of its own can be ended as one; within another shell, since a group's leader would not wait for setsid.
# The directory that it leaves comes behind a mark, which is new each time: nothing that a command prints is mistaken.
_RUN = """\
setsid sh -c '
    PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    echo $$ >"/run/vmwrapper-shell.$1"
    trap "exit 130" INT
    trap "printf %s $1; pwd" EXIT
    cd -- "$2" || cd /
    eval "$3"
' sh "$@"
status=$?
rm -f "/run/vmwrapper-shell.$1"
exit $status
"""
_END = 'read -r pid <"/run/vmwrapper-shell.$1" && kill "-$2" "-$pid"'


class ShellServer:
    """Lets those who may read the folder run commands in a guest, any number at once."""

    def __init__(self, guest: Guest, folder: Path, *, home: str) -> None:
        """Commands begin in `home`, a directory of the guest."""
        self._guest = guest
        self._folder = folder
        self._home = home
        self.refusal: str | None = None
        """Why nothing can be run any more."""

    async def answer(self) -> NoReturn:
        """Let them in, until it is cancelled. Raises HostDiskFailed where the folder can't hold a socket."""
        with listening(self._folder) as listener:
            async with asyncio.TaskGroup() as answers:
                while True:
                    client, _ = await asyncio.get_running_loop().sock_accept(listener)
                    answers.create_task(self._answer_one(client))
        raise AssertionError  # they have no end

    async def _answer_one(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client:
            try:
                async with asyncio.timeout(_QUESTION_LIMIT_S):
                    line = await _line(client)
                await loop.sock_sendall(client, encoded(await self._answered(line, client)))
            except OSError:  # TimeoutError is one
                log.debug("a client went away", exc_info=True)

    async def _answered(self, line: bytes, client: socket.socket) -> Answer | Refusal:
        if self.refusal:
            return Refusal(self.refusal)
        try:
            return await self._run(decoded_question(line), client)
        except (VmwrapperError, BadMessage) as error:
            return Refusal(str(error))

    async def _run(self, question: Question, client: socket.socket) -> Answer:
        mark = secrets.token_hex(8)
        began_in = question.directory or self._home
        argv = ["sh", "-c", _RUN, "sh", mark, began_in, question.command]
        async with beside(self._end_when_unwanted(client, mark)):
            result = await self._guest.run(argv, limit_s=_LONGEST_COMMAND_S)
        stdout, *place = result.stdout.rsplit(mark.encode(), maxsplit=1)
        ended_in = b"".join(place).decode(errors="replace").removesuffix("\n")
        return Answer(
            status=result.status if 0 <= result.status <= 255 else 255,
            stdout=stdout,
            stderr=result.stderr,
            directory=ended_in or began_in,
        )

    async def _end_when_unwanted(self, client: socket.socket, mark: str) -> None:
        """End the command as soon as its client has waited long enough: first as Ctrl-C would, then for sure."""
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_recv(client, 1)
        for signal in ("INT", "KILL"):
            await self._guest.run(["sh", "-c", _END, "sh", mark, signal], limit_s=_ENDING_LIMIT_S)
            await asyncio.sleep(_PATIENCE_S)
        raise BadMessage("the command can't be ended: it may run on in the guest")


async def _line(client: socket.socket) -> bytes:
    """What is said until a line ends. Raises ConnectionError where it doesn't."""
    loop = asyncio.get_running_loop()
    said = bytearray()
    while not said.endswith(b"\n"):
        part = await loop.sock_recv(client, LINE_LIMIT_BYTES)
        if not part or len(said) > LINE_LIMIT_BYTES:
            raise ConnectionError("the line has no end")
        said += part
    return bytes(said)
