"""Errors of the storage that may pass: a server that restarts, a connection that breaks.

They are recognised on the worker, because an exception that travels loses its causes.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from contextlib import contextmanager

PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EREMOTEIO,
    }
)


class StorageError(Exception):
    """Raised on a worker in the place of an error whose cause is the storage.

    Attributes:
        what: The storage's words.
        original: The error as the task raised it.
    """

    def __init__(self, what: str, original: Exception) -> None:
        super().__init__(what, original)  # both are arguments, so that both travel
        self.what, self.original = what, original


@contextmanager
def naming_storage_errors() -> Generator[None]:
    """On a worker: raise `StorageError` in the place of what the storage caused and may pass."""
    try:
        yield
    except Exception as error:
        if (found := as_storage_error(error)) is not None:
            raise found from error
        raise


def as_storage_error(error: Exception) -> StorageError | None:
    """The error, if it or one of its causes is of the storage and may pass."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in PASSING:
            where = f" ({cause.filename})" if cause.filename else ""
            return StorageError(f"{cause.strerror}{where}", error)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__
