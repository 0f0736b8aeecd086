"""A session with a vSphere server: calls in threads, each with a time limit, over TLS that is always verified.

pyvmomi blocks, and knows neither limits nor cancellation: so each connection has threads of its own, and its end shuts
the sockets that they wait for. The machine's watch asks the server every few seconds, which keeps the session alive;
who finds it over logs in again, once.

Source: the vSphere Web Services API reference; pyvmomi's pyVmomi/SoapAdapter.py.
"""

import asyncio
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import NoUsableHypervisor
from vmwrapper.hypervisor.vmware.vsphere.faults import TRANSPORT, Fault, VsphereFailed, translated
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings

log = logging.getLogger(__name__)

CALL_LIMIT_S = 60.0
_CONNECT_LIMIT_S = 5.0
_ANSWER_LIMIT_S = 30.0
"""Of one read from the server's socket."""
_LOGOUT_LIMIT_S = 2.0
_THREADS = 4
_API_VERSION = "vim.version.version11"  # 6.5's: newer servers still speak it
Properties = Mapping[str, Any]


class _Https(HTTPSConnection):
    """A connection whose socket is known from its beginning, so that waiting for it can be ended."""

    def connect(self) -> None:
        self.timeout = _CONNECT_LIMIT_S
        HTTPConnection.connect(self)
        try:
            trusted: ssl.SSLContext = self._context  # type: ignore[attr-defined]
            self.sock = trusted.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()
            self.sock.settimeout(_ANSWER_LIMIT_S)
        except BaseException:
            self.close()
            raise


class _Stub(SoapStubAdapter):  # type: ignore[misc]
    """Knows its connections, also those that are just being made."""

    def __init__(self, settings: Settings, trusted: ssl.SSLContext) -> None:
        super().__init__(
            host=settings.host,
            port=settings.port,
            path="/sdk",
            version=_API_VERSION,
            sslContext=trusted,
            poolSize=_THREADS,
        )
        self.scheme = self._connection
        self._known: weakref.WeakSet[_Https] = weakref.WeakSet()
        self._is_over = False

    def _connection(self, host: str, port: int, context: ssl.SSLContext) -> _Https:
        """What pyvmomi makes its connections by."""
        if self._is_over:
            raise ConnectionAbortedError("the connection is closed")
        made = _Https(host, port, context=context)
        self._known.add(made)
        return made

    def abort(self) -> None:
        """Have all calls end now, with an error."""
        self._is_over = True
        for connection in list(self._known):
            if connection.sock is not None:
                with suppress(OSError):  # it is closed already
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # not TLS's: a thread is reading that

    def close(self) -> None:
        """To be called once no thread calls any more: some may have connected after `abort`."""
        for connection in list(self._known):
            connection.close()


class Connection:
    """One session. To be had from `connected`."""

    def __init__(self, settings: Settings, trusted: ssl.SSLContext) -> None:
        self.settings = settings
        self.trusted = trusted
        """For transfers, too."""
        self._stub = _Stub(settings, trusted)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vsphere")
        self._login = asyncio.Lock()
        self._logins = 0
        self.content: Any = None
        """The server's ServiceContent."""

    @property
    def about(self) -> Any:
        return self.content.about

    @property
    def cookie(self) -> str:
        """By which a server knows the session again: a secret of both."""
        return str(self._stub.cookie).partition(";")[0]

    async def open(self) -> None:
        """Log in. Raises VsphereFailed, NoUsableHypervisor."""
        instance = vim.ServiceInstance("ServiceInstance", self._stub)
        self.content = await self._in_thread(instance, "RetrieveContent", limit_s=CALL_LIMIT_S)
        await self._log_in(0)

    async def call(self, thing: Any, method: str, *arguments: object, limit_s: float = CALL_LIMIT_S) -> Any:
        """Call a method of a managed object, with all its arguments. Raises VsphereFailed.

        Where the session is over, that is done again with a new one; nothing else is repeated.
        """
        logins = self._logins
        try:
            return await self._in_thread(thing, method, *arguments, limit_s=limit_s)
        except VsphereFailed as failed:
            if failed.fault is not Fault.SESSION_OVER:
                raise
            log.debug("The session with the vSphere server is over")
        await self._log_in(logins)
        return await self._in_thread(thing, method, *arguments, limit_s=limit_s)

    async def _log_in(self, logins: int) -> None:
        """Have a session that is newer than that."""
        async with self._login:
            if self._logins != logins:
                return
            user, password = self.settings.user, self.settings.password
            try:
                await self._in_thread(self.content.sessionManager, "Login", user, password, None, limit_s=CALL_LIMIT_S)
            except VsphereFailed as failed:
                if failed.fault in (Fault.LOGIN_REFUSED, Fault.FORBIDDEN):
                    raise NoUsableHypervisor(f"the vSphere server {self} does not let {user} log in") from failed
                raise
            self._logins += 1

    async def _in_thread(self, thing: Any, method: str, *arguments: object, limit_s: float) -> Any:
        what = f"{method} at the vSphere server {self}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await loop.run_in_executor(self._threads, partial(_called, thing, method, arguments))
        except (vmodl.MethodFault, *TRANSPORT) as error:
            if limit.expired():
                raise VsphereFailed(f"{what} was not answered within {limit_s:g} s", Fault.UNREACHABLE) from error
            raise translated(error, what) from error

    async def properties(self, wanted: Mapping[Any, Sequence[str]]) -> Mapping[Any, Properties]:
        """These properties of these objects, in one round trip; those that are unset are not there.

        Raises VsphereFailed, with Fault.GONE where one of the objects is.
        """
        kind = vmodl.query.PropertyCollector
        by_type: dict[type, set[str]] = {}
        for thing, names in wanted.items():
            by_type.setdefault(type(thing), set()).update(names)
        spec = kind.FilterSpec(
            propSet=[kind.PropertySpec(type=of, pathSet=sorted(names)) for of, names in by_type.items()],
            objectSet=[kind.ObjectSpec(obj=thing) for thing in wanted],
        )
        return {thing: {} for thing in wanted} | await self.collected(spec)

    async def collected(self, spec: Any) -> dict[Any, Properties]:
        """What a FilterSpec asks for. Raises VsphereFailed."""
        found: dict[Any, Properties] = {}
        collector = self.content.propertyCollector
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        result = await self.call(collector, "RetrievePropertiesEx", [spec], options)
        while result is not None:
            found |= {one.obj: {prop.name: prop.val for prop in one.propSet} for one in result.objects}
            if not result.token:
                break
            result = await self.call(collector, "ContinueRetrievePropertiesEx", result.token)
        return found

    async def property(self, thing: Any, name: str) -> Any:
        """One property, or None where it is unset."""
        return (await self.properties({thing: [name]}))[thing].get(name)

    def machine(self, machine_id: str) -> Any:
        """The machine of this managed object ID, whether or not there is one."""
        return vim.VirtualMachine(machine_id, self._stub)

    async def close(self) -> None:
        """Log out, if that is quick, and end all calls."""
        if self._logins:
            with suppress(VsphereFailed):
                await self._in_thread(self.content.sessionManager, "Logout", limit_s=_LOGOUT_LIMIT_S)
        self._stub.abort()
        await asyncio.to_thread(self._threads.shutdown)
        self._stub.close()

    def __str__(self) -> str:
        return self.settings.host


def _called(thing: Any, method: str, arguments: Sequence[object]) -> Any:
    """What the method returns. Blocks. That nobody is logged in, a server may tell of each property only."""
    result = getattr(thing, method)(*arguments)
    if isinstance(result, vmodl.query.PropertyCollector.RetrieveResult):
        for missing in (missing for one in result.objects for missing in one.missingSet or ()):
            raise missing.fault
    return result


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """A session for the length of the block. Raises NoUsableHypervisor where there can be none, VsphereFailed."""
    connection = Connection(settings, await asyncio.to_thread(_trusted, settings))
    try:
        await connection.open()
        yield connection
    finally:
        await to_its_end(connection.close())


def _trusted(settings: Settings) -> ssl.SSLContext:
    """Whom we believe to be the server: nothing turns that off."""
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise NoUsableHypervisor(f"can't read the certificates in ca_file = {settings.ca_file}: {error}") from error
