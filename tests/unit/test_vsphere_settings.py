"""Who logs in to which vSphere server: only by what nobody else can read."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmwrapper.errors import NoUsableHypervisor
from vmwrapper.hypervisor.vmware.vsphere.settings import FILE_VARIABLE, is_configured, read_settings

pytestmark = pytest.mark.usefixtures("own_folder")
GOOD = {"host": "vcenter.example", "user": "ada", "password": 'p\'s "secret"'}


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the user's settings."""
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "config"))
    return tmp_path / "config" / "vmwrapper"


def written(tmp_path: Path, text: str, *, mode: int = 0o600) -> dict[str, str]:
    file = tmp_path / "vsphere.toml"
    file.touch()
    file.chmod(mode)
    file.write_text(text)
    return {FILE_VARIABLE: str(file)}


def toml(**values: object) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(NoUsableHypervisor) as refused:
        read_settings(environment)
    return str(refused.value)


def test_all_that_a_file_can_say(tmp_path: Path) -> None:
    places = {"datacenter": "DC", "folder": "DC/vm/jobs", "resource_pool": "DC/host/c/Resources/jobs", "datastore": "d"}
    settings = read_settings(written(tmp_path, toml(**GOOD, port=8443, ca_file="/ca.pem", **places)))
    assert (settings.host, settings.port, settings.user) == ("vcenter.example", 8443, "ada")
    assert settings.password == GOOD["password"]
    assert settings.ca_file == Path("/ca.pem")
    assert {name: getattr(settings, name) for name in places} == places


def test_the_password_is_not_shown(tmp_path: Path) -> None:
    assert GOOD["password"] not in repr(read_settings(written(tmp_path, toml(**GOOD))))


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has such permissions")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    assert "chmod 600" in refusal(written(tmp_path, toml(**GOOD), mode=mode))


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has such permissions")
def test_a_password_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("with spaces \n")
    secret.chmod(0o600)
    said = toml(host="h", user="u", password_file=str(secret))
    assert read_settings(written(tmp_path, said)).password == "with spaces "
    secret.chmod(0o644)
    assert str(secret) in refusal(written(tmp_path, said))
    secret.unlink()
    assert "No such file" in refusal(written(tmp_path, said))


def test_the_environment_comes_first(tmp_path: Path) -> None:
    said = {
        "VMWRAPPER_VSPHERE_HOST": "other",
        "VMWRAPPER_VSPHERE_PORT": "44",
        "VMWRAPPER_VSPHERE_PASSWORD": "theirs",
    }
    settings = read_settings(written(tmp_path, toml(**GOOD)) | said)
    assert (settings.host, settings.port, settings.user, settings.password) == ("other", 44, "ada", "theirs")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (toml(user="u", password="p"), "host is missing"),
        (toml(host="h", password="p"), "user is missing"),
        (toml(host="h", user="u"), "neither password nor password_file"),
        (toml(**GOOD, password_file="f"), "both password and password_file"),
        (toml(**GOOD, port=0), "port"),
        (toml(**GOOD, port=65536), "port"),
        (toml(**GOOD, port="x"), "port"),
        (toml(**GOOD, port=True), "port"),
        (toml(**GOOD, insecure=True), "insecure"),
        (toml(**GOOD, ca_file=7), "ca_file"),
        ("host = ", "no TOML"),
        ("x = " + "[" * 5000, "no TOML"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, said: str, complaint: str) -> None:
    complained = refusal(written(tmp_path, said))
    assert complaint in complained
    assert GOOD["password"] not in complained


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "can't read" in refusal({FILE_VARIABLE: str(tmp_path / "nothing")})
    environment = written(tmp_path, "")
    Path(environment[FILE_VARIABLE]).write_bytes(b"\xff\xfe")
    assert "UTF-8" in refusal(environment)


def test_whether_there_is_a_server(own_folder: Path) -> None:
    assert not is_configured({})
    assert is_configured({FILE_VARIABLE: "x"})
    assert is_configured({"VMWRAPPER_VSPHERE_HOST": "x"})
    own_folder.mkdir(parents=True)
    (own_folder / "vsphere.toml").touch()
    assert is_configured({})


def test_an_installation_keeps_its_name(tmp_path: Path, own_folder: Path) -> None:
    environment = written(tmp_path, toml(**GOOD))
    with ThreadPoolExecutor(8) as at_once:
        [name] = {one.owner for one in at_once.map(read_settings, [environment] * 32)}
    assert re.fullmatch("[0-9a-f]{32}", name)
    [file] = own_folder.iterdir()
    file.unlink()
    assert read_settings(environment).owner != name
    file.write_text("")  # as after a power cut
    assert str(file) in refusal(environment)
    file.unlink()
    file.mkdir()
    assert str(file) in refusal(environment)
