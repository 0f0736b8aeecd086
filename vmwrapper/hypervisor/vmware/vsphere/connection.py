"""A session with a vSphere server: calls in threads, each with a time limit, over TLS that is always verified.

pyvmomi blocks, and knows neither limits nor cancellation: so each connection has threads of its own, and its end shuts
the sockets that they wait for. The machine's watch asks the server every few seconds, which keeps the session alive;
who finds it over logs in again, once. What only reads is asked again where the connection was cut, for a while.

Source: the vSphere Web Services API reference; pyvmomi's pyVmomi/SoapAdapter.py.
"""

import asyncio
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent import futures
from contextlib import asynccontextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from threading import Lock
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import NoUsableHypervisor
from vmwrapper.hypervisor.vmware.vsphere.faults import TRANSPORT, Fault, VsphereFailed, translated
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings

log = logging.getLogger(__name__)

CALL_LIMIT_S = 60.0
PATIENCE_S = 900.0
"""For a server that is away, while the machine runs on without it: a vCenter restarts in some minutes."""
_CONNECT_LIMIT_S = 5.0
_ANSWER_LIMIT_S = 30.0
"""Of one read from the server's socket."""
_LOGOUT_LIMIT_S = 2.0
_THREADS = 4
_IDLE_S = 5
"""After which a connection is not used again: it may be cut without our knowing. More than between two looks."""
_READS = frozenset({"RetrievePropertiesEx", "FindByInventoryPath", "FindByDatastorePath", "FindByUuid", "QueryPerf"})
_READ_AGAIN_FOR_S = 15.0
_FIRST_PAUSE_S = 0.05
_PAUSES_GROW_BY = 2.0
_API_VERSION = "vim.version.version11"  # 6.5's: newer servers still speak it
Properties = Mapping[str, Any]


class _Https(HTTPSConnection):
    """A connection whose socket is known from its beginning, so that waiting for it can be ended, for good."""

    _is_over = False

    def connect(self) -> None:
        self.timeout = _CONNECT_LIMIT_S
        HTTPConnection.connect(self)
        try:
            self._must_go_on()
            trusted: ssl.SSLContext = self._context  # type: ignore[attr-defined]
            self.sock = trusted.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._must_go_on()
            self.sock.do_handshake()
            self.sock.settimeout(_ANSWER_LIMIT_S)
        except BaseException:
            self.close()
            raise

    def _must_go_on(self) -> None:
        """To be called once there is a new socket, which `abort` may not have seen."""
        if self._is_over:
            raise ConnectionAbortedError("the connection is closed")

    def abort(self) -> None:
        """From another thread than uses it."""
        self._is_over = True
        if self.sock is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # not TLS's: a thread is reading that


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
            connectionPoolTimeout=_IDLE_S,
        )
        self.scheme = self._connection
        self._changes = Lock()
        self._known: weakref.WeakSet[_Https] = weakref.WeakSet()
        self._is_over = False

    def _connection(self, host: str, port: int, context: ssl.SSLContext) -> _Https:
        """What pyvmomi makes its connections by."""
        with self._changes:
            if self._is_over:
                raise ConnectionAbortedError("the connection is closed")
            made = _Https(host, port, context=context)
            self._known.add(made)
        return made

    def abort(self) -> None:
        """Have all calls end now, with an error."""
        with self._changes:
            self._is_over = True
            for connection in self._known:
                connection.abort()

    def close(self) -> None:
        """To be called once no thread calls any more."""
        for connection in self._known:
            connection.close()


class Connection:
    """One session. To be had from `connected`."""

    def __init__(self, settings: Settings, trusted: ssl.SSLContext) -> None:
        self.settings = settings
        self.trusted = trusted
        """For transfers, too."""
        self._stub = _Stub(settings, trusted)
        self._threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="vsphere")
        self._calls: set[futures.Future[Any]] = set()
        """In threads, also those that nobody waits for any more."""
        self._login = asyncio.Lock()
        self._logins = 0
        self._may_be_logged_in = False
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

        Where the session is over, that is done again with a new one, and a method that only reads where the connection
        was cut; nothing else is repeated.
        """
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        until_s = loop.time() + (_READ_AGAIN_FOR_S if method in _READS else 0.0)
        while True:
            try:
                return await self._in_session(thing, method, *arguments, limit_s=limit_s)
            except VsphereFailed as failed:
                if failed.fault is not Fault.UNREACHABLE or loop.time() + pause_s > until_s:
                    raise
                log.debug("%s", failed)
            await asyncio.sleep(pause_s)
            pause_s *= _PAUSES_GROW_BY

    async def _in_session(self, thing: Any, method: str, *arguments: object, limit_s: float) -> Any:
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
            self._may_be_logged_in = True
            try:
                await self._in_thread(self.content.sessionManager, "Login", user, password, None, limit_s=CALL_LIMIT_S)
            except VsphereFailed as failed:
                if failed.fault in (Fault.LOGIN_REFUSED, Fault.FORBIDDEN):
                    raise NoUsableHypervisor(f"the vSphere server {self} does not let {user} log in") from failed
                raise
            self._logins += 1

    async def _in_thread(self, thing: Any, method: str, *arguments: object, limit_s: float) -> Any:
        what = f"{method} at the vSphere server {self}"
        call = self._threads.submit(_called, thing, method, arguments)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await asyncio.wrap_future(call)
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
        if await self._no_calls(within_s=_LOGOUT_LIMIT_S) and self._may_be_logged_in:
            with suppress(VsphereFailed):
                await self._in_thread(self.content.sessionManager, "Logout", limit_s=_LOGOUT_LIMIT_S)
        self._stub.abort()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if await self._no_calls(within_s=_CONNECT_LIMIT_S + 1):
            self._stub.close()

    async def _no_calls(self, *, within_s: float) -> bool:
        """Wait until no thread is at one, but no longer."""
        return not (await asyncio.to_thread(futures.wait, list(self._calls), within_s)).not_done

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
