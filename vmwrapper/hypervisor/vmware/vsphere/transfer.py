"""Files to and from a guest, over HTTPS, in constant memory.

The server says by a URL where a file is to be fetched or left; `*` in it stands for the host that one is connected to.
Against the same certificates as all else: a vCenter may send us to one of its hosts, whose certificate it has signed.

Source: the vSphere Web Services API reference, GuestFileManager.InitiateFileTransferToGuest.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from vmwrapper.errors import GuestError, JobError
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed

_CHUNK_BYTES = 256 * 1024
_STALL_LIMIT_S = 30.0
_CONNECT_LIMIT_S = 10.0
_AWAY = (502, 503, 504)
"""HTTP statuses of who stands before a server that does not answer."""


class Transfers:
    """Of one connection."""

    def __init__(self, connection: Connection, session: aiohttp.ClientSession) -> None:
        self._connection = connection
        self._session = session

    async def put_bytes(self, url: str, content: bytes) -> None:
        """Leave this there. Raises VsphereFailed."""
        await self._put(url, content)

    async def put_file(self, url: str, file: Path) -> None:
        """The same with a file of the host's. Raises JobError where that can't be read."""
        try:
            opened = file.open("rb")
        except OSError as error:
            raise JobError(f"can't read the input {file}: {error.strerror}") from error
        with opened:
            await self._put(url, opened)

    async def _put(self, url: str, content: object) -> None:
        with_type = {"Content-Type": "application/octet-stream"}
        async with self._asked("PUT", url, data=content, headers=with_type) as response:
            await response.read()

    async def get_bytes(self, url: str, *, limit_bytes: int, in_session: bool = False) -> bytes:
        """All that is there. Raises VsphereFailed, GuestError for more than that.

        `in_session` as the user who is logged in, for a URL of ours, not one that a server has named.
        """
        found = bytearray()

        async def take(chunk: bytes) -> None:
            found.extend(chunk)
            if len(found) > limit_bytes:
                raise GuestError("the guest sends more than it was asked for")

        await self.get(url, take, headers={"Cookie": self._connection.cookie} if in_session else {})
        return bytes(found)

    async def get(
        self, url: str, take: Callable[[bytes], Awaitable[None]], *, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Hand all that is there to `take`, in chunks. Raises VsphereFailed."""
        async with self._asked("GET", url, headers=headers) as response:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                await take(chunk)

    @asynccontextmanager
    async def _asked(self, method: str, url: str, **words: object) -> AsyncIterator[aiohttp.ClientResponse]:
        settings = self._connection.settings
        what = f"a transfer ({method}) by the vSphere server {self._connection}"
        try:
            async with self._session.request(
                method,
                meant(url, settings.host, settings.port),
                allow_redirects=False,
                **words,  # type: ignore[arg-type]
            ) as response:
                if response.status not in (200, 201, 204):
                    fault = Fault.UNREACHABLE if response.status in _AWAY else Fault.REFUSED_FILE
                    raise VsphereFailed(f"{what} failed with HTTP status {response.status}: {fault.value}", fault)
                yield response
        except aiohttp.ClientSSLError as error:
            raise VsphereFailed(f"{what} failed: {Fault.NOT_TRUSTED.value} ({error})", Fault.NOT_TRUSTED) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise VsphereFailed(f"{what} was cut off ({type(error).__name__})", Fault.UNREACHABLE) from error


@asynccontextmanager
async def transfers(connection: Connection) -> AsyncIterator[Transfers]:
    """For the length of the block."""
    limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_LIMIT_S, sock_read=_STALL_LIMIT_S)
    connector = aiohttp.TCPConnector(ssl=connection.trusted)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield Transfers(connection, session)


def meant(url: str, host: str, port: int) -> str:
    """The URL with the host that `*` stands for; never without TLS. Raises VsphereFailed for what is no such URL."""
    try:
        parts = urlsplit(url)
        named, its_port = parts.hostname, parts.port
    except ValueError:
        named, its_port, parts = None, None, urlsplit("")
    if parts.scheme != "https" or not named:
        raise VsphereFailed("the vSphere server names no https:// URL for a transfer", Fault.OTHER)
    if named == "*":
        named, its_port = host, its_port or port
    bracketed = f"[{named}]" if ":" in named else named
    return urlunsplit(parts._replace(netloc=f"{bracketed}:{its_port}" if its_port else bracketed))
