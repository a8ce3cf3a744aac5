"""A Hugging Face Hub of one process: what the Hub's own client asks for to push a folder and to get its files."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by their names, and `asked`: method and path of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serve():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        self._note()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(\?.*)?", self.path):
            repository = self.server.repositories.get(match[1])
            if repository is None:
                return self._refuse("RepoNotFound")
            facts = {"id": match[1], "sha": repository.commit, "private": repository.private, "siblings": []}
            return self._answer(json.dumps({**facts, "tags": [], "downloads": 0, "likes": 0}).encode())
        return self._send_file(*re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path).groups())

    def do_HEAD(self):
        self.do_GET()

    def _send_file(self, name, revision, path):
        repository = self.server.repositories.get(name)
        if repository is None:
            return self._refuse("RepoNotFound")
        if revision not in ("main", repository.commit):
            return self._refuse("RevisionNotFound")
        if path not in repository.files:
            return self._refuse("EntryNotFound")
        content = repository.files[path]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repository.commit}
        return self._answer(content, headers)

    def do_PUT(self):
        self._note()
        self.server.large[self.path.removeprefix("/large/")] = self._body()
        self._answer(b"")

    def do_POST(self):
        self._note()
        body = self._body()
        if self.path == "/api/validate-yaml":
            return self._answer(b"{}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse("", 401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path.endswith("/info/lfs/objects/batch"):
            upload = lambda oid: {"upload": {"href": f"{self.server.endpoint}/large/{oid}"}}
            objects = [{**each, "actions": upload(each["oid"])} for each in json.loads(body)["objects"]]
            return self._answer(json.dumps({"transfer": "basic", "objects": objects}).encode())
        name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path).groups()
        if action == "commit":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        mode = lambda path: "lfs" if path.endswith((".safetensors", ".png")) else "regular"
        files = [
            {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in json.loads(body)["files"]
        ]
        return self._answer(json.dumps({"files": files}).encode())

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            return self._refuse("", 409)
        self.server.repositories[name] = Repository(asked.get("private") or asked.get("visibility") == "private")
        return self._answer(json.dumps({"url": f"{self.server.endpoint}/{name}"}).encode())

    def _commit(self, name, lines):
        repository = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.large[value["oid"]]
        where = f"{self.server.endpoint}/{name}/commit/{repository.commit}"
        return self._answer(json.dumps({"commitUrl": where, "commitOid": repository.commit}).encode())

    def _note(self):
        self.server.asked.append(f"{self.command} {self.path}")

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, code, status=404):
        self._answer(b"{}", {"X-Error-Code": code}, status)

    def _answer(self, content, headers=(), status=200):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass
