"""The example job for the BOINC client, in guests that are not QEMU's; and the same job on QEMU, by hand."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .boinc_client import BoincClient
from .client_files import MAIN, Preferences, Workunit
from .jobs import VMWRAPPER

LIMIT_S = 300
"""Where a guest is interpreted, its boot takes half a minute, and each look into it some seconds."""
EXAMPLES = Path(__file__).parents[2] / "examples"
_JOB = """\
<job_desc>
   <task>
       <vm>{vm}</vm> {wishes}
       <innerjob>work.sh</innerjob>
       <data>hubble.sh</data>
       <data>nebulae.dat</data>
       <output>hubble.out</output>
       <setenv>RESAMPLES=20</setenv>
       <memory_mb>160</memory_mb> <disk_mb>0</disk_mb>
       <checkpoint_interval>5</checkpoint_interval>
   </task>
</job_desc>
"""
_WORK = """\
#!/bin/sh
n=0
while [ $n -lt {seconds} ]; do
    sleep 1
    n=$((n + 1))
done
exec sh hubble.sh
"""
CHAPTERS = (
    "Connected to",
    "Using",
    "Processing task",
    "VM image",
    "Machine created",
    "Machine is on",
    "Guest is ready",
    "Copying in input",
    "Running the program",
    "Program done",
    "Copying out output",
    "Sanitizing the virtual machine",
)


def app(settings: Mapping[str, str]) -> bytes:
    """vmwrapper, with these environment variables."""
    words = [f"{name}={value}" for name, value in settings.items()]
    return f'#!/bin/sh\nexec env {shlex.join(words)} {shlex.quote(str(VMWRAPPER))} --debug "$@"\n'.encode()


def start(client: BoincClient, image: Path, *, wishes: str, seconds: int, settings: Mapping[str, str]) -> None:
    """A client whose app runs the job, after some seconds, in a guest of this image; `wishes` are elements of its task.

    `settings` are environment variables of the app's.
    """
    files = {name: (EXAMPLES / name).read_bytes() for name in ("hubble.sh", "nebulae.dat")}
    job = _JOB.format(vm="guest", wishes=wishes)
    client.prepare(
        Workunit(
            inputs={"job.xml": job.encode(), "work.sh": _WORK.format(seconds=seconds).encode(), **files},
            outputs=["hubble.out"],
            disk_bound_bytes=4_000_000_000,
        ),
        app_files={MAIN: app(settings), f"guest{image.suffix}": image.read_bytes()},
        preferences=Preferences(leave_apps_in_memory=True),
    )
    client.start()


def by_hand_on_qemu(folder: Path) -> tuple[bytes, str]:
    """The output, and the log."""
    folder.mkdir()
    for name in ("hubble.sh", "nebulae.dat"):
        (folder / name).write_bytes((EXAMPLES / name).read_bytes())
    (folder / "work.sh").write_text(_WORK.format(seconds=0))
    (folder / "job.xml").write_text(_JOB.format(vm="default", wishes="<backend>qemu</backend>"))
    argv = [VMWRAPPER, "run", folder / "job.xml"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return (folder / "hubble.out").read_bytes(), done.stderr


def chapters(log: str) -> list[str]:
    """Which, in the order in which they began."""
    said = re.findall(rf"^\S+ \S+ \(\d+\): ({'|'.join(map(re.escape, CHAPTERS))})", log, re.MULTILINE)
    return list(dict.fromkeys(said))


def wait_for(client: BoincClient, words: str, *, times: int = 1) -> None:
    """Until the app has said that so often."""
    client.wait_until(lambda: client.stderr.count(words) >= times, limit_s=LIMIT_S)
