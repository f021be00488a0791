"""A hub on the loopback: accounts, repositories with commits, LFS in one or several parts, downloads.

It answers as huggingface.co does where huggingface_hub asks for it, counts what it receives, and fails where
a test wants it to: `faults` maps "METHOD path-pattern" to a status, "drop" (the connection, in the middle of
a body) or a number of seconds below 1 (silence).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {
    "hf_writer_of_the_test_account": ("alice", "write"),
    "hf_reader_of_the_test_account": ("alice", "read"),
}


class LocalHub:
    """The state of the server and its address."""

    def __init__(self, part_size=None):
        self.part_size = part_size
        self.repositories = {}  # id -> {"private", "branches": {name: {path: bytes}}}
        self.objects = {}  # sha256 -> content
        self.parts = {}
        self.faults = {}
        self.received = 0  # bytes of weights
        self.requests = []
        self.lock = threading.Lock()
        self.url = ""

    def files(self, repo_id, branch="main"):
        return self.repositories[repo_id]["branches"][branch]

    def count(self, method, pattern):
        return sum(bool(re.fullmatch(pattern, path)) and one == method for one, path in self.requests)


@contextmanager
def local_hub(**options):
    hub = LocalHub(**options)
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_HEAD(self):
        self.answer("HEAD")

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def answer(self, method):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path))
        fault = next((f for p, f in self.hub.faults.items() if re.fullmatch(p, f"{method} {path}")), None)
        if fault == "drop":
            self.body(most=1000)
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(fault, float):
            time.sleep(fault)
        body = self.body()
        if isinstance(fault, int):
            self.reply(fault, {"error": f"fault {fault}"})
            return
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, f"{method} {path}"):
                with self.hub.lock:
                    getattr(self, name)(body, *match.groups())
                return
        self.reply(404, {"error": f"no route {method} {path}"})

    def body(self, most=None):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
                if most is not None and sum(map(len, pieces)) >= most:
                    return b"".join(pieces)
            self.rfile.readline()
            return b"".join(pieces)
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size if most is None else min(size, most))

    def reply(self, status, data=None, headers=()):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def account(self, *, write=False):
        """The account of the token; answers 401 or 403 where there is none, and returns None."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in TOKENS:
            self.reply(401, {"error": "Invalid credentials in Authorization header"})
            return None
        name, role = TOKENS[token]
        if write and role != "write":
            self.reply(403, {"error": "this token cannot write"})
            return None
        return name

    def repository(self, repo_id):
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository["private"] and "Authorization" not in self.headers):
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def branch(self, repo_id, revision="main"):
        repository = self.repository(repo_id)
        if repository is None:
            return None
        for name, files in repository["branches"].items():
            if revision in (name, sha_of(files)):
                return files
        self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def whoami(self, body):
        if name := self.account():
            role = TOKENS[self.headers["Authorization"].removeprefix("Bearer ")][1]
            self.reply(200, {"name": name, "auth": {"accessToken": {"role": role}}, "orgs": []})

    def create(self, body):
        asked, name = json.loads(body), self.account(write=True)
        if not name:
            return
        owner = asked.get("organization") or name
        repo_id = f"{owner}/{asked['name']}"
        data = {"url": f"{self.hub.url}/{repo_id}"}
        if owner != name:
            self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif repo_id in self.hub.repositories:
            self.reply(409, {"error": "You already created this model repo", **data})
        else:
            private = asked.get("visibility") == "private"
            self.hub.repositories[repo_id] = {
                "private": private,
                "branches": {"main": {".gitattributes": b""}},
            }
            self.reply(200, data)

    def info(self, body, repo_id, revision=None):
        files = self.branch(repo_id, revision or "main")
        if files is not None:
            siblings = [{"rfilename": name} for name in sorted(files)]
            private = self.hub.repositories[repo_id]["private"]
            self.reply(
                200,
                {
                    "id": repo_id,
                    "sha": sha_of(files),
                    "private": private,
                    "siblings": siblings,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                },
            )

    def tree(self, body, repo_id, revision):
        files = self.branch(repo_id, revision)
        if files is not None:
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": git_oid(content),
                    **lfs_of(content),
                }
                for name, content in sorted(files.items())
            ]
            self.reply(200, entries)

    def new_branch(self, body, repo_id, name):
        repository = self.repository(repo_id)
        if repository is None:
            return
        known = name in repository["branches"]
        repository["branches"].setdefault(name, dict(repository["branches"]["main"]))
        self.reply(409 if known else 200, {"error": "exists"} if known else {})

    def validate(self, body):
        bad = "license: no-licence" in json.loads(body)["content"]
        errors = [{"message": '"license" must be one of the known licences'}] if bad else []
        self.reply(400 if bad else 200, {"errors": errors, "warnings": []})

    def preupload(self, body, repo_id, revision):
        files = self.branch(repo_id, revision)
        if files is None or not self.account(write=True):
            return
        answers = []
        for file in json.loads(body)["files"]:
            content = files.get(file["path"])
            large = file["path"].endswith((".safetensors", ".gguf"))
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if content is None else sha256(content) if large else git_oid(content),
                }
            )
        self.reply(200, {"files": answers})

    def batch(self, body, repo_id):
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                entry["actions"] = {"upload": self.upload_action(oid, size)}
            objects.append(entry)
        multipart = any(
            "chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects
        )
        self.reply(200, {"transfer": "multipart" if multipart else "basic", "objects": objects})

    def upload_action(self, oid, size):
        part = self.hub.part_size
        if not part or size <= part:
            return {"href": f"{self.hub.url}/lfs/{oid}", "header": {}}
        parts = {
            str(number + 1): f"{self.hub.url}/lfs/{oid}/{number + 1}" for number in range(-(-size // part))
        }
        return {"href": f"{self.hub.url}/lfs/{oid}/complete", "header": {"chunk_size": str(part), **parts}}

    def store(self, body, oid):
        self.hub.received += len(body)
        assert sha256(body) == oid
        self.hub.objects[oid] = body
        self.reply(200, {})

    def store_part(self, body, oid, number):
        self.hub.received += len(body)
        self.hub.parts[oid, int(number)] = body
        self.reply(200, {}, {"ETag": f'"{sha256(body)}"'})

    def complete(self, body, oid):
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        content = b"".join(self.hub.parts[oid, number] for number in numbers)
        assert sha256(content) == oid
        self.hub.objects[oid] = content
        self.reply(200, {})

    def commit(self, body, repo_id, revision):
        files = self.branch(repo_id, revision)
        if files is None or not self.account(write=True):
            return
        changed = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del changed[value["path"]]
        self.hub.repositories[repo_id]["branches"][revision] = changed
        sha = sha_of(changed)
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, body, repo_id, revision, name):
        files = self.branch(repo_id, revision)
        if files is None:
            return
        if name not in files:
            self.reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": sha_of(files),
            "ETag": f'"{git_oid(files[name])}"',
            "Accept-Ranges": "bytes",
        }
        self.reply(200, files[name], headers)


ID = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{ID}", "info"),
    (rf"GET /api/models/{ID}/revision/(.+)", "info"),
    (rf"GET /api/models/{ID}/tree/([^/]+)", "tree"),
    (rf"POST /api/models/{ID}/branch/(.+)", "new_branch"),
    (rf"POST /api/models/{ID}/preupload/(.+)", "preupload"),
    (rf"POST /api/models/{ID}/commit/(.+)", "commit"),
    (rf"POST /{ID}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(\w+)", "store"),
    (r"PUT /lfs/(\w+)/(\d+)", "store_part"),
    (r"POST /lfs/(\w+)/complete", "complete"),
    (rf"(?:GET|HEAD) /{ID}/resolve/([^/]+)/(.+)", "resolve"),
]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha_of(files):
    return hashlib.sha1(
        json.dumps({name: sha256(c) for name, c in sorted(files.items())}).encode()
    ).hexdigest()


def lfs_of(content):
    return {}
