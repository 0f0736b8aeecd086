"""A TCP proxy that fails as networks do: it cuts a connection after so many bytes, lets one wait, or accepts none."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHUNK = 1 << 14


class CuttingProxy:
    """Its attributes may be changed at any time, and count for what is moved from then on."""

    delay_s: float = 0.0
    """Before each chunk, in either direction."""
    is_stuck: bool = False
    """Nothing is moved, and no connection ends: as when a cable is pulled."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._to = (host, port)
        self._bytes_left: int | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.accept_again()

    def cut_after(self, byte_count: int) -> None:
        """All connections, once that much more was moved in both directions; then new ones are whole again."""
        with self._lock:
            self._bytes_left = byte_count

    def cut(self) -> None:
        """All connections, now."""
        with self._lock:
            self._bytes_left = None
            cut, self._open = self._open, []
        for connection in cut:
            with contextlib.suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """New connections. Those that are open stay."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
            self._listener.close()
            self._listener = None

    def accept_again(self) -> None:
        self._listener = socket.create_server((self.host, self.port))
        self.port = self._listener.getsockname()[1]
        self._run(self._accept, self._listener)

    def close(self) -> None:
        self.is_stuck, self.delay_s = False, 0.0
        self.refuse()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._to)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            self._run(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            back = threading.Thread(target=self._move, args=(server, client))
            back.start()
            self._move(client, server)
            back.join()
        with self._lock:
            self._open = [left for left in self._open if left not in (client, server)]

    def _move(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may go
            while chunk := source.recv(_CHUNK):
                while self.is_stuck:
                    time.sleep(0.01)
                time.sleep(self.delay_s)
                whole = self._allowed(len(chunk))
                target.sendall(chunk[:whole])
                if whole < len(chunk):
                    self.cut()
                    return
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _allowed(self, byte_count: int) -> int:
        with self._lock:
            if self._bytes_left is None:
                return byte_count
            allowed = min(byte_count, self._bytes_left)
            self._bytes_left -= allowed
            return allowed


@contextmanager
def cutting_proxy(host: str, port: int) -> Iterator[CuttingProxy]:
    """Before that server, with the same host, so that its certificate is good for it."""
    proxy = CuttingProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
