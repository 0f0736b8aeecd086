"""A BOINC client that runs one episode in a slot that stays: `python -m tests.torture.client JOB SUSPEND_S FAULT...`.

Unlike that of `vmwrapper run --client-script` it may be killed, and the slot is there for the next one. SUSPEND_S is
how long the job is suspended, a second after its program runs; 0 for not at all. The FAULT is for `faulty`. Exit
status 0: the job is done; 1: it failed; 2: it would be started again.
"""

import asyncio
import sys
from pathlib import Path

from vmwrapper.concurrency import beside
from vmwrapper.hypervisor.registry import all_hypervisors
from vmwrapper.job.reader import read_job
from vmwrapper.terminal import log_to_stderr
from vmwrapper.twin.client import REAL_PACE, ClientTwin, say
from vmwrapper.twin.exits import Fate
from vmwrapper.twin.files import job_files
from vmwrapper.twin.slot import SLOT_FOLDER, TwinSlot, _shared_memory

_SUSPEND_AFTER_S = 1.0


async def _suspend(client: ClientTwin, seconds: float) -> None:
    while not (client._log.find("Running the program") or client._log.find("Going on with the program")):
        client._said_more.clear()
        await client._said_more.wait()
    await asyncio.sleep(_SUSPEND_AFTER_S)
    say("suspends")
    client.suspend("torture")
    await asyncio.sleep(seconds)
    client.resume("torture")
    say("resumes")


async def _episode(slot: TwinSlot, command: list[str], suspend_s: float) -> Fate:
    client = ClientTwin(slot, command=command, tells_pid=True, show=lambda _: None, pace=REAL_PACE)
    slot.link()
    with client._signals():
        async with beside(client._poll(), client._read_log(), *([_suspend(client, suspend_s)] if suspend_s else [])):
            return (await client._episode()).fate


def main() -> int:
    """Play the client."""
    job_file, suspend_s, *fault = Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]
    log_to_stderr(20)
    suffixes = [suffix for hypervisor in all_hypervisors() for suffix in hypervisor.image_suffixes]
    files = job_files(read_job(job_file), job_file, image_suffixes=suffixes)
    folder = job_file.parent / SLOT_FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "stderr.txt").unlink(missing_ok=True)  # each episode's own
    with _shared_memory(folder) as memory:
        slot = TwinSlot(folder, files, memory)
        command = [sys.executable, "-P", "-m", "tests.torture.faulty", *fault]
        match asyncio.run(_episode(slot, command, suspend_s)):
            case Fate.SUCCEEDED:
                say(f"left in the slot: {' '.join(slot.left_by_app()) or 'nothing'}")
                return 0
            case Fate.FAILED | Fate.ABORTED:
                return 1
    return 2


if __name__ == "__main__":
    sys.exit(main())
