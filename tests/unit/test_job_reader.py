"""What a job file may say, and what its author is told otherwise."""

import os
import shlex
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmwrapper.errors import JobError, JobFileMissing
from vmwrapper.job.model import Job, SelfRunning, Task
from vmwrapper.job.problems import MAX_PROBLEMS, BadJobFile
from vmwrapper.job.reader import MAX_JOB_FILE_BYTES, read_job

from .fuzzing import fuzzed

DAVID_WEIRS = """\
<job_desc>
   <task>
       <vm>cernvm-1.01-x86/cernvm-1.01-x86</vm>
       <user>djw03</user>
       <password>guestpass</password>
       <datadir>/tmp</datadir>
       <innerjob>inner.sh</innerjob>
       <partial_credit>0</partial_credit>
       <snapshots>0</snapshots>
       <data>foo.dat</data>
       <output>bar.dat</output>
   </task>
</job_desc>
"""
MINIMAL = "<vm>default</vm><innerjob>inner.sh</innerjob>"


def read(content: str | bytes) -> Job:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.xml")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_job(path)


def problems(content: str | bytes) -> list[str]:
    with pytest.raises(BadJobFile) as caught:
        read(content)
    return [str(problem) for problem in caught.value.problems]


def job_of(*tasks: str) -> str:
    """Put the first task on line 2, and its tags on line 3."""
    return "<job_desc>\n" + "\n".join(f"<task>\n{task}\n</task>" for task in tasks) + "\n</job_desc>\n"


def test_david_weirs_file_runs_unchanged() -> None:
    (task,) = read(DAVID_WEIRS).tasks
    assert task == Task(
        line=2, vm="cernvm-1.01-x86/cernvm-1.01-x86", user="djw03", password="guestpass", datadir="/tmp",
        innerjob="inner.sh", partial_credit=False, snapshots=False, data=("foo.dat",), output=("bar.dat",),
    )  # fmt: skip


def test_comments_and_blanks_do_not_count_and_nothing_is_expanded() -> None:
    tags = """<command_line> -n 'two words' "$HOME" *.dat </command_line><network>0</network><!-- x -->
        <innerjob><!-- the -->inner<?x y?>.sh</innerjob> <vm>\n default </vm><setenv>A=b = $c </setenv>"""
    (task,) = read(job_of(f"{tags}<data>changed-in-place</data><output>changed-in-place</output>")).tasks
    assert task == Task(
        line=2, innerjob="inner.sh", arguments=("-n", "two words", "$HOME", "*.dat"), environment=(("A", "b = $c"),),
        data=("changed-in-place",), output=("changed-in-place",),
    )  # fmt: skip


def test_declarations_and_encodings_are_as_in_xml() -> None:
    for encoding in ("utf-8", "iso-8859-1", "utf-16"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + job_of(f"{MINIMAL}<data>é\xa0</data>")
        assert read(text.encode(encoding)).tasks[0].data == ("é\xa0",)


NAME = "must be a relative file name"
OWN = "must not be one of the wrapper's own files"
REFUSED_VALUES = [
    ("vm", [""], "must name a base image, such as default; it is ''"),
    ("user", ["Root", "", "1a", "a" * 33], "must be a user name of at most 32"),
    ("datadir", ["tmp", "", "/", "//tmp", "/tmp/", "/tmp/../etc", "/t\tmp"], "must be an absolute directory below /"),
    ("datadir", ["/usr", "/bin", "/proc/1", "/run/vmwrapper", "/lib64"], "must not be a directory that the guest"),
    ("innerjob", ["", "/bin/sh"], NAME),
    ("data", ["", "/a", "..", "a/../b", "a\\..\\b", "./a", "C:a", "a\x7fb", "a\x85b", "a/"], NAME),
    ("output", ["", "../a", "\\a"], NAME),
    ("output", ["boinc_finish_called", "Init_Data.xml", "trickle_up.xml", ".vmwrapper/record"], OWN),
    ("data", ["init_data.xml", "job.xml"], OWN),
    ("stdin_filename", ["", "../a"], NAME),
    ("stdin_filename", ["init_data.xml"], OWN),
    ("stdout_filename", ["job.xml"], OWN),
    ("stderr_filename", ["stderr.txt"], OWN),
    ("package", ["a.zip", "tar", ".deb/x"], "must be a file whose name ends in .tar, .tar.gz, "),
    ("package", ["../a.tar"], NAME),
    ("partial_credit", ["", "2"], "must be 0 or 1"),
    ("snapshots", ["yes"], "must be 0 or 1; it is 'yes'"),
    ("backend", ["", "kvm"], "must be one of qemu, virtualbox, vmware"),
    ("memory_mb", ["63", "1048577", "0x100", "٢٥٦", "1e3"], "must be a whole number from 64 to 1048576"),
    ("memory_mb", ["9" * 5000], f"must be a whole number from 64 to 1048576; it is '{'9' * 60}...'"),
    ("cpus", ["0", "256", "+1"], "must be a whole number from 1 to 255"),
    ("disk_mb", ["-1", "1048577"], "must be a whole number from 0 to 1048576"),
    ("weight", ["0", "-1", "1000001", "nan", "inf", "1_0", ""], "must be a number above 0, at most 1e+06"),
    ("time_limit", ["0", "1000000001"], "must be a number above 0, at most 1e+09"),
    ("checkpoint_interval", ["0", "-1", "1000000001", "nan", "x", ""], "must be a number above 0, at most 1e+09"),
    ("credit_report", ["", "/tmp/../x", "//x", "../x", "a/", "a\tb"], "must be a file in the guest"),
    ("fraction_done_filename", ["", "./x", ".."], "must be a file in the guest"),
    ("cpu_time_basis", ["", "wall", "Host"], "must be one of host, guest, elapsed"),
    ("command_line", ["a 'b", 'a "', "a \\"], "must close every quote, and end in no backslash"),
    ("command_line", ["a" * 70_000], "must have at most 65536 characters"),
    ("setenv", ["", "A", "=b", "1A=b", "É=b"], "must be NAME=value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "value", "problem"), [(tag, value, why) for tag, values, why in REFUSED_VALUES for value in values]
)
def test_refused_value(tag: str, value: str, problem: str) -> None:
    rest = "".join(f"<{name}>x</{name}>" for name in ("vm", "innerjob") if name != tag)
    (found,) = problems(job_of(f"{rest}\n<{tag}>{value}</{tag}>"))
    assert found.startswith(f"line 4: <{tag}> {problem}")


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        *((f"<{tag}>inner.sh</{tag}>", f"<{tag}>inner.sh</{tag}> would overwrite the program, <innerjob> on line 3")
            for tag in ("output", "stdout_filename", "stderr_filename")),
        ("<network>1</network>", "<network>1</network> is refused: no network that QEMU can give keeps a guest from"),
        ("<network>a\nb</network>", r"<network>a\nb</network> is refused: "),
        ("<exec_dir>x</exec_dir>", "unknown tag <exec_dir>"),
        ("<VM>x</VM>", "unknown tag <VM>: did you mean <vm>?"),
        ("<data name='x'>a</data>", "<data> has no attributes; remove name"),
        ("<data>a<b/></data>", "<data> holds text only, but there is a tag in it"),
        ("stray", "<task> holds tags only, but there is text after <innerjob>"),
    ],
)  # fmt: skip
def test_refused_tag(tags: str, problem: str) -> None:
    (found,) = problems(job_of(f"{MINIMAL}{tags}"))
    assert found.startswith(f"line 3: {problem}")


BY_ITSELF = "<vm>appliance</vm><completion_trigger_file>done</completion_trigger_file>"


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        (f"{BY_ITSELF}<command_line>-v</command_line>", "<command_line> makes no sense for a guest that works"),
        (f"{BY_ITSELF}<setenv>A=b</setenv>", "<setenv> makes no sense for a guest that works by itself"),
        (f"{BY_ITSELF}<stdin_filename>a</stdin_filename>", "<stdin_filename> makes no sense"),
        (f"{BY_ITSELF}<stdout_filename>a</stdout_filename>", "<stdout_filename> makes no sense"),
        (f"{BY_ITSELF}<stderr_filename>a</stderr_filename>", "<stderr_filename> makes no sense"),
        (f"{BY_ITSELF}<package>a.tar</package>", "<package> makes no sense"),
        (f"{BY_ITSELF}<user>ada</user>", "<user> makes no sense"),
        (f"{BY_ITSELF}<password>secret</password>", "<password> makes no sense"),
        (f"{BY_ITSELF}<datadir>/tmp</datadir>", "<datadir> makes no sense"),
        (f"{BY_ITSELF}<partial_credit>0</partial_credit>", "<partial_credit> makes no sense"),
        (f"{BY_ITSELF}<credit_report>a</credit_report>", "<credit_report> makes no sense"),
        (f"{BY_ITSELF}<cpu_time_basis>guest</cpu_time_basis>", "<cpu_time_basis>guest</cpu_time_basis> makes no sense"),
        (f"{BY_ITSELF}<disk_mb>0</disk_mb>", "<disk_mb>0</disk_mb> leaves no room in the folder"),
        (f"{BY_ITSELF}<data>done</data>", "<data>done</data> is the same file as <completion_trigger_file> on line 3"),
        (
            f"{BY_ITSELF}<heartbeat_filename>done</heartbeat_filename>",
            "<heartbeat_filename>done</heartbeat_filename> is the same file as <completion_trigger_file> on line 3",
        ),
        (
            f"{BY_ITSELF}<fraction_done_filename>/tmp/far</fraction_done_filename>",
            "<fraction_done_filename>/tmp/far</fraction_done_filename> must be a file in the shared folder, without /",
        ),
        (f"{BY_ITSELF}<heartbeat_filename>../b</heartbeat_filename>", "<heartbeat_filename> must be a relative file"),
        ("<vm>a</vm><job_duration>0</job_duration>", "<job_duration> must be a number above 0"),
        (
            f"{BY_ITSELF}<innerjob>inner.sh</innerjob>",
            "<completion_trigger_file> is for a guest that works by itself: <innerjob> on line 3 makes it run that",
        ),
    ],
)  # fmt: skip
def test_refused_tag_of_a_guest_that_works_by_itself(tags: str, problem: str) -> None:
    (found,) = problems(job_of(tags))
    assert found.startswith(f"line 3: {problem}")
    assert "secret" not in found


def test_a_guest_that_works_by_itself_needs_an_end() -> None:
    (found,) = problems(job_of("<vm>a</vm><heartbeat_filename>beat</heartbeat_filename>"))
    assert found.startswith("line 2: <task> has no <innerjob>, which names the program; nor has it <completion_trigger")


def test_guests_that_work_by_themselves_and_others_can_be_in_one_job() -> None:
    one, other = read(job_of(BY_ITSELF, MINIMAL)).tasks
    assert one == Task(line=2, vm="appliance", self_running=SelfRunning(completion_file="done"))
    assert other.self_running is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<job_desc/>", ["line 1: <job_desc> has no <task>, and needs at least one"]),
        ("<a>\n<password /></b>", ["line 2: not well-formed XML: Opening and ending tag mismatch: a line 1 and b"]),
        ("<job_desc a='1'>\n<tsk/></job_desc>", [
            "line 1: <job_desc> has no <task>, and needs at least one",
            "line 1: <job_desc> has no attributes; remove a",
            "line 2: unknown tag <tsk>: did you mean <task>?",
        ]),
        (job_of(""), [
            "line 2: <task> has no <innerjob>, which names the program",
            "line 2: <task> has no <vm>, which names the base image, such as default",
        ]),
        (job_of("text<vm/>\n<vm>a</vm>\n<inerjob>x</inerjob>\n<data>d</data>\n<data>d</data>"), [
            "line 2: <task> has no <innerjob>, which names the program",
            "line 2: <task> holds tags only, but there is text after <task>",
            "line 3: <vm> must name a base image, such as default; it is ''",
            "line 4: <vm> is here again: a task has one, and line 3 has it",
            "line 5: unknown tag <inerjob>: did you mean <innerjob>?",
            "line 7: <data>d</data> is here again: line 6 has it",
        ]),
        (job_of(f"{MINIMAL}<output>o</output>", f"{MINIMAL}\n<output>o</output>"), [
            "line 7: <output>o</output> is written by an earlier task, too: line 3 has it",
        ]),
    ],
)  # fmt: skip
def test_every_problem_is_named_in_line_order(content: str, found: list[str]) -> None:
    assert problems(content) == found


def test_the_message_is_the_path_and_the_problems(tmp_path: Path) -> None:
    path = tmp_path / "job.xml"
    path.write_text("\n<a/>")
    with pytest.raises(BadJobFile) as caught:
        read_job(path)
    whole = f"{path} is not a usable job file:\n  line 2: the root element is <a>, where <job_desc> should be"
    assert str(caught.value) == whole


def test_reading_stops_at_many_problems() -> None:
    assert len(problems(job_of("<a/>" * 10_000))) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<vbox_job/>", "line 1: this is a job file of BOINC's vboxwrapper (<vbox_job>), which this version does not"),
        (job_of("<virtualmachine/><application/>"), "line 3: this is a job file of BOINC's VMwrapper of 2009 (<virt"),
        (job_of("<application>a</application>"), "line 3: this is a job file of BOINC's wrapper (<application>"),
        (job_of(f"{MINIMAL}\n<application>a</application>"),
            "line 4: <application> is for BOINC's wrapper, but <vm> on line 3 is for vmwrapper: a file can't mix"),
        (job_of("<virtualmachine/>", MINIMAL), "line 3: <virtualmachine> is for BOINC's VMwrapper of 2009, but <vm>"),
        ("", "it is empty, where <job_desc> should be"),
        (bytes(range(256)), "line 1: not XML: a job file begins with <job_desc>"),
        ("<job_desc>\n<task>\n<vm>a", "line 3: not well-formed XML: Premature end of data in tag vm line 3"),
        ("<job_desc>\n&x;</job_desc>", "line 2: not well-formed XML: Entity 'x' not defined"),
        (b"<a>\n\xe9</a>", "line 2: not well-formed XML: "),
        ("<a>" * 300, "line 1: not well-formed XML: Excessive depth"),
        (" " * (MAX_JOB_FILE_BYTES + 1), "it is larger than 1048576 bytes, the most that is read"),
        ("\n<!DOCTYPE job_desc><job_desc/>", "line 2: a job file has no <!DOCTYPE> and no entities"),
        ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///no/such/file'>]><a>&x;</a>", "line 1: a job file has no <!DOCTYPE>"),
        ("\n<!DOCTYPE a><a/>".encode("utf-16"), "line 2: a job file has no <!DOCTYPE>"),
    ],
)  # fmt: skip
def test_one_bad_file(content: str | bytes, problem: str) -> None:
    (found,) = problems(content)
    assert found.startswith(problem)


def test_entities_do_not_explode() -> None:
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))
    began_s = time.monotonic()
    found = problems(f'<!DOCTYPE a [<!ENTITY a0 "{"x" * 100}">{bomb}]><a b="&a19;">&a19;</a>')
    assert found[0] == "line 1: a job file has no <!DOCTYPE> and no entities"
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("value", ["a<hunter2", "a<hunter2>b", "&hunter2;", "<hunter2/>", "<b>hunter2</b>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_message_shows_a_password(value: str, encoding: str) -> None:
    tags = f"{MINIMAL}\n<password >{value}</password><password>hunter2</password>"
    found = problems(job_of(tags).encode(encoding))
    assert "line 4: " in found[0]
    assert not [problem for problem in found if "hunter2" in problem]


def test_a_missing_file_has_its_own_exit_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "job.xml", tmp_path / "file" / "job.xml"):
        with pytest.raises(JobFileMissing, match=f"there is no job file {path}"):
            read_job(path)


def test_what_cant_be_read_says_why_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, why in {"": "it is a directory", "pipe": "a device", "loop": "Too many levels of symbolic links"}.items():
        with pytest.raises(BadJobFile, match=why):
            read_job(tmp_path / name)


VALID_BEGINNINGS = [b"", DAVID_WEIRS.encode(), b'<?xml version="1.0" encoding="utf-7"?>', DAVID_WEIRS.encode("utf-16")]
FRAGMENTS = st.sampled_from(
    b"< > </ & &x; &#0; &#9; <!-- --> <![CDATA[ <?x <!DOCTYPE \0 \xff \x85 .. / ' \\ = 1e9 "
    b"<task> </task> <vm> <data> <data/> <password> <application> <command_line>".split()
)
MUTATIONS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20), FRAGMENTS | st.binary()), max_size=6)


@fuzzed
@given(st.sampled_from(VALID_BEGINNINGS), MUTATIONS)
def test_anything_is_read_or_refused(content: bytes, mutations: list[tuple[int, int, bytes]]) -> None:
    for position, length, fragment in mutations:
        content = content[:position] + fragment + content[position + length :]
    with suppress(JobError):
        assert read(content).tasks


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff"), max_size=12)
WORDS = TEXT.filter(lambda text: text == text.strip(" "))
NAMES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=2), min_size=1, max_size=3).map("/".join)
NAME_SETS = st.lists(NAMES, unique=True, max_size=3).map(tuple)
NUMBERS = st.floats(0, 1e6, exclude_min=True)
VARIABLES = st.tuples(st.from_regex("[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), WORDS)
Field = tuple[str, st.SearchStrategy[Any], Callable[[Any], str]]  # its name, its values, how one is written
FIELDS: dict[str, Field] = {
    "vm": ("vm", WORDS.filter(bool), str),
    "user": ("user", st.from_regex("[a-z_][a-z0-9_-]{0,31}", fullmatch=True), str),
    "password": ("password", WORDS, str),
    "datadir": ("datadir", NAMES.map("/{}".format), str),
    **{tag: (tag, NAME_SETS, str) for tag in ("data", "output")},
    **{tag: (tag, st.booleans(), "{:d}".format) for tag in ("partial_credit", "snapshots")},
    "backend": ("backend", st.sampled_from(["qemu", "virtualbox", "vmware"]), str),
    "memory_mb": ("memory_mib", st.integers(64, 1 << 20), str),
    "cpus": ("cpus", st.integers(1, 255), str),
    "disk_mb": ("scratch_mib", st.integers(0, 1 << 20), str),
    "weight": ("weight", NUMBERS, str),
    "command_line": ("arguments", st.lists(TEXT, max_size=3).map(tuple), shlex.join),
    "setenv": ("environment", st.lists(VARIABLES, max_size=3).map(tuple), "=".join),
    **{f"{stream}_filename": (stream, NAMES, str) for stream in ("stdin", "stdout", "stderr")},
    "time_limit": ("time_limit_s", NUMBERS, str),
    "checkpoint_interval": ("checkpoint_interval_s", NUMBERS, str),
}
VALUES = st.fixed_dictionaries({}, optional={field: values for field, values, _ in FIELDS.values()})


@given(VALUES, st.permutations(list(FIELDS)))
def test_a_task_survives_being_written_and_read(values: dict[str, Any], tags: list[str]) -> None:
    task = Task(line=1, innerjob="inner.sh", **values)
    root = etree.Element("job_desc")
    element = etree.SubElement(root, "task")
    etree.SubElement(element, "innerjob").text = task.innerjob
    for tag in tags:
        field, _, write = FIELDS[tag]
        value = getattr(task, field)
        for one in value if tag in {"data", "output", "setenv"} else [value]:
            if one is not None:
                etree.SubElement(element, tag).text = write(one)
    assert read(etree.tostring(root, encoding="utf-8")) == Job(tasks=(task,))
