"""The shell script that becomes the program, run by a real shell, and what the launcher reads back."""

import os
import string
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError
from vmwrapper.guest.launcher import _EXIT, Launcher, Program, ProgramEnd, _command
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.memory.backend import IMAGE, MemoryHypervisor
from vmwrapper.hypervisor.memory.guest import LAUNCHER_HOME, STDERR, MemoryGuest

from . import simulated_time
from .fuzzing import fuzzed

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40
).filter(lambda name: name not in {".", ".."})
VARIABLES = st.dictionaries(
    st.from_regex("[A-Z_][A-Z0-9_]{0,8}", fullmatch=True).map("VMW_{}".format), TEXTS, max_size=4
)
AWKWARD = ["", "'", '"$HOME"', "`x`", "\\", "a\nb", "-n", "*", "~", " ", "$(x)", ">x", "2>>x", "ü"]

SAY_ARGUMENTS = """\
#!/bin/sh
[ $# = 0 ] || printf '%s\\0' "$@"
"""
SAY_ENVIRONMENT = """\
#!/bin/sh
cat /proc/self/environ
"""


def in_a_shell(program: Program, datadir: Path) -> subprocess.CompletedProcess[bytes]:
    """What the launcher does with the command, as the user root."""
    script = datadir.parent / "command"
    script.write_text(_command(program, str(datadir)))
    return subprocess.run(["sh", script], env={"PATH": os.defpath}, cwd="/", capture_output=True, check=False)


@pytest.fixture
def datadir(tmp_path: Path) -> Path:
    """A directory with a name that needs quotes."""
    folder = tmp_path / "data dir with 'quotes' & $HOME"
    folder.mkdir()
    return folder


def write_program(folder: Path, text: str, name: str = "program") -> str:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return name


quoting = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


class TestCommand:
    @quoting
    @given(st.lists(TEXTS, max_size=5))
    @example(AWKWARD)
    def test_arguments_arrive_as_they_are(self, datadir: Path, arguments: Sequence[str]) -> None:
        path = write_program(datadir, SAY_ARGUMENTS)
        done = in_a_shell(Program(path=path, arguments=arguments, environment={}), datadir)
        assert done.stdout.decode() == "".join(f"{argument}\0" for argument in arguments)
        assert (done.returncode, done.stderr) == (0, b"")

    @quoting
    @given(VARIABLES)
    @example({f"VMW_{number}": text for number, text in enumerate(AWKWARD)})
    def test_the_environment_arrives_as_it_is(self, datadir: Path, environment: Mapping[str, str]) -> None:
        path = write_program(datadir, SAY_ENVIRONMENT)
        done = in_a_shell(Program(path=path, environment=environment), datadir)
        settings = [setting.partition("=") for setting in done.stdout.decode().split("\0")]
        assert {name: value for name, _, value in settings if name.startswith("VMW_")} == environment

    @quoting
    @given(st.lists(NAMES, min_size=4, max_size=4, unique=True))
    @example(["-rf", "it's", "$HOME `x`", ">&2"])
    def test_files_have_the_names_that_they_should(
        self, tmp_path_factory: pytest.TempPathFactory, names: list[str]
    ) -> None:
        datadir = tmp_path_factory.mktemp("data")
        path, stdin, stdout, stderr = names
        write_program(datadir, "#!/bin/sh\ncat\necho error >&2\n", path)
        (datadir / stdin).write_bytes(b"input\n")
        program = Program(path=path, environment={}, stdin=stdin, stdout=stdout, stderr=stderr)
        assert in_a_shell(program, datadir).returncode == 0
        assert (datadir / stdout).read_bytes() == b"input\n"
        assert (datadir / stderr).read_bytes() == b"error\n"

    def test_the_program_is_in_its_datadir(self, datadir: Path) -> None:
        path = write_program(datadir, "#!/bin/sh\npwd\n")
        done = in_a_shell(Program(path=path, environment={}), datadir)
        assert done.stdout.decode().rstrip("\n") == str(datadir.resolve())

    def test_the_shell_becomes_the_program(self, datadir: Path) -> None:
        path = write_program(datadir, "#!/bin/sh\nkill -9 $$\n")
        assert in_a_shell(Program(path=path, environment={}), datadir).returncode == -9

    def test_outputs_are_appended_to(self, datadir: Path) -> None:
        path = write_program(datadir, "#!/bin/sh\necho new\n")
        (datadir / "out").write_text("old\n")
        in_a_shell(Program(path=path, environment={}, stdout="out"), datadir)
        assert (datadir / "out").read_text() == "old\nnew\n"

    def test_folders_of_streams_are_made(self, datadir: Path) -> None:
        path = write_program(datadir, "#!/bin/sh\necho said\n")
        done = in_a_shell(Program(path=path, environment={}, stdout="it's/a b/out", stderr="it's/err"), datadir)
        assert done.returncode == 0
        assert (datadir / "it's/a b/out").read_text() == "said\n"
        assert (datadir / "it's/err").read_text() == ""

    def test_without_its_datadir_nothing_runs(self, tmp_path: Path) -> None:
        done = in_a_shell(Program(path="program", environment={}), tmp_path / "nowhere")
        assert done.returncode == 126


@asynccontextmanager
async def a_guest(tmp_path: Path) -> AsyncIterator[MemoryGuest]:
    image = tmp_path / "image.memory"
    image.write_bytes(IMAGE)
    spec = MachineSpec(
        identity=MachineIdentity("project", "result", "slot"),
        image=image,
        directory=tmp_path,
        memory_mib=64,
        cpus=1,
        scratch_mib=0,
    )
    async with MemoryHypervisor().machine(spec, RunningClock()) as machine:
        await machine.power_on()
        assert isinstance(machine.guest, MemoryGuest)
        yield machine.guest


class TestReadingBack:
    async def test_a_program_that_runs_has_not_ended(self, tmp_path: Path) -> None:
        async with a_guest(tmp_path) as guest:
            assert await Launcher(guest, datadir="/tmp", user="root").ended() is None

    async def test_how_it_ended(self, tmp_path: Path) -> None:
        async with a_guest(tmp_path) as guest:
            guest.write(f"{LAUNCHER_HOME}/exit", b"status=137 user=1m2.50s system=0m0.25s\n")
            end = await Launcher(guest, datadir="/tmp", user="root").ended()
        assert end == ProgramEnd(status=137, user_s=62.5, system_s=0.25)

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"status=0",
            b"status=-1 user=0m0s system=0m0s",
            b"status=0 user=0mxs system=0m0s",
            b"status=0 user=0m0.0.0s system=0m0s",
            b"status=0 user=0m.s system=0m0s",
            b"status=0 user=0m0s system=0m0s\nstatus=1 user=0m0s system=0m0s",
            b"\xff" * 300,
        ],
    )
    async def test_a_record_that_makes_no_sense(self, tmp_path: Path, said: bytes) -> None:
        async with a_guest(tmp_path) as guest:
            guest.write(f"{LAUNCHER_HOME}/exit", said)
            with pytest.raises(GuestError, match="makes no sense"):
                await Launcher(guest, datadir="/tmp", user="root").ended()

    @fuzzed
    @given(said=st.binary(max_size=80) | st.from_regex(_EXIT).map(str.encode))
    def test_any_record_is_an_end_or_makes_no_sense(self, tmp_path: Path, said: bytes) -> None:
        async def story() -> ProgramEnd | None:
            async with a_guest(tmp_path) as guest:
                guest.write(f"{LAUNCHER_HOME}/exit", said)
                return await Launcher(guest, datadir="/tmp", user="root").ended()

        with suppress(GuestError):
            assert isinstance(simulated_time.run(story()), ProgramEnd)

    async def test_the_end_of_what_it_said(self, tmp_path: Path) -> None:
        said = "".join(f"{number}{letter}\n" for number in range(2000) for letter in string.ascii_letters[:3])
        async with a_guest(tmp_path) as guest:
            guest.write(STDERR, said.encode())
            guest.write("/tmp/errors", b"to a file \x1b[0m")
            launcher = Launcher(guest, datadir="/tmp", user="root")
            assert said.endswith(await launcher.last_words(stderr=None) + "\n")
            assert await launcher.last_words(stderr="errors") == "to a file \N{REPLACEMENT CHARACTER}[0m"

    async def test_a_program_is_started_once(self, tmp_path: Path) -> None:
        async with a_guest(tmp_path) as guest:
            launcher = Launcher(guest, datadir="/tmp", user="root")
            await launcher.start(Program(path="program", environment={}))
            with pytest.raises(GuestError, match="could not be started"):
                await launcher.start(Program(path="program", environment={}))

    async def test_removing(self, tmp_path: Path) -> None:
        async with a_guest(tmp_path) as guest:
            for name in ("one", "two", "-rf"):
                guest.write(f"/data/{name}", b"")
            await Launcher(guest, datadir="/data", user="root").remove(["one", "-rf", "missing"])
            assert [path for path in guest.files if path.startswith("/data/")] == ["/data/two"]


@pytest.mark.parametrize(("status", "text"), [(0, "exit status 0"), (1, "exit status 1"), (137, "killed by signal 9")])
def test_an_end_in_words(status: int, text: str) -> None:
    assert str(ProgramEnd(status=status, user_s=0, system_s=0)) == text
