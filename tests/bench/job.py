"""A job that the program `vmwrapper` runs."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

VMWRAPPER = Path(sys.executable).with_name("vmwrapper")


class Job:
    """A run of some tasks, each given by its tags, with the same script for a program."""

    def __init__(self, folder: Path, tasks: Sequence[str], *, script: str) -> None:
        (folder / "bench.sh").write_text(f"#!/bin/sh\n{script}\n")
        described = [f"<task><vm>default</vm><innerjob>bench.sh</innerjob>{tags}</task>" for tags in tasks]
        (folder / "job.xml").write_text(f"<job_desc>{''.join(described)}</job_desc>")
        # As on a volunteer's computer, where Python keeps what it compiled.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.started_at = time.monotonic()
        argv = [VMWRAPPER, "run", folder / "job.xml"]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)

    def wait_for(self, chapter: str) -> None:
        """Wait until the log tells of it."""
        assert self.process.stderr is not None
        if not any(chapter in line for line in self.process.stderr):
            raise RuntimeError(f"the job ended before {chapter!r}")
