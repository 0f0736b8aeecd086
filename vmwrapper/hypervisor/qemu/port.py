"""The host's end of the port that files cross, as lines and bytes that have to come in time."""

import asyncio

from vmwrapper.clock import RunningClock
from vmwrapper.errors import TransferFailed

STALL_S = 60.0
_MOST_RUBBISH_BYTES = 1 << 32  # what an earlier stream may have left in the port


class Port:
    """Raises TimeoutError where nothing moves for STALL_S. All that comes from it is hostile."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: RunningClock) -> None:
        self._reader = reader
        self._writer = writer
        self._clock = clock

    def say(self, line: str) -> None:
        """Send a line, sooner or later."""
        self._writer.write(f"{line}\n".encode())

    async def write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        async with self._clock.timeout(STALL_S):
            await self._writer.drain()

    async def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        async with self._clock.timeout(STALL_S):
            chunk = await self._reader.read(size)
        if not chunk:
            raise asyncio.IncompleteReadError(b"", size)
        return chunk

    async def line(self) -> str:
        """Without its end; a longer one comes in pieces."""
        async with self._clock.timeout(STALL_S):
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as overrun:
                line = await self._reader.readexactly(overrun.consumed)
        return line.decode(errors="replace").strip()

    async def after(self, nonce: str, *, limit_s: float = STALL_S) -> str:
        """The rest of the line on which the nonce is, once that has come; until then `limit_s` may pass in silence."""
        skipped_bytes = 0
        while skipped := await self._skipped(nonce.encode(), limit_s):
            skipped_bytes += skipped
            if skipped_bytes > _MOST_RUBBISH_BYTES:
                raise TransferFailed("the guest keeps sending something that it was not asked for")
        return await self.line()

    async def _skipped(self, mark: bytes, limit_s: float) -> int:
        """Skip to behind the mark; or else so many bytes that are in its way, and let others run."""
        async with self._clock.timeout(limit_s):
            try:
                await self._reader.readuntil(mark)
            except asyncio.LimitOverrunError as overrun:
                await self._reader.readexactly(overrun.consumed)
                await asyncio.sleep(0)
                return overrun.consumed
        return 0
