"""Text that any terminal and any reader of UTF-8 takes: names of files may hold anything but a slash."""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters of both sets (some terminals obey C1 as well), and what Python makes of bytes that are no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` on one line, with escapes (`\x1b`, `\n`, `\udcff`) for what a terminal would obey and for what is no Unicode."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in which, beside what JSON asks for, whatever `printable` escapes is escaped as well. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # Line ends stand between the lines of an indented text only: within strings they are escaped already.
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def first_line(error: BaseException) -> str:
    """The class of an error and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")
