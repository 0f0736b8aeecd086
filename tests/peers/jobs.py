"""Jobs for the BOINC client: a program in the guest that makes of `in.dat` an `out.dat`."""

import shlex
import sys
from pathlib import Path

from .boinc_client import BoincClient
from .client_files import MAIN, Preferences, Workunit

VMWRAPPER = Path(sys.executable).with_name("vmwrapper")
JOB = """\
<job_desc>
   <task>
       <vm>guest</vm>
       <innerjob>program.sh</innerjob>
       <data>in.dat</data>
       <output>out.dat</output>
       <disk_mb>1024</disk_mb>
   </task>
</job_desc>
"""
COPY = "tr a-z A-Z <in.dat >out.dat"
RIGHT = b"INPUT"
"""What COPY makes of the input."""


def compute(seconds: int) -> str:
    """A paused guest's uptime stands still."""
    return f"""\
now() {{ cut -d. -f1 /proc/uptime; }}
end=$(($(now) + {seconds}))
while [ $(now) -lt $end ]; do :; done
"""


def work(script: str, *, data: bytes = b"input", disk_bound_bytes: int = 4_000_000_000) -> Workunit:
    """A workunit whose program is this script."""
    return Workunit(
        inputs={"job.xml": JOB.encode(), "program.sh": f"#!/bin/sh\n{script}\n".encode(), "in.dat": data},
        outputs=["out.dat"],
        disk_bound_bytes=disk_bound_bytes,
    )


def start(
    client: BoincClient,
    image: bytes,
    *workunits: Workunit,
    preferences: Preferences = Preferences(),  # noqa: B008  (it is frozen)
    environment: str = "",
) -> None:
    """A client that runs these."""
    app = f'#!/bin/sh\nexec env {environment} {shlex.quote(str(VMWRAPPER))} "$@"\n'
    client.prepare(
        *workunits,
        app_files={MAIN: app.encode(), "guest.vmguest": image},
        preferences=preferences,
    )
    client.start()


def wait_for_program(client: BoincClient) -> None:
    client.wait_until(lambda: "Running the program" in client.stderr)
