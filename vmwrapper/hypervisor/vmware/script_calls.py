"""Calls of called_guest.sh where a hypervisor takes a script as a file, runs it, and gives back another file.

The script writes down its own end, with a nonce: a call is tried until that has come.
"""

import asyncio
import secrets
import shlex
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.guest_script import Said
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.called_guest import script

THERE = "/tmp/.vmwrapper-call-"  # noqa: S108  (the guest's)
_HELLO = """\
umask 077
exec >"$0.new" 2>/dev/null
trap 'chown {user} "$0.new"; mv "$0.new" "$0.out"' EXIT
rm -rf {old}
blob=$0
"""
T = TypeVar("T")


class ScriptCalls(ABC):
    """See `Calls`. In the guest a request is THERE and its nonce, and what begins so is its own."""

    def __init__(self, login: Login, clock: RunningClock) -> None:
        self._login = login
        self._clock = clock
        self.quiet = asyncio.Lock()
        self._script = script()
        self._old: list[str] = []
        """Nonces of what was answered, and may be forgotten in the guest."""

    @property
    def user(self) -> str:
        return self._login.user

    async def call(
        self,
        verb: str,
        *arguments: str,
        directory: str | None = None,
        stdin: bytes = b"",
        nonce: str | None = None,
        limit_s: float,
    ) -> Said:
        words = (nonce or secrets.token_hex(16), directory or ".", verb, *arguments)
        once = self._once(words[0], self._request(words, stdin), limit_s)
        said = await self.repeated(once, _what(verb, arguments), limit_s)
        if nonce is None:
            self._old.append(words[0])
        return said

    def _request(self, words: Sequence[str], stdin: bytes) -> bytes:
        """The script that does it, with what it reads after its end."""
        old = [name for nonce in self._old for name in (f"{THERE}{nonce}*", f"/run/.vmwrapper-{nonce}")]
        self._old = []
        hello = _HELLO.format(user=shlex.quote(self.user), old=" ".join(old) or "/nonexistent")
        text = f"{hello}set -- {shlex.join(words)}\n{self._script}\nexit\n"
        return text.encode("utf-8", "surrogateescape") + stdin

    @abstractmethod
    def _once(self, nonce: str, request: bytes, limit_s: float) -> Callable[[], Awaitable[Said]]:
        """What tries it once, and may be called again."""

    @abstractmethod
    async def repeated(self, once: Callable[[], Awaitable[T]], what: str, limit_s: float) -> T:
        """Have it done, however often that takes. Raises as `Calls.call`."""


def _what(verb: str, arguments: Sequence[str]) -> str:
    if verb == "run":
        return f"the command {arguments[1]!r} in the guest did not end"
    return "the guest did not answer"
