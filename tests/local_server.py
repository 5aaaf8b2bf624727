"""A server on 127.0.0.1 for as long as a test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TypeVar

Hub = TypeVar("Hub")


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], make_hub: Callable[[str], Hub]) -> Iterator[Hub]:
    """Serve until the block ends; handlers find what ``make_hub`` gives for the URL as server.hub.

    Args:
        handler: Answers requests.
        make_hub: URL of the server -> what it serves.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub = make_hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # pyright: ignore[reportAttributeAccessIssue]
    # It looks so often whether it should end, in seconds.
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
