"""Take passwords out of text that is printed or written; imports nothing heavy."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=[A-Za-z0-9]://)[^/?#\s]*@")
_QUERY = re.compile(
    r"(?<=[?&;])(\w*(?:password|passwd|token|secret)\w*=)[^&;\s'\"]*", re.IGNORECASE
)


def hide_passwords(text: str) -> str:
    """Replace the login in every address, and passwords among its parameters, by ``***``.

    >>> hide_passwords("postgresql://me:secret@db/runs?sslpassword=x")
    'postgresql://***@db/runs?sslpassword=***'
    """
    return _QUERY.sub(r"\1***", _LOGIN.sub("***@", text))
