"""A hub on this machine: a real HTTP server that speaks the routes of a model hub which downloads use."""

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

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
