"""What the client says of a job is read whatever names are in it, or refused with a reason."""

import copy
import pickle
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.elements import scan
from vmwrapper.boinc.init_data import GlobalPreferences, HostInfo, InitData, ProxyInfo, parse_init_data, read_init_data
from vmwrapper.boinc.secret import Secret
from vmwrapper.errors import ClientUnreachable

from .fuzzing import fuzzed

SECRET = "0123456789abcdef"
HTTP_SECRET, SOCKS_SECRET = "pa<ss", "word&"
GOOD = f"""\
<app_init_data>
<major_version>8</major_version>
<minor_version>2</minor_version>
<release>9</release>
<app_version>103</app_version>
<userid>11</userid>
<teamid>12</teamid>
<hostid>13</hostid>
<app_name>hubble</app_name>
<plan_class>vm_mt</plan_class>
<project_preferences>
<project_dir>/of/the/preferences</project_dir>
<team_name>of the preferences</team_name>
</project_preferences>
<team_name>A < B & "C" &lt;D&gt;</team_name>
<user_name>Zo&#195;&#171;</app_init_data></user_name>
<project_dir>/home/R&D <1>/projects/P&amp;</project_dir>
<boinc_dir>/home/R&D <1></boinc_dir>
<authenticator>{SECRET}</authenticator>
<wu_name>wu1</wu_name>
<result_name>wu1_0</result_name>
<shm_key>-1</shm_key>
<slot>3</slot>
<client_pid>4711</client_pid>
<wu_cpu_time>12.500000</wu_cpu_time>
<starting_elapsed_time>14.250000</starting_elapsed_time>
<using_sandbox>0</using_sandbox>
<vm_extensions_disabled>1</vm_extensions_disabled><user_total_credit>1.500000</user_total_credit>
<user_expavg_credit>-nan</user_expavg_credit>
<host_total_credit>1e999</host_total_credit>
<resource_share_fraction>0.500000</resource_share_fraction>
<checkpoint_period>120.000000</checkpoint_period>
<fraction_done_start>0.250000</fraction_done_start>
<fraction_done_end>0.750000</fraction_done_end>
<gpu_type></gpu_type>
<gpu_device_num>-1</gpu_device_num>
<ncpus>2.000000</ncpus>
<rsc_fpops_est>1000000000000.000000</rsc_fpops_est>
<rsc_memory_bound>536870912.000000</rsc_memory_bound>
<rsc_disk_bound>1073741824.000000</rsc_disk_bound>
<computation_deadline>1800000000.000000</computation_deadline>
<vbox_window>1</vbox_window>
<process_priority>2</process_priority>
<host_info>
    <timezone>-3600</timezone>
    <p_ncpus>8</p_ncpus>
    <p_model>A CPU &lt;with&gt; a name</p_model>
    <p_features>sse2 vmx</p_features>
    <m_nbytes>16000000000.000000</m_nbytes>
    <client_pid>1</client_pid>
    <coprocs><coproc><p_ncpus>5</p_ncpus></coproc></coprocs>
    <virtualbox_version>7.0.12</virtualbox_version>
</host_info>
<proxy_info>
    <use_http_proxy/>
    <socks_server_port>1080</socks_server_port>
    <socks5_user_passwd>word&amp;</socks5_user_passwd>
    <http_user_passwd>pa&lt;ss</http_user_passwd>
    <socks5_remote_dns>1</socks5_remote_dns>
</proxy_info>
<global_preferences>
   <leave_apps_in_memory>1</leave_apps_in_memory>
   <cpu_usage_limit>50.000000</cpu_usage_limit>
   <max_bytes_sec_up>1000.000000</max_bytes_sec_up>
   <day_prefs><day_of_week>1</day_of_week><start_hour>7.00</start_hour></day_prefs>
   <run_on_batteries>0</run_on_batteries>
</global_preferences>
<app_file>vmwrapper_1.0</app_file>
<app_file>image &amp; </app_file>
</app_init_data>
""".encode()


def test_its_fields_are_read() -> None:
    assert parse_init_data(GOOD) == InitData(
        major_version=8,
        minor_version=2,
        release=9,
        app_version=103,
        userid=11,
        teamid=12,
        hostid=13,
        app_name="hubble",
        plan_class="vm_mt",
        project_preferences=(
            b"\n<project_dir>/of/the/preferences</project_dir>\n<team_name>of the preferences</team_name>\n"
        ),
        team_name='A < B & "C" <D>',
        user_name="Zoë</app_init_data>",
        project_dir=Path("/home/R&D <1>/projects/P&amp;"),
        boinc_dir=Path("/home/R&D <1>"),
        authenticator=Secret(SECRET),
        wu_name="wu1",
        result_name="wu1_0",
        shm_key=-1,
        slot=3,
        client_pid=4711,
        checkpoint_cpu_time_s=12.5,
        starting_elapsed_time_s=14.25,
        vm_extensions_disabled=True,
        user_total_credit=1.5,
        resource_share_fraction=0.5,
        checkpoint_period_s=120,
        fraction_done_start=0.25,
        fraction_done_end=0.75,
        ncpus=2,
        rsc_fpops_est=1e12,
        rsc_memory_bound_bytes=1 << 29,
        rsc_disk_bound_bytes=1 << 30,
        computation_deadline=1.8e9,
        vbox_window=True,
        process_priority=2,
        host_info=HostInfo(
            timezone=-3600,
            p_ncpus=8,
            p_model="A CPU <with> a name",
            p_features="sse2 vmx",
            m_nbytes=1.6e10,
            virtualbox_version="7.0.12",
        ),
        proxy_info=ProxyInfo(
            use_http_proxy=True,
            socks_server_port=1080,
            socks5_user_passwd=Secret(SOCKS_SECRET),
            http_user_passwd=Secret(HTTP_SECRET),
            socks5_remote_dns=True,
        ),
        global_preferences=GlobalPreferences(
            leave_apps_in_memory=True, cpu_usage_limit=50, max_bytes_sec_up=1000, run_on_batteries=False
        ),
        app_files=("vmwrapper_1.0", "image &amp;"),
    )


def test_most_may_be_missing(tmp_path: Path) -> None:
    little = b"<app_init_data>\n<project_dir>/p</project_dir><result_name>r</result_name></app_init_data>"
    assert parse_init_data(little) == InitData(project_dir=Path("/p"), result_name="r")


@pytest.mark.parametrize(
    "spoof",
    [
        b"</user_name><project_dir>/etc</project_dir><slot>",
        b"</user_name><app_file>evil</app_file><user_name>",
        b"</team_name></user_name><app_name>evil</app_name><symstore>evil</symstore>",
        b"</project_preferences><acct_mgr_url>evil</acct_mgr_url><team_name>",
        b"<project_preferences></project_preferences><user_name>x</user_name><symstore>evil</symstore>",
        b"<result_name>evil</result_name><wu_name>evil</wu_name>",
    ],
)
@pytest.mark.parametrize("element", [b"team_name", b"user_name"])
@pytest.mark.parametrize("has_preferences", [True, False])
def test_what_strangers_are_called_changes_nothing(element: bytes, spoof: bytes, *, has_preferences: bool) -> None:
    names = GOOD[GOOD.index(b"<team_name>A") : GOOD.index(b"<project_dir>/home")]
    good = GOOD if has_preferences else GOOD.replace(b"project_preferences", b"ignored")
    spoofed = good.replace(names, b"<%b>%b</%b>\n" % (element, spoof, element))
    calm = {"team_name": None, "user_name": None}
    assert replace(parse_init_data(spoofed), **calm) == replace(parse_init_data(good), **calm)


def test_names_need_not_be_utf_8() -> None:
    latin = parse_init_data(GOOD.replace(b"R&D", b"R\xe9D"))
    assert bytes(latin.project_dir).startswith(b"/home/R\xe9D")


@pytest.mark.parametrize(
    "name", [item.name for item in fields(InitData) if item.name not in {"project_dir", "result_name", "client_pid"}]
)
@pytest.mark.parametrize("junk", [b"", b"\xff\0", b"x" * 5000, b"99999999999999", b"-1e400"])
def test_junk_in_what_we_can_do_without_is_harmless(name: str, junk: bytes) -> None:
    tag = InitData.__dataclass_fields__[name].metadata.get("tag", name).encode()
    content = b"<app_init_data><%b>%b</%b><project_dir>/p</project_dir><result_name>r</result_name></app_init_data>"
    if name == "shm_key":
        with pytest.raises(ValueError, match="shm_key"):
            parse_init_data(content % (tag, junk, tag))
    else:
        assert parse_init_data(content % (tag, junk, tag)).result_name == "r"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"</app_init_data>", b"", "it is cut short"),
        (b"<app_init_data>", b"", "it is cut short"),
        (b"<result_name>wu1_0</result_name>", b"", "<result_name> is missing"),
        (b"/home/R&D", b"home", "<project_dir> is no absolute path"),
        (b"/home/R&D", b"/home\n", "<project_dir> is missing or no line"),
        (b"4711", b"-1", "<client_pid> is no integer of at least 0"),
        (b"4711", b"9999999999", "<client_pid> is no integer"),
        (b"<shm_key>-1", b"<shm_key>many", "<shm_key> is no integer"),
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


class TestSecret:
    def test_it_tells_nothing_unless_asked(self) -> None:
        data = parse_init_data(GOOD)
        shown = f"{data} {data!r} {asdict(data)} {data.authenticator} {data.authenticator:>40} {copy.deepcopy(data)}"
        shown += "%s %r" % (data.authenticator, data.proxy_info.http_user_passwd)  # noqa: UP031
        for secret in (SECRET, HTTP_SECRET, SOCKS_SECRET):
            assert secret not in shown
        assert data.authenticator is not None
        assert data.authenticator.reveal() == SECRET

    def test_it_cant_be_pickled(self) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="secret"):
                pickle.dumps(parse_init_data(GOOD), protocol)

    def test_it_equals_its_like_and_no_text(self) -> None:
        assert Secret("a") == Secret("a") != Secret("b")
        assert Secret("a") != "a"
        assert len({Secret("a"), Secret("a")}) == 1


@fuzzed
@given(st.binary() | st.lists(st.sampled_from(GOOD.splitlines(keepends=True)) | st.binary()).map(b"".join))
def test_anything_else_is_refused_with_a_sentence(content: bytes) -> None:
    for junk in (content, b"<app_init_data>" + content + b"</app_init_data>"):
        try:
            parse_init_data(junk)
        except ValueError as error:
            assert str(error).startswith(("<", "it is cut short"))  # noqa: PT017  (it need not be refused)


@fuzzed
@given(st.sampled_from(["team_name", "user_name"]), st.binary(), st.data())
def test_no_name_changes_what_the_client_says(element: str, name: bytes, data: st.DataObject) -> None:
    lines = st.sampled_from([line for line in GOOD.splitlines(keepends=True) if b"app_init_data" not in line])
    name += data.draw(st.lists(lines | st.binary(max_size=5)).map(b"".join))
    named = b"<%b>%b</%b>\n" % (element.encode(), name, element.encode())
    content = b"<app_init_data>" + named + b"<project_dir>/p</project_dir><result_name>r</result_name></app_init_data>"
    expected = InitData(project_dir=Path("/p"), result_name="r")
    assert replace(parse_init_data(content), team_name=None, user_name=None) == expected


@pytest.mark.parametrize("piece", [b"<a>", b"<team_name>", b"<project_preferences>", b"<a", b"</user_name>", b"<a/>"])
def test_it_takes_no_longer_for_junk(piece: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="missing"):
        parse_init_data(b"<app_init_data>" + piece * ((1 << 18) // len(piece)) + b"</app_init_data>")
    assert time.process_time() - began < 2


def test_nor_for_tags_of_which_none_ends() -> None:
    content = b"".join(b"<a%x>" % number for number in range(1 << 15))
    began = time.process_time()
    assert not scan(content.ljust(1 << 18, b"<"))
    assert time.process_time() - began < 1
