"""A hub on this machine: a real HTTP server that speaks the routes of a model hub which downloads and uploads use."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories ``user/name`` of one commit; its address, and the requests it has had."""
    asked: list[str] = []
    large: dict[str, bytes] = {}  # what was uploaded by its SHA-256, and is not in a commit yet

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            """A repository or branch made; how its files are to be sent; where large ones; a commit."""
            asked.append(f"POST {self.path}")
            data = self.rfile.read(int(self.headers["Content-Length"] or 0))
            path = unquote(self.path.partition("?")[0])
            to = re.fullmatch(
                r"/(?:api/models/)?([\w.-]+/[\w-]+)(?:/(branch|preupload|commit)/(?:main|v1)|\.git/info/lfs/objects/batch)",
                path,
            )
            if path == "/api/validate-yaml":
                found: object = {"errors": [], "warnings": []}
            elif path == "/api/repos/create":
                asked_for = json.loads(data)
                name = f"{asked_for['organization'] or 'maker'}/{asked_for['name']}"
                found = {"url": f"{address}/{name}", "id": name}
            elif to is None or to[1] not in repositories:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=True)
                return
            elif to[2] == "branch":
                found = {}
            elif to[2] == "preupload":
                names = [file["path"] for file in json.loads(data)["files"]]
                modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                found = {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]}
            elif to[2] == "commit":
                self.commit(repositories[to[1]], [json.loads(line) for line in data.splitlines()])
                found = {"commitUrl": f"{address}/{to[1]}/commit/{COMMIT}", "commitOid": COMMIT}
            else:
                objects = json.loads(data)["objects"]
                found = {
                    "transfer": "basic",
                    "objects": [{**o, "actions": {"upload": {"href": f"{address}/large/{o['oid']}"}}} for o in objects],
                }
            self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body=True)

        def do_PUT(self) -> None:
            asked.append(f"PUT {self.path}")
            data = self.rfile.read(int(self.headers["Content-Length"]))
            large[self.path.rpartition("/")[2]] = data
            self.send(200, b"", {}, body=False)

        def commit(self, folder: Path, lines: list[dict]) -> None:
            """Write what a commit adds, and remove what it deletes."""
            for line in lines:
                value = line["value"]
                if line["key"] in ("file", "lfsFile"):
                    data = base64.b64decode(value["content"]) if line["key"] == "file" else large[value["oid"]]
                    (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                    (folder / value["path"]).write_bytes(data)
                elif line["key"] == "deletedFile":
                    (folder / value["path"]).unlink()

        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            path, _, query = self.path.partition("?")
            file = re.fullmatch(r"/(?:datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
            about = re.fullmatch(
                r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/(?:revision|tree)/([\w.-]+))?(?:/(.*))?", path
            )
            found = file or about
            if found is None or found[1] not in repositories or found[2] not in (None, "main", "v1", COMMIT):
                missing = "RepoNotFound" if found is None or found[1] not in repositories else "RevisionNotFound"
                self.send(404, b"{}", {"X-Error-Code": missing}, body=body)
                return
            folder = repositories[found[1]]
            if about:
                below, recursive = folder / unquote(about[3] or ""), "recursive=false" not in query.lower()
                listing = self.tree(folder, below, recursive) if "/tree/" in path else self.about(folder, found[1])
                self.send(200, json.dumps(listing).encode(), {}, body=body)
                return
            assert file is not None
            if not (folder / file[3]).is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body=body)
                return
            data = (folder / file[3]).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.send(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body=body)

        def tree(self, folder: Path, below: Path, recursive: bool) -> object:
            return [
                {
                    "type": "file" if p.is_file() else "directory",
                    "path": p.relative_to(folder).as_posix(),
                    "size": p.stat().st_size if p.is_file() else 0,
                    "oid": "0" * 40,
                }
                for p in sorted(below.rglob("*") if recursive else below.iterdir())
                if p.is_file() or not recursive
            ]

        def about(self, folder: Path, name: str) -> object:
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
            return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

        def send(self, code: int, data: bytes, headers: Mapping[str, str], *, body: bool) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
