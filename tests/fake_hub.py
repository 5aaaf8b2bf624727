"""A hub on 127.0.0.1 that knows as much of the hub's interface as its client asks for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.local_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories are folders; `sent` counts the bytes of content that were served of each file.

    Attributes:
        url: What `HF_ENDPOINT` must be.
        sent: "org/name/file" -> bytes.
        gated: "org/name" of repositories whose files are for those who signed in.
        unknown: Branches and commits that no repository has.
        stalled: "org/name/file" of files of which the first half is sent and no more.
    """

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root
        self.sent: Counter[str] = Counter()
        self.gated: set[str] = set()
        self.unknown: set[str] = set()
        self.stalled: set[str] = set()


@contextmanager
def serve(root: Path) -> Iterator[FakeHub]:
    """Serve the folders `root`/ORG/NAME, as models and as datasets."""
    with serving(_Handler, lambda url: FakeHub(url, root)) as hub:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: FakeHub = self.server.hub  # pyright: ignore[reportAttributeAccessIssue]
        path = self.path.partition("?")[0]
        asked = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(/.*)?", path)
        file = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = (asked or file or [""] * 2)[1]
        folder = hub.root / repository
        if hub.unknown.intersection(path.split("/")):
            self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif file is not None and repository in hub.gated:
            self._answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        elif not repository or not folder.is_dir() or (file and not (folder / file[3]).is_file()):
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif file is not None:
            commit = file[2] if re.fullmatch("[0-9a-f]{40}", file[2]) else COMMIT
            self._send_file(hub, f"{repository}/{file[3]}", (folder / file[3]).read_bytes(), commit)
        else:
            names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            content = {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in names],
            }
            tree = [
                {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": n}
                for n in names
            ]
            is_tree = asked is not None and str(asked[2]).startswith("/tree")
            self._answer(json.dumps(tree if is_tree else content).encode())

    def _send_file(self, hub: FakeHub, name: str, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": commit}
        status, size = 200, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is not None:
            first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.command == "GET":
            hub.sent[name] += len(content)
        self._answer(content, status, headers, stalls=name in hub.stalled)

    def _answer(
        self,
        content: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        stalls: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "GET":
            return
        if stalls:
            self.wfile.write(content[: len(content) // 2])
            self.connection.settimeout(10)
            self.rfile.read(1)  # until the other side is gone
            self.close_connection = True
            return
        self.wfile.write(content)
