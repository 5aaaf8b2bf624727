"""A store in memory, as ``flaky://``, that fails when it is told to and counts what it is asked."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyStore(MemoryFileSystem):
    """Fails ``failures`` times, after ``good`` reads that went well; refuses the file ``refused``.

    ``reads`` and ``bytes_read`` count what was read, ``sent`` lists what was written.
    """

    protocol = ("flaky",)
    cachable = False
    reads = bytes_read = good = failures = 0
    refused = ""
    sent: list[str] = []  # noqa: RUF012

    @classmethod
    def reset(cls) -> None:
        """As new."""
        cls.reads = cls.bytes_read = cls.good = cls.failures = 0
        cls.refused, cls.sent = "", []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).replace("flaky://", "memory://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        """Read, or fail."""
        kind = type(self)
        if kind.good == 0 and kind.failures:
            kind.failures -= 1
            raise OSError("connection reset by peer")
        kind.good = max(0, kind.good - 1)
        kind.reads += 1
        content = super().cat_file(path, start, end, **options)
        kind.bytes_read += len(content)
        return content

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> Any:
        """Write, or refuse."""
        name = str(rpath).rpartition("/")[2]
        if name == type(self).refused:
            raise OSError("the bucket is read-only")
        type(self).sent.append(name)
        return super().put_file(lpath, rpath, *arguments, **options)


fsspec.register_implementation("flaky", FlakyStore, clobber=True)
