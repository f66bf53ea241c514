"""What a text file is: its delimiter, layout and header, or that it is no data at all."""

from __future__ import annotations

from pathlib import Path

from .columns import guess
from .errors import DataError


def has_header(rows: list[list[str]]) -> bool:
    """By known names; else words above numbers."""
    first = [cell.strip() for cell in rows[0]]
    if guess(first, "user") is not None and guess(first, "item") is not None:
        return True
    below = [row for row in rows[1:] if len(row) == len(first)]
    return bool(below) and any(
        cell and not _is_number(cell) and all(_is_number(row[i]) for row in below)
        for i, cell in enumerate(first)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def delimiter_of(line: str) -> str:
    return next((d for d in ("::", "\t", ",", ";", "|") if d in line), " ")


def is_lists(sample: list[str], delimiter: str) -> bool:
    if delimiter != " ":
        return False
    # Without the last one, which is short where a file of pairs is truncated.
    lengths = {len(line.split()) for line in (sample[:-1] if len(sample) > 2 else sample)}
    return len(lengths) > 1 or lengths.pop() > 4


def refuse_foreign(start: bytes, path: Path, expected: str) -> None:
    """Say what a file is that is no text of these lines."""
    if not start.strip():
        raise DataError(f"{path} is empty; expected lines of {expected}")
    kind = None
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        kind = "a web page, perhaps what a download got instead of the file"
    elif start[:1] == b"\x80":
        kind = "a pickle, which could run code and is never read"
    elif start.startswith(b"PK\x03\x04"):
        kind = "a zip archive that is no npz; unpack it"
    elif b"\0" in start:
        kind = "a binary file"
    elif head.startswith((b"{", b"[")):
        kind = "JSON"
    if kind:
        raise DataError(f"{path} should be text, {expected} on a line; it is {kind}")
