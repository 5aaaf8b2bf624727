"""A hub on 127.0.0.1 that takes uploads: as much of the hub's interface as its client needs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class UploadHub:
    """What arrived.

    Attributes:
        url: What the client's endpoint must be.
        refuses: Answer 401 to everything.
        repositories: Repository -> whether it is private.
        files: "owner/name/file" -> content.
    """

    def __init__(self, url: str) -> None:
        self.url, self.refuses = url, False
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}


@contextmanager
def taking_uploads() -> Iterator[UploadHub]:
    """Serve until the block ends."""
    with serving(_Handler, UploadHub) as hub:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        hub: UploadHub = self.server.hub  # pyright: ignore[reportAttributeAccessIssue]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if hub.refuses:
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(hub, json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            found = [
                {
                    "path": file["path"],
                    "uploadMode": mode[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self._answer({"files": found})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self._commit(hub, path.split("/")[3:5], body)
        else:
            self._answer({"error": f"this hub has no {path}"}, 404)

    def do_PUT(self) -> None:
        hub: UploadHub = self.server.hub  # pyright: ignore[reportAttributeAccessIssue]
        hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self._answer({})

    def _create(self, hub: UploadHub, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
        known = name in hub.repositories
        # Newer clients say `visibility`, older ones `private`.
        private = wanted.get("private") or wanted.get("visibility") == "private"
        hub.repositories.setdefault(name, bool(private))
        self._answer({"url": f"{hub.url}/{name}", "id": name}, 409 if known else 200)

    def _commit(self, hub: UploadHub, repository: list[str], body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                hub.files["/".join([*repository, value["path"]])] = content
            elif entry["key"] == "lfsFile":
                hub.files["/".join([*repository, value["path"]])] = hub.objects[value["oid"]]
        place = f"{hub.url}/{'/'.join(repository)}"
        self._answer({"commitUrl": f"{place}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
