"""What a stranger wrote is printed without any consequence."""

from collections.abc import Callable

import pytest

from vmwrapper.hostile import one_line, printable, shown, some_of

STICKY = "ERR_CPU_VM_EXTENSIONS_DISABLED"


def first_of_some(name: str) -> str:
    return some_of([name])[0]


@pytest.mark.parametrize("said", [STICKY, f"a {STICKY}\n{STICKY}{STICKY}", f"\x1b{STICKY}\0", f"ERR_{STICKY}"])
@pytest.mark.parametrize(
    "tell",
    [printable, lambda text: printable(text.encode()), lambda text: shown(text.encode()), one_line, first_of_some],
)
def test_nobody_tells_the_client_that_the_computer_cant_virtualize(tell: Callable[[str], str], said: str) -> None:
    told = tell(said)
    assert STICKY not in told
    assert "ERR\N{REPLACEMENT CHARACTER}CPU_VM_EXTENSIONS_DISABLED" in told


@pytest.mark.parametrize("tell", [printable, lambda text: shown(text.encode()), one_line])
def test_what_is_harmless_stays(tell: Callable[[str], str]) -> None:
    harmless = "ERR_CPU_VM_EXTENSIONS_DISABLE ERR_CPU é"
    assert tell(harmless) == harmless


def test_a_limit_holds() -> None:
    assert printable(STICKY * 10, limit=100) == printable(STICKY * 10)[-100:]
