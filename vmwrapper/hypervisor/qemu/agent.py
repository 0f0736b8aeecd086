"""The QEMU guest agent, spoken to over its virtio-serial port.

Source: QEMU's qga/qapi-schema.json and docs/interop/qemu-ga.rst.
"""

import asyncio
import base64
import itertools
import json
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, GuestSilent
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import CommandResult

REPLY_LIMIT_BYTES = 1024 * 1024
_CALL_LIMIT_S = 300.0  # a guest of an idle job may wait long for its host's processor
_FIRST_LOOK_S = 0.003
_LOOKS_GROW_BY = 1.15  # so that an end is noticed late by at most a seventh of the time that it took
_LONGEST_LOOK_S = 0.25
_SENTINEL = b"\xff"

T = TypeVar("T")


class AgentRefused(GuestError):
    """The agent answered a command with an error."""


class Agent:
    """One conversation with the agent. Calls wait for each other; everything that the agent says is hostile."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: RunningClock) -> None:
        """`reader` must have been made with `limit=REPLY_LIMIT_BYTES`."""
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._one_call = asyncio.Lock()
        self._in_step = False
        self._sync_ids = itertools.count(1)

    async def ready(self, *, limit_s: float) -> None:
        """Wait for the agent's first answer. It comes as soon as the agent opens its port, however early we asked."""
        async with self._one_call:
            await self._bounded(self._synchronize(), limit_s, "the guest did not become ready")

    async def call(self, command: str, **arguments: object) -> Any:
        """Execute one command and return what it returns. Raises AgentRefused, GuestSilent after 300 s."""
        async with self._one_call:
            return await self._bounded(
                self._exchange(command, arguments), _CALL_LIMIT_S, f"the guest agent did not answer {command}"
            )

    async def run(self, argv: Sequence[str], *, stdin: bytes, limit_s: float) -> CommandResult:
        """Run a command to its end; see `Guest.run`."""
        what = f"the command {argv[0]!r} in the guest did not end"
        return await self._bounded(self._run(argv, stdin), limit_s, what)

    async def run_script(self, arguments: Sequence[str], script: bytes, ending: asyncio.Event) -> CommandResult:
        """Run `sh` with a script as its standard input, however long it takes.

        Until the caller sets `ending`, since the end is near, it is looked at seldom: each look costs the guest time.
        """
        return await self._run(["sh", "-s", "--", *arguments], script, ending)

    async def read(self, path: str, limit_bytes: int) -> bytes | None:
        """The first bytes of a file, or None where there is none."""
        try:
            handle = await self.call("guest-file-open", path=path, mode="r")
        except AgentRefused as refused:
            if "No such file" in str(refused):
                return None
            raise
        answer = await self.call("guest-file-read", handle=handle, count=limit_bytes)
        await self.call("guest-file-close", handle=handle)
        return _decoded(answer, "buf-b64")[:limit_bytes]

    async def tail(self, path: str, limit_bytes: int) -> bytes | None:
        """The last bytes of a file, or None where the agent can't read it."""
        try:
            handle = await self.call("guest-file-open", path=path, mode="r")
        except AgentRefused:
            return None
        with suppress(AgentRefused):  # of a shorter file all is read
            await self.call("guest-file-seek", handle=handle, offset=-limit_bytes, whence="end")
        try:
            end = _decoded(await self.call("guest-file-read", handle=handle, count=limit_bytes), "buf-b64")
        except AgentRefused:
            end = None
        await self.call("guest-file-close", handle=handle)
        return end[-limit_bytes:] if end is not None else None

    async def _run(self, argv: Sequence[str], stdin: bytes, ending: asyncio.Event | None = None) -> CommandResult:
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        started = await self.call("guest-exec", **arguments)
        pid = _field(started, "pid", int)
        look_s = _FIRST_LOOK_S
        while not _field(status := await self.call("guest-exec-status", pid=pid), "exited", bool):
            if ending and not ending.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_LOOK_S):
                        await ending.wait()
            else:
                await asyncio.sleep(look_s)
                look_s = min(look_s * _LOOKS_GROW_BY, _LONGEST_LOOK_S)
        return CommandResult(_status(status), _decoded(status, "out-data"), _decoded(status, "err-data"))

    async def _bounded(self, work: Awaitable[T], limit_s: float, complaint: str) -> T:
        try:
            async with self._clock.timeout(limit_s):
                return await work
        except TimeoutError as error:
            raise GuestSilent(f"{complaint} within {limit_s:g} s") from error

    async def _exchange(self, command: str, arguments: dict[str, object]) -> Any:
        await self._synchronize()
        self._in_step = False  # until the whole reply is here: a cancelled call leaves one behind
        await self._send(b"", command, arguments)
        reply = _parsed(await self._line())
        self._in_step = True
        if "return" in reply:
            return reply["return"]
        error = reply.get("error")
        said = error.get("desc") if isinstance(error, dict) else reply
        raise AgentRefused(f"the guest agent refused {command}: {printable(str(said))}")

    async def _synchronize(self) -> None:
        if self._in_step:
            return
        sync_id = next(self._sync_ids)
        await self._send(_SENTINEL, "guest-sync-delimited", {"id": sync_id})
        while not self._in_step:
            await asyncio.sleep(0)  # a guest that floods us must not keep others from running
            await self._skip_to_sentinel()
            self._in_step = _answers(sync_id, await self._line())

    async def _skip_to_sentinel(self) -> None:
        while True:
            try:
                await self._reader.readuntil(_SENTINEL)
            except asyncio.LimitOverrunError as overrun:
                await self._reader.readexactly(overrun.consumed)
            else:
                return

    async def _send(self, prefix: bytes, command: str, arguments: dict[str, object]) -> None:
        message = {"execute": command, "arguments": arguments}
        self._writer.write(prefix + json.dumps(message).encode() + b"\n")
        await self._writer.drain()

    async def _line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise GuestError(
                f"the guest agent's reply is longer than {REPLY_LIMIT_BYTES} bytes: too much was asked for"
            ) from error


def _answers(sync_id: int, line: bytes) -> bool:
    """Whether the line answers guest-sync-delimited; rubbish may stand before it, also with sentinels of its own."""
    with suppress(ValueError, RecursionError):
        return bool(json.loads(line.rpartition(_SENTINEL)[2]) == {"return": sync_id})
    return False


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line.lstrip(_SENTINEL))
    except (ValueError, RecursionError) as error:
        raise GuestError("the guest agent's reply is not JSON") from error
    if not isinstance(reply, dict):
        raise GuestError("the guest agent's reply is not an object")
    return reply


def _field(answer: Any, name: str, kind: type[T]) -> T:
    value = answer.get(name) if isinstance(answer, dict) else None
    if type(value) is not kind:
        raise GuestError(f"the guest agent's answer has no usable {name!r}")
    return value


def _decoded(answer: Any, name: str) -> bytes:
    if isinstance(answer, dict) and name not in answer:
        return b""
    try:
        return base64.b64decode(_field(answer, name, str), validate=True)
    except ValueError as error:
        raise GuestError(f"the guest agent's {name!r} is not base64") from error


def _status(answer: Any) -> int:
    if isinstance(answer, dict) and "signal" in answer:
        return 128 + _field(answer, "signal", int)
    return _field(answer, "exitcode", int)
