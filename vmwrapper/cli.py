"""Arguments, logging, and the exit status that an error becomes."""

import argparse
import asyncio
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from vmwrapper import __version__
from vmwrapper.boinc.client import Client
from vmwrapper.boinc.init_data import INIT_DATA_FILE
from vmwrapper.boinc.standalone import Standalone
from vmwrapper.checkpointer import enough_bytes
from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobFileMissing, VmwrapperError
from vmwrapper.exit_status import ExitStatus
from vmwrapper.folders import image_folder
from vmwrapper.hypervisor.interface import MIB, ProbeResult
from vmwrapper.hypervisor.registry import Registry, all_hypervisors, needs_of
from vmwrapper.job.reader import read_job
from vmwrapper.job.resolve import resolve_job
from vmwrapper.leftovers import Finding, State, clear
from vmwrapper.shell.client import COMMAND_LIMIT_S, Session
from vmwrapper.terminal import log_to_stderr, progress_display
from vmwrapper.wrapper import BOOT_LIMIT_S, Options, run_episode

log = logging.getLogger(__name__)

JOB_FILES = ("job.xml", "vbox_job.xml")
_LONGEST_S = 24 * 3600
_DESCRIPTION = "Runs an ordinary program inside a virtual machine, as a job file describes it."
_EPILOG = f"""\
Without a command: runs the job of the current directory, as the BOINC client wants it; the job file is
{JOB_FILES[0]}, or else {JOB_FILES[1]}. Options go before the command or behind it.

examples:
  vmwrapper image build          make the guest that <vm>default</vm> means, once
  vmwrapper check job.xml        say everything that is wrong with a job file
  vmwrapper run job.xml          run it; its outputs appear beside it
  vmwrapper run --keep job.xml   run it, and keep its machine for a look by vmwrapper shell
  vmwrapper run --client-script FILE job.xml
                                 run it as the BOINC client would, which suspends and kills it as FILE says
  vmwrapper probe                say which hypervisors this computer can use
  vmwrapper gc                   show what jobs that are gone have left in hypervisors
"""
_RUN_EPILOG = """\
With --client-script the job runs in a slot of its own, a folder .vmwrapper-slot that is removed at the end, as it
would under the BOINC client. FILE has one step on a line, and # before comments:

  wait SECONDS             wait for TEXT: until it stands in the log of the app, as it runs now
  suspend                  resume
  quit                     kill: as kill -9 does; both wait until the app has ended
  start                    the app again after quit or kill, which is else done behind the last step
  abort                    ends the job
  heartbeats off           heartbeats on; without them the app takes the client for gone after 30 s
  network off              network on
  reread                   the app is to read init_data.xml again
  trickle down TEXT        a message from the project's server
  cpu limit PERCENT        suspends and resumes each second or so; 100 for no limit

The exit status is 0 for a job that succeeds, else that of the app; 203 after abort, as the client reports it.
"""
_SHELL_DESCRIPTION = f"""\
Runs commands in the guest of a job that `vmwrapper run --keep` runs, or has run and keeps: as the guest's
administrator, beginning where the job's files are. They read no input. What they print, at most 512 KiB, is shown
at their end, which comes by itself, by Ctrl-C, or after {COMMAND_LIMIT_S:g} s or what --limit says."""
_SHELL_EPILOG = """\
Without a COMMAND: asks for one after the other; exit or Ctrl-D leaves, and the machine stays. A COMMAND of one
word is a line for the guest's sh. Its exit status becomes ours.

examples:
  vmwrapper shell                           in the job's directory
  vmwrapper shell ~/hubble -- ls -l /tmp    from anywhere
  vmwrapper shell -- 'ps | grep hubble'
  vmwrapper shell -- cat /tmp/core >core    a file, where it has at most 512 KiB
"""
_GC_DESCRIPTION = """\
Shows what jobs that are gone have left in this user's hypervisors, and removes it with --yes: machines and their
processes, the disks that VirtualBox knows, and the folder .vmwrapper of the job's directory with their files. A wrapper
removes all that itself, unless it is killed and its job never runs again.

What belongs to a running job is not touched, nor is a machine that vmwrapper did not make. Where a job can go on from a
checkpoint its files stay: its next run finds them."""
_GC_EPILOG = """\
The exit status is 0, or 75 where something could not be looked at or removed, which is named with the reason.

examples:
  vmwrapper gc                                only show it
  vmwrapper gc --yes                          remove it
  vmwrapper gc --backend virtualbox --json    of one hypervisor, for programs
"""


class _Parser(argparse.ArgumentParser):
    """Ends with BOINC's status for a bad option instead of argparse's."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitStatus.INIT_FAILURE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the program `vmwrapper`; its exit status."""
    chosen = _chosen(sys.argv[1:] if arguments is None else list(arguments))
    log_to_stderr(logging.DEBUG if chosen.verbose or chosen.debug else logging.INFO)
    try:
        return int(chosen.command(chosen))
    except VmwrapperError as error:
        log.error("%s", error, exc_info=chosen.debug)  # noqa: TRY400  (a person needs no traceback)
        return error.exit_status
    except KeyboardInterrupt:
        # As by any program: a client starts an app again that ended so, where 130 would be a computing error.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        return ExitStatus.INTERRUPTED
    except Exception:
        log.exception("This is an error of vmwrapper itself. Please report it, with these lines")
        return ExitStatus.BUG


def _chosen(words: list[str]) -> argparse.Namespace:
    """What was asked for. What follows -- after `shell` is the guest's, which argparse would mix with ours."""
    end = words.index("--") if "--" in words else len(words)
    if "shell" not in words[:end]:
        end = len(words)
    defaults = argparse.Namespace(
        command=_run,
        job_file=None,
        backend=None,
        boot_limit=BOOT_LIMIT_S,
        trickle=None,
        keep=False,
        client_script=None,
        verbose=False,
        debug=False,
        guest_command=words[end + 1 :],
    )
    return _parser().parse_args(words[:end], defaults)


def _parser() -> argparse.ArgumentParser:
    logging_options = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    logging_options.add_argument("--verbose", action="store_true", help="say more")
    logging_options.add_argument("--debug", action="store_true", help="say everything, with tracebacks")
    run_options = _run_options(logging_options)

    parser = _Parser(
        "vmwrapper",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[run_options],
    )
    parser.add_argument("--version", action="version", version=f"vmwrapper {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    run = commands.add_parser(
        "run",
        parents=[run_options],
        help="run a job file's job",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("job_file", type=Path, help="its outputs appear beside it")
    ways = run.add_mutually_exclusive_group()
    ways.add_argument("--keep", action="store_true", help="keep the last machine for a look, until Ctrl-C")
    ways.add_argument(
        "--client-script", metavar="FILE", type=Path, help="play the BOINC client, and do to the job what FILE says"
    )
    run.set_defaults(command=_run)
    shell = commands.add_parser(
        "shell",
        parents=[logging_options],
        help="look into the guest of a job that `run --keep` runs or keeps",
        usage="vmwrapper shell [-h] [--limit SECONDS] [DIRECTORY] [-- COMMAND ...]",
        description=_SHELL_DESCRIPTION,
        epilog=_SHELL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shell.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIRECTORY", help="the job's (this one)"
    )
    shell.add_argument("--limit", metavar="SECONDS", type=_seconds, default=COMMAND_LIMIT_S, help="for each command")
    shell.set_defaults(command=_shell)
    check = commands.add_parser("check", parents=[logging_options], help="name every problem of a job file")
    check.add_argument("job_file", type=Path)
    check.set_defaults(command=_check)
    probe = commands.add_parser(
        "probe", parents=[logging_options], help="show the hypervisors that this computer can use"
    )
    probe.add_argument("--json", action="store_true", help="for programs")
    probe.set_defaults(command=_probe)
    _add_gc(commands, logging_options)
    image = commands.add_parser("image", help="base images")
    build = image.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "build", parents=[logging_options], help="make the default guest from Debian's packages, unless it is there"
    )
    build.add_argument("--output", type=Path, help="where to put it (the image folder)")
    build.set_defaults(command=_image_build)
    return parser


def _add_gc(commands: "argparse._SubParsersAction[_Parser]", logging_options: _Parser) -> None:
    collect = commands.add_parser(
        "gc",
        parents=[logging_options],
        help="show, or remove, what jobs that are gone have left in hypervisors",
        description=_GC_DESCRIPTION,
        epilog=_GC_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    collect.add_argument("--yes", action="store_true", help="remove it; without, nothing is changed")
    collect.add_argument("--backend", metavar="NAME", default=None, help="look into this hypervisor only")
    collect.add_argument("--json", action="store_true", help="for programs")
    collect.set_defaults(command=_gc)


def _run_options(logging_options: _Parser) -> _Parser:
    """Those of a run, for `run` and for no command."""
    options = _Parser(add_help=False, argument_default=argparse.SUPPRESS, parents=[logging_options])
    options.add_argument("--backend", metavar="NAME", help="use this hypervisor, whatever the job file says")
    options.add_argument(
        "--trickle", metavar="SECONDS", type=_seconds, help="send the server a trickle-up of the CPU time so often"
    )
    options.add_argument(
        "--boot-limit", metavar="SECONDS", type=_seconds, help=f"how long a guest may take to boot ({BOOT_LIMIT_S:g})"
    )
    return options


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {_LONGEST_S} s")
    return seconds


def _run(chosen: argparse.Namespace) -> int:
    if chosen.client_script:
        return _play_client(chosen)
    registry = Registry(all_hypervisors())
    options = Options(
        backend=chosen.backend,
        boot_limit_s=chosen.boot_limit,
        trickle_period_s=chosen.trickle,
        keep=chosen.keep,
    )
    if chosen.job_file is None and os.path.lexists(INIT_DATA_FILE):
        api = Client(Path())
        return run_episode(api.resolve(str(_job_file_here())), api, registry, options)
    job_file = (chosen.job_file or _job_file_here()).absolute()
    if not job_file.parent.is_dir():
        raise JobFileMissing(f"there is no job file {job_file}")
    with progress_display() as show:
        standalone = Standalone(job_file.parent, result_name=job_file.stem, show=show)
        return run_episode(job_file, standalone, registry, options)


def _play_client(chosen: argparse.Namespace) -> int:
    # Imported here: an app has no use for them.
    from vmwrapper.twin.app import app_command  # noqa: PLC0415
    from vmwrapper.twin.files import job_files  # noqa: PLC0415
    from vmwrapper.twin.player import play  # noqa: PLC0415
    from vmwrapper.twin.script import read_script  # noqa: PLC0415

    steps = read_script(chosen.client_script)
    job_file = chosen.job_file.absolute()
    suffixes = [suffix for hypervisor in all_hypervisors() for suffix in hypervisor.image_suffixes]
    files = job_files(read_job(job_file), job_file, image_suffixes=suffixes)
    options = ["--boot-limit", str(chosen.boot_limit)]
    options += ["--backend", chosen.backend] if chosen.backend else []
    options += ["--trickle", str(chosen.trickle)] if chosen.trickle else []
    options += [f"--{name}" for name in ("verbose", "debug") if vars(chosen)[name]]
    with progress_display() as show:
        return play(files, command=app_command(options), steps=steps, show=show)


def _shell(chosen: argparse.Namespace) -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader who has enough ends us, as any filter
    session = Session(chosen.directory.absolute(), limit_s=chosen.limit)
    match chosen.guest_command:
        case []:
            return session.converse()
        case [line]:
            return session.run(line)
        case words:
            return session.run(shlex.join(words))


def _job_file_here() -> Path:
    return next((Path(name) for name in JOB_FILES if Path(name).exists()), Path(JOB_FILES[0]))


def _check(chosen: argparse.Namespace) -> int:
    job_file = chosen.job_file.absolute()
    job = read_job(job_file)
    slot = job_file.parent
    registry = Registry(all_hypervisors())
    candidates = [registry.candidates(task.backend, needs_of(task)) for task in job.tasks]
    suffixes = [[suffix for one in able for suffix in one.image_suffixes] for able in candidates]
    resolve_job(job, job_file, slot.joinpath, slot=slot, image_suffixes=suffixes)
    print(f"{chosen.job_file} is a good job file: {len(job.tasks)} task(s)")  # noqa: T201  (the command's answer)
    bound_bytes = max(enough_bytes(task) for task in job.tasks)
    print(  # noqa: T201  (the same)
        f"With its checkpoints it may need some {bound_bytes // MIB} MiB of the disk, beside its outputs, where its "
        f"programs fill their disks: there is room for them with an rsc_disk_bound of {bound_bytes} or more"
    )
    return 0


def _probe(chosen: argparse.Namespace) -> int:
    async def probe_all() -> list[ProbeResult]:
        clock = RunningClock()
        return [await hypervisor.probe(clock) for hypervisor in all_hypervisors()]

    results = asyncio.run(probe_all())
    if chosen.json:
        print(json.dumps([asdict(result) for result in results], indent=2))  # noqa: T201
    else:
        print("\n".join(map(_described, results)))  # noqa: T201
    return 0


def _described(result: ProbeResult) -> str:
    usable = ("usable, accelerated" if result.accelerated else "usable, slowly") if result.usable else "not usable"
    return "\n  ".join([f"{result.name} {result.version or ''}: {usable}", *result.reasons])


def _gc(chosen: argparse.Namespace) -> int:
    hypervisors = Registry(all_hypervisors()).named(chosen.backend)
    findings = asyncio.run(clear(hypervisors, removes=chosen.yes))
    if chosen.json:
        print(json.dumps([_as_json(finding) for finding in findings], indent=2))  # noqa: T201
    else:
        print("\n".join(map(str, findings)) or "nothing is left over")  # noqa: T201
    failed = any(finding.state is State.NOT_REMOVED for finding in findings)
    return ExitStatus.TEMPORARY if failed else 0


def _as_json(finding: Finding) -> dict[str, object]:
    return {**asdict(finding), "files": finding.files.name.lower()}


def _image_build(chosen: argparse.Namespace) -> int:
    from vmwrapper.guest.image import build_default_image  # noqa: PLC0415  (only here its libraries are needed)

    destination = chosen.output or image_folder() / "default.vmguest"
    asyncio.run(build_default_image(destination, report=log.info))
    return 0
