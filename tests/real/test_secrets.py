"""The volunteer's authenticator and passwords, and the guest's, are nowhere but in the files that bring them."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from vmwrapper.concurrency import beside
from vmwrapper.twin.client import ClientTwin
from vmwrapper.twin.slot import AUTHENTICATOR, PROXY_PASSWORD

from .test_job import job, task, write_job
from .test_requests_in_every_phase import client_of, helpers

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

GUEST_PASSWORD = "password-of-the-guest-83c1e0"
SECRETS = (AUTHENTICATOR, PROXY_PASSWORD, GUEST_PASSWORD)
MARKER = "to-be-found-4f7d29"
"""Nothing secret, and everywhere: what does not find it finds nothing."""
WORDS = (*SECRETS, MARKER)
BRINGERS = {"init_data.xml", "job.xml"}
GUEST_PLACES = {"guest's file", "guest's environment", "guest's arguments"}
HOST_PLACES = {"argument", "environment", "log", "file in the slot", "file of the project"}

# It knows the words backwards only, and gives none of them to another program. What it finds, it tells by number.
SEARCH = f"""\
look() {{
    number=0
    for backwards in {" ".join(f"'{word[::-1]}'" for word in WORDS)}; do
        word=$(echo "$backwards" | rev)
        case "$2" in *"$word"*) echo "$number $1" >>found;; esac
        number=$((number + 1))
    done
}}
>found
for process in /proc/[0-9]*; do
    look "guest's environment" "$(tr '\\0' '\\n' <$process/environ)"
    look "guest's arguments" "$(tr '\\0' '\\n' <$process/cmdline)"
done 2>/dev/null
find / -xdev -type f >names
find /tmp /run /dev /var /root /home -xdev -type f >>names
while read -r name; do
    case $name in /proc/*|/sys/*|*/found|*/names) continue;; esac
    look "guest's file" "$(tr '\\0' '\\n' <"$name")"
done <names 2>/dev/null
wc -l <names >>found
"""


async def test_no_secret_is_where_it_does_not_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/{MARKER}")
    project = tmp_path / MARKER
    project.mkdir()
    (project / f"{MARKER}.dat").write_text(MARKER)
    tags = (
        f"<password>{escape(GUEST_PASSWORD)}</password><data>{MARKER}.dat</data><output>found</output>",
        f"<setenv>WORD={MARKER}</setenv><command_line>{MARKER}</command_line>",
    )
    write_job(project, "", search=SEARCH)
    found: set[tuple[str, str]] = set()
    async with client_of(project, job(task("search.sh", *tags)), "--debug") as (client, slot, ending):
        async with beside(watch(client, found)):
            await client.said("Running the program")
            look_at_files(slot.path, project, found)
            assert await ending == 0
        assert AUTHENTICATOR in (slot.path / "init_data.xml").read_text()
        assert PROXY_PASSWORD in (slot.path / "init_data.xml").read_text()
        look_at_files(slot.path, project, found)
        look("log", (slot.path / "stderr.txt").read_text(), found)
    *lines, number_of_files = (project / "found").read_text().splitlines()
    assert int(number_of_files) > 50
    for line in lines:
        number, _, place = line.partition(" ")
        found.add((WORDS[int(number)], place))
    assert {place for word, place in found if word == MARKER} == HOST_PLACES | GUEST_PLACES
    assert {(word, place) for word, place in found if word != MARKER} == set()


def look(place: str, text: str, found: set[tuple[str, str]]) -> None:
    found.update((word, place) for word in WORDS if word in text)


async def watch(client: ClientTwin, found: set[tuple[str, str]]) -> None:
    """What other users of the host may see of the app and all that it starts."""
    while True:
        if client.app:
            for process in [psutil.Process(client.app.pid), *helpers(client)]:
                with suppress(psutil.Error):  # it has just ended
                    look("argument", "\n".join(process.cmdline()), found)
                    look("environment", str(process.environ()), found)
        await asyncio.sleep(0.1)


def look_at_files(slot: Path, project: Path, found: set[tuple[str, str]]) -> None:
    for path in files_in(project):
        place = "file in the slot" if path.is_relative_to(slot) else "file of the project"
        look(place, path.read_bytes().decode(errors="replace"), found)


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name not in BRINGERS)
