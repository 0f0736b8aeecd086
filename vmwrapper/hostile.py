"""What a stranger wrote, made harmless to print."""

from collections.abc import Collection

_LONGEST = 4096
_MOST_NAMES = 20


def printable(said: bytes | str, *, limit: int = _LONGEST) -> str:
    """The last `limit` characters as text without control characters but line breaks: no terminal obeys it."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    text = text[-limit:].replace("\r\n", "\n").strip()
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def one_line(name: str) -> str:
    """A name on one line, with what can't be printed as an escape sequence of Python's."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def some_of(names: Collection[str]) -> list[str]:
    """The first names, each on one line, and the number of the others as words, if there are any."""
    shown = [one_line(name) for name in list(names)[:_MOST_NAMES]]
    others = len(names) - len(shown)
    return [*shown, f"and {others} more"] if others else shown
