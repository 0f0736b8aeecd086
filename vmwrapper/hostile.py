"""What a guest said, made harmless to print."""

_LONGEST = 4096


def printable(said: bytes | str, *, limit: int = _LONGEST) -> str:
    """The last `limit` characters as text without control characters but line breaks: no terminal obeys it."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    text = text[-limit:].replace("\r\n", "\n").strip()
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
