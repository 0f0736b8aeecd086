"""Where vmwrapper keeps what outlives a job, and what does not."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

MACHINE_FOLDER = ".vmwrapper"
"""What a machine needs is in this folder of the job's directory, as long as it exists."""
RECORD_FILE = ".vmwrapper-record.json"
"""What is safe of the job is in this file of its directory, from one episode to the next."""


def cache_folder() -> Path:
    """The folder for what can be made again: guest images and verdicts on accelerators.

    It need not exist or be writable. VMWRAPPER_CACHE overrides the user's own cache folder.
    """
    if chosen := os.environ.get("VMWRAPPER_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vmwrapper"  # noqa: PTH111


def image_folder() -> Path:
    """The folder in which base images are looked for by name, and into which `vmwrapper image build` puts its own."""
    return cache_folder() / "images"


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as that is possible, also one in which a guest has forbidden that."""
    for path, _, _ in os.walk(folder):
        with suppress(OSError):
            os.chmod(path, 0o700)  # noqa: PTH101  (as os.walk has it)
    shutil.rmtree(folder, ignore_errors=True)
