"""The text of .vmx files: nothing that a stranger has named becomes a setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.vmware.vmrun.vmx import escaped, unescaped, vmx_text, vmx_values

from .fuzzing import fuzzed

HOSTILE = 'x"\nsharedFolder0.hostPath = "/etc\r\n|0a\x00\x7f'


def test_what_is_written() -> None:
    assert vmx_text({"memsize": "64", "displayName": 'a "b" | c\n'}) == (
        '.encoding = "UTF-8"\nmemsize = "64"\ndisplayName = "a |22b|22 |7C c|0A"\n'
    )


def test_a_hostile_value_stays_one() -> None:
    text = vmx_text({"annotation": HOSTILE, "memsize": "64"})
    assert len(text.splitlines()) == 3
    assert vmx_values(text) == {".encoding": "UTF-8", "annotation": HOSTILE, "memsize": "64"}


@fuzzed
@given(value=st.text(st.characters(codec="utf-8")))
def test_every_value_comes_back(value: str) -> None:
    written = escaped(value)
    assert '"' not in written
    assert not any(ord(letter) < 0x20 for letter in written)
    assert unescaped(written) == value
    assert vmx_values(vmx_text({"a": value})).keys() == {".encoding", "a"}


def test_what_has_no_encoding() -> None:
    assert escaped("a\udcff") == "a\\udcff"


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a=b", "a\n", "1a"])
def test_names_are_ours(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a setting"):
        vmx_text({name: "x"})


def test_what_vmware_writes() -> None:
    said = '#!/usr/bin/vmware\r\n.encoding = "UTF-8"\r\nguestOS = "debian11-64"\r\nscsi0:0.fileName="a.vmdk"\r\nodd\r\n'
    assert vmx_values(said) == {".encoding": "UTF-8", "guestos": "debian11-64", "scsi0:0.filename": "a.vmdk"}


@fuzzed
@given(said=st.text())
def test_whatever_is_in_there(said: str) -> None:
    vmx_values(said)
