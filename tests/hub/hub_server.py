"""A Hub on this machine: as much of its protocol as huggingface_hub's own client asks for, large files (LFS) included.

Repositories live in memory: commits of paths to blobs, branches. Answers carry the Hub's headers and error codes.
Weights go the LFS way, in one piece or (above PART bytes) in parts; all else goes inside the commit.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKEN = "hf_the_owner_of_tester"
PART = 100_000
API = r"/api/models/(?P<id>[^/]+/[^/]+)"


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)  # oid -> path -> (sha256, is LFS)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, tuple[str, bool]]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid] = files
        self.refs[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """The state, and a server of it at `url` while the `with` block runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.asked: list[str] = []  # "METHOD path" of every request
        # Where set: uploads of large files stop in the middle, and `reached` tells that one has come so far.
        self.stall = threading.Event()
        self.reached = threading.Event()

    def __enter__(self) -> "LocalHub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def keep(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return sha256


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            for methods, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if self.command in methods.split() and match:
                    action(self, **match.groupdict())
                    return
            raise _Refused(404, "", f"no route for {self.command} {path}")
        except _Refused as refused:
            self.body()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.reply({"error": refused.message}, refused.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def log_message(self, *arguments: object) -> None:
        pass

    def body(self) -> bytes:
        left = int(self.headers.get("Content-Length") or 0)
        self.headers.replace_header("Content-Length", "0") if left else None
        return self.rfile.read(left)

    def reply(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- who asks, for what

    def owner(self) -> bool:
        given = self.headers.get("Authorization")
        if given is None:
            return False
        if given != f"Bearer {TOKEN}":
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return True

    def only_owner(self) -> None:
        if not self.owner():
            raise _Refused(401, "", "Invalid username or password.")

    def repo(self, id: str) -> Repo:
        """A private repository is to a stranger as one that does not exist."""
        owner, repo = self.owner(), self.hub.repos.get(id)
        if repo is None or (repo.private and not owner):
            raise _Refused(404 if owner else 401, "RepoNotFound", "Repository not found")
        return repo

    def revision(self, repo: Repo, revision: str) -> tuple[str, dict[str, tuple[str, bool]]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    # ---- making

    def who(self) -> None:
        self.only_owner()
        self.reply({"type": "user", "name": "tester", "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        self.only_owner()
        asked = json.loads(self.body())
        id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if id in self.hub.repos:
            self.reply({"error": "You already created this model repo", "url": f"{self.hub.url}/{id}"}, 409)
            return
        self.hub.repos[id] = Repo(private=asked.get("visibility") == "private")
        self.hub.repos[id].commit("main", {".gitattributes": (self.hub.keep(b""), False)})
        self.reply({"url": f"{self.hub.url}/{id}", "name": id})

    def yaml(self) -> None:
        self.body()
        self.reply({"errors": [], "warnings": []})

    def preupload(self, id: str, revision: str) -> None:
        self.only_owner()
        _, files = self.revision(self.repo(id), revision)
        asked = json.loads(self.body())["files"]
        modes = [(file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular") for file in asked]
        self.reply({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def batch(self, id: str) -> None:
        self.only_owner()
        self.repo(id)
        objects = []
        for asked in json.loads(self.body())["objects"]:
            oid, size, url = asked["oid"], asked["size"], f"{self.hub.url}/lfs/{asked['oid']}"
            upload: dict = {"href": url, "header": {}}
            if size > PART:
                count = -(-size // PART)
                parts = {f"{n:05}": f"{url}/part/{n}" for n in range(1, count + 1)}
                upload = {"href": f"{url}/complete", "header": {"chunk_size": str(PART), **parts}}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}}}
            objects.append({"oid": oid, "size": size} | ({} if oid in self.hub.blobs else {"actions": actions}))
        self.reply({"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str | None = None) -> None:
        size = int(self.headers["Content-Length"])
        if self.hub.stall.is_set():
            self.rfile.read(size // 2)
            self.hub.reached.set()
            self.rfile.read(size)  # until the other side is gone
            self.close_connection = True
            return
        content = self.body()
        if part is None:
            self.store(oid, content)
        else:
            self.hub.parts[oid, int(part)] = content
        self.reply(b"", headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body())["parts"]]
        self.store(oid, b"".join(self.hub.parts.pop((oid, number)) for number in numbers))
        self.reply({"ok": True})

    def store(self, oid: str, content: bytes) -> None:
        if self.hub.keep(content) != oid:
            raise _Refused(400, "", "the content is not that of its oid")

    def verify(self) -> None:
        asked = json.loads(self.body())
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, "", "no such object")
        self.reply({})

    def make_commit(self, id: str, revision: str) -> None:
        self.only_owner()
        repo = self.repo(id)
        _, files = self.revision(repo, revision)
        files = dict(files)
        for line in self.body().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                content = value["content"].encode()
                content = base64.b64decode(content) if value.get("encoding") == "base64" else content
                files[value["path"]] = (self.hub.keep(content), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise _Refused(400, "", f"{value['path']}: its LFS object was never uploaded")
                files[value["path"]] = (value["oid"], True)
            elif key == "deletedFile":
                files.pop(value["path"])
        oid = repo.commit(revision, files)
        answer = {"commitUrl": f"{self.hub.url}/{id}/commit/{oid}", "commitOid": oid, "hookOutput": ""}
        self.reply({"success": True, "pullRequestUrl": None, **answer})

    def branch(self, id: str, revision: str) -> None:
        self.only_owner()
        self.body()
        repo = self.repo(id)
        if revision in repo.refs:
            raise _Refused(409, "", "Reference already exists")
        repo.refs[revision] = repo.refs["main"]
        self.reply({})

    # ---- reading

    def info(self, id: str, revision: str | None = None) -> None:
        repo = self.repo(id)
        oid, files = self.revision(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.reply({"id": id, "modelId": id, "sha": oid, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, id: str, revision: str, path: str | None = None) -> None:
        _, files = self.revision(self.repo(id), revision)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        below = {name: blob for name, blob in files.items() if name.startswith(prefix)}
        if prefix and not below:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries: dict[str, dict] = {}
        for name, (sha256, _) in sorted(below.items()):
            rest = name.removeprefix(prefix)
            if "/" in rest and not recursive:
                folder = prefix + rest.split("/")[0]
                entries[folder] = {"type": "directory", "path": folder, "oid": sha256, "size": 0}
            else:
                entries[name] = {"type": "file", "path": name, "oid": sha256, "size": len(self.hub.blobs[sha256])}
        self.reply(list(entries.values()))

    def file(self, id: str, revision: str, path: str) -> None:
        oid, files = self.revision(self.repo(id), revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
        sha256, large = files[path]
        content = self.hub.blobs[sha256]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
        if large:  # the Hub sends the client on to where large files are stored
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            other_host = self.hub.url.replace("127.0.0.1", "localhost")  # as the Hub's storage is another host
            self.reply(b"", 302, {**headers, "Location": f"{other_host}/lfs/{sha256}"})
        elif self.command == "HEAD":
            self.reply(b"", headers={**headers, "Content-Length": str(len(content))})
        else:
            self.reply(content, headers=headers)

    def large(self, oid: str) -> None:
        content = self.hub.blobs[oid]
        if self.command == "HEAD":
            self.reply(b"", headers={"Content-Length": str(len(content)), "ETag": f'"{oid}"'})
        else:
            self.reply(content, headers={"ETag": f'"{oid}"'})


REVISION = "/(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.who),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.yaml),
    ("POST", f"{API}/preupload{REVISION}", _Handler.preupload),
    ("POST", r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)(?:/part/(?P<part>\d+))?", _Handler.put),
    ("POST", r"/lfs/(?P<oid>\w+)/complete", _Handler.complete),
    ("POST", "/lfs-verify", _Handler.verify),
    ("POST", f"{API}/commit{REVISION}", _Handler.make_commit),
    ("POST", f"{API}/branch{REVISION}", _Handler.branch),
    ("GET", API, _Handler.info),
    ("GET", f"{API}/revision{REVISION}", _Handler.info),
    ("GET", f"{API}/tree{REVISION}(?P<path>/.*)?", _Handler.tree),
    ("GET HEAD", rf"/(?P<id>[^/]+/[^/]+)/resolve{REVISION}/(?P<path>.+)", _Handler.file),
    ("GET HEAD", r"/lfs/(?P<oid>\w+)", _Handler.large),
]
