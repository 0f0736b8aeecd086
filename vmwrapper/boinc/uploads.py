"""Intermediate uploads: output files that the client uploads while the job goes on.

Source: BOINC's client/app.cpp, handle_upload_files and upload_notify_app; api/boinc_api.cpp, boinc_upload_file.
"""

import re
from pathlib import Path

from vmwrapper.boinc.slot_files import resolve
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed

UPLOAD_REQUEST, UPLOAD_STATUS = "boinc_ufr_", "boinc_ufs_"
"""What a file's name begins with that asks for an upload, and that tells how it ended."""

_LONGEST_NAME_BYTES = 200
_LONGEST_LINE = 255
_SAYS = re.compile(rb"<status>\s*(-?\d{1,10})")


class Uploads:
    """Those of one slot. The client must be told of new requests by `is_untold`'s user, who resets it."""

    def __init__(self, slot: Path) -> None:
        self._slot = slot
        self.is_untold = False

    def begin(self) -> None:
        """Look for requests that an earlier episode left: the client forgets what it was told at each start."""
        self.is_untold = any(self._slot.glob(f"{UPLOAD_REQUEST}*"))

    async def request(self, logical_name: str) -> None:
        """Have an output file uploaded now, which must be whole and stay as it is.

        `logical_name` is one of the job's output files that is marked for it, and not in a folder: the client finds no
        others. Raises FileNotFoundError where there is no such file yet, ValueError where the name can't be one, and
        HostDiskFailed where the client can't be asked.
        """
        request, status = self._files(logical_name)
        await to_thread_and_back(self._ask, resolve(self._slot, logical_name), request, status)
        self.is_untold = True

    def status(self, logical_name: str) -> int | None:
        """The client's status of the file when its upload ended, None before. Raises ValueError as `request`."""
        _, status = self._files(logical_name)
        try:
            with status.open("rb") as file:
                line = file.readline(_LONGEST_LINE)
        except OSError:
            return None
        says = _SAYS.search(line)
        return int(says[1]) if says else None

    def _files(self, logical_name: str) -> tuple[Path, Path]:
        is_long = len(logical_name.encode()) > _LONGEST_NAME_BYTES
        if is_long or "/" in logical_name or "\\" in logical_name or not logical_name.isprintable() or not logical_name:
            raise ValueError(f"no output file that can be uploaded early is called {logical_name[:255]!r}")
        return self._slot / f"{UPLOAD_REQUEST}{logical_name}", self._slot / f"{UPLOAD_STATUS}{logical_name}"

    def _ask(self, file: Path, request: Path, status: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file to upload: {file}")
        try:
            status.unlink(missing_ok=True)
            request.touch()
        except OSError as error:
            raise HostDiskFailed(f"can't ask for an upload: {error.strerror}: {request}") from error
