"""What the client says of a job is read whatever names are in it, or refused with a reason."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.init_data import InitData, parse_init_data, read_init_data
from vmwrapper.errors import ClientUnreachable

from .fuzzing import fuzzed

SECRET = "0123456789abcdef"
GOOD = f"""\
<app_init_data>
<major_version>7</major_version>
<client_pid>4711</client_pid>
<shm_key>-1</shm_key>
<project_preferences>
<project_dir>/of/the/preferences</project_dir>
</project_preferences>
<team_name>A < B & "C"</team_name>
<user_name>Zoë</app_init_data></user_name>
<project_dir>/home/R&D <1>/projects/P</project_dir>
<authenticator>{SECRET}</authenticator>
<result_name>wu1_0</result_name>
<using_sandbox>0</using_sandbox>
<wu_cpu_time>12.500000</wu_cpu_time>
<host_info>
    <p_model>A CPU <with> a name</p_model>
    <client_pid>1</client_pid>
</host_info>
<fraction_done_start>0.250000</fraction_done_start>
<fraction_done_end>0.750000</fraction_done_end>
</app_init_data>
""".encode()


def test_its_fields_are_read() -> None:
    assert parse_init_data(GOOD) == InitData(
        project_dir=Path("/home/R&D <1>/projects/P"),
        result_name="wu1_0",
        client_pid=4711,
        shm_key=-1,
        checkpoint_cpu_time_s=12.5,
        fraction_done_start=0.25,
        fraction_done_end=0.75,
    )


def test_what_strangers_are_called_changes_nothing() -> None:
    spoofed = GOOD.replace("Zoë".encode(), b"</user_name><project_dir>/etc</project_dir><slot>")
    assert parse_init_data(spoofed).project_dir == parse_init_data(GOOD).project_dir


def test_names_need_not_be_utf_8() -> None:
    latin = parse_init_data(GOOD.replace(b"R&D", b"R\xe9D"))
    assert bytes(latin.project_dir).startswith(b"/home/R\xe9D")


def test_the_authenticator_is_not_kept() -> None:
    assert SECRET not in repr(parse_init_data(GOOD))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"</app_init_data>", b"", "it is cut short"),
        (b"<app_init_data>", b"", "it is cut short"),
        (b"<result_name>wu1_0</result_name>", b"", "<result_name> is missing"),
        (b"/home/R&D", b"home", "<project_dir> is no absolute path"),
        (b"/home/R&D", b"/home\n", "<project_dir> is missing or no line"),
        (b"4711", b"-1", "<client_pid> is no integer of at least 0"),
        (b"<shm_key>-1", b"<shm_key>many", "<shm_key> is no integer"),
        (b"12.500000", b"nan", "<wu_cpu_time> is no finite number"),
        (b"12.500000", b"inf", "<wu_cpu_time> is no finite number"),
        (b"12.500000", b"-1", "<wu_cpu_time> is no finite number"),
        (b"0.750000", b"?", "<fraction_done_end> is no finite number"),
    ],
)
def test_what_is_unusable_has_its_reason(tmp_path: Path, old: bytes, new: bytes, sentence: str) -> None:
    (tmp_path / "init_data.xml").write_bytes(GOOD.replace(old, new))
    with pytest.raises(ClientUnreachable, match=sentence) as caught:
        read_init_data(tmp_path)
    assert SECRET not in str(caught.value)


def test_a_directory_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "init_data.xml").mkdir()
    with pytest.raises(ClientUnreachable, match="can't read"):
        read_init_data(tmp_path)


@fuzzed
@given(st.binary() | st.lists(st.sampled_from(GOOD.splitlines(keepends=True)) | st.binary()).map(b"".join))
def test_anything_else_is_refused_with_a_sentence(content: bytes) -> None:
    for junk in (content, b"<app_init_data>" + content + b"</app_init_data>"):
        try:
            parse_init_data(junk)
        except ValueError as error:
            assert str(error).startswith(("<", "it is cut short"))  # noqa: PT017  (it need not be refused)
