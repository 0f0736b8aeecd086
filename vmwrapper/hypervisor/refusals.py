"""Refusals of a guest to let somebody log in: one that boots may do that for a while."""

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError

_LIMIT_S = 30.0


class Refusals:
    """Those of one request, in a row."""

    def __init__(self, user: str, clock: RunningClock) -> None:
        self._user = user
        self._clock = clock
        self._since_s: float | None = None

    def end(self) -> None:
        """To be told that the last try failed for another reason."""
        self._since_s = None

    def one_more(self, error: Exception) -> None:
        """To be told of each. Raises JobError once it has been for too long."""
        now_s = self._clock.elapsed_s
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s > _LIMIT_S:
            raise JobError(
                f"the guest does not let {self._user} log in: name a user and its password that the image has"
            ) from error
