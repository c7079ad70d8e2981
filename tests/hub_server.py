# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
A server that speaks the protocol of the Hugging Face Hub, for tests with the real clients; `hub_for_tests.py` starts it.

Everything is on disk, in `$HUB_ROOT`: `blobs/<sha256>` are the files of all repositories, `<kind>/<namespace>/<name>.json`
is a repository with its commits, branches and tags. Both are replaced atomically, so that the server can be killed too.
`requests.jsonl` has a line for each request that it answered.

`PUT /faults` arms a fault, once: `{"request": n, "when": "before"}` holds the n-th request that changes something (from
now on) before it is handled, `"after"` when it was handled and before it is answered, `{"upload": n, "after_bytes": b}`
the n-th upload of a large file when b bytes of it are there. Whoever is held can be killed; `holding` appears in the root.
"""

import asyncio
import base64
import fnmatch
import hashlib
import json
import os
import sys
import threading
import time
from urllib.parse import parse_qs, unquote

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from hub_repositories import (
    ROOT,
    Commit,
    HubError,
    Repository,
    blob,
    check_ref_name,
    large_file,
    load,
    metadata_of,
    path_of,
    regular_file,
    replace_file,
)
from starlette.requests import ClientDisconnect


# Token, user, and the namespaces that the token may write to.
USERS = {
    "hf_owner": ("owner", ("owner", "org")),
    "hf_stranger": ("stranger", ("stranger",)),
    "hf_reader": ("owner", ()),
}
# What the Hub puts into a new repository.
LARGE = "*.safetensors *.bin *.pt *.pth *.parquet *.arrow *.tar *.onnx *.model *.png *.jpg tokenizer.json".split()
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode()
LARGEST_REGULAR_FILE = 10_000_000

app = FastAPI()
changing = threading.Lock()


@app.exception_handler(HubError)
async def answer_error(request: Request, error: HubError):
    return JSONResponse({"error": error.message}, error.status, error.headers)


@app.exception_handler(ClientDisconnect)
async def note_disconnect(request: Request, error: ClientDisconnect):
    return JSONResponse({"error": "the client is gone"}, 499)


# Who may do what


def user_of(request: Request) -> tuple[str | None, tuple[str, ...]]:
    """Name and writable namespaces; nobody's without a token."""
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token:
        return None, ()
    if token not in USERS:
        raise HubError(401, "Invalid credentials in Authorization header")
    return USERS[token]


def readable(request: Request, kind: str, name: str) -> Repository:
    """A repository; a private one is not there for strangers."""
    user, _ = user_of(request)
    repository = load(kind, name)
    members = {user for user, namespaces in USERS.values() if repository and repository.namespace in namespaces}
    if repository is None or (repository.private and user not in members):
        raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
    return repository


def writable(request: Request, kind: str, name: str) -> Repository:
    repository = readable(request, kind, name)
    check_may_write(request, repository.namespace)
    return repository


def check_may_write(request: Request, namespace: str):
    user, namespaces = user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if namespace not in namespaces:
        raise HubError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')


# Faults, and the log of requests


class Faults:
    armed: dict = {}
    requests = uploads = 0

    @classmethod
    async def reach(cls, **place):
        if cls.armed and all(cls.armed.get(key) == value for key, value in place.items()):
            armed, cls.armed = cls.armed, {}
            replace_file(ROOT / "holding", json.dumps(armed).encode())
            while (ROOT / "holding").exists():
                await asyncio.sleep(0.02)


@app.put("/faults")
async def arm(request: Request):
    Faults.armed, Faults.requests, Faults.uploads = await request.json(), 0, 0


@app.get("/ready")
def ready():
    return {}


@app.middleware("http")
async def log_and_hold(request: Request, answer):
    changes = request.method in ("POST", "PUT", "DELETE") and request.url.path != "/faults"
    if changes:
        Faults.requests += 1
    number = Faults.requests
    if changes:
        await Faults.reach(request=number, when="before")
    response = await answer(request)
    if changes:
        await Faults.reach(request=number, when="after")
    line = {"method": request.method, "path": unquote(request.url.path), "status": response.status_code}
    with open(ROOT / "requests.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")
    return response


# Repositories


@app.get("/api/whoami-v2")
def whoami(request: Request):
    user, namespaces = user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    organizations = [{"name": name, "type": "org"} for name in namespaces if name != user]
    role = {"displayName": "test", "role": "write" if namespaces else "read"}
    auth = {"type": "access_token", "accessToken": role}
    return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": auth}


def repository_of_body(request: Request, body: dict) -> tuple[str, str]:
    namespace = body.get("organization") or user_of(request)[0]
    check_may_write(request, namespace)
    return f"{body.get('type') or 'model'}s", f"{namespace}/{body['name']}"


@app.post("/api/repos/create")
async def create_repository(request: Request):
    body = await request.json()
    kind, name = repository_of_body(request, body)
    with changing:
        repository = load(kind, name)
        status = 200 if repository is None else 409
        if repository is None:
            repository = Repository(kind, name, bool(body.get("private")) or body.get("visibility") == "private")
            repository.add("main", Commit({".gitattributes": regular_file(GITATTRIBUTES)}, "initial commit"))
            repository.save()
    found = {} if status == 200 else {"error": "You already created this model repo"}
    return JSONResponse({**found, "url": f"{request.base_url}{repository.url}", "name": name, "id": name}, status)


@app.delete("/api/repos/delete")
async def delete_repository(request: Request):
    kind, name = repository_of_body(request, await request.json())
    with changing:
        writable(request, kind, name)
        path_of(kind, name).unlink()
    return {}


def card_data(files: dict[str, dict]) -> dict:
    card = files.get("README.md")
    if card is None:
        return {}
    metadata, _ = metadata_of(blob(card["sha256"]).read_text(encoding="utf-8"))
    return metadata


def described(repository: Repository, revision: str) -> dict:
    oid = repository.find(revision)
    commit = repository.commits[oid]
    card = card_data(commit.files)
    siblings = [
        {
            "rfilename": path,
            "size": file["size"],
            "blobId": file["oid"],
            **({"lfs": {"sha256": file["sha256"], "size": file["size"], "pointerSize": 134}} if file["large"] else {}),
        }
        for path, file in sorted(commit.files.items())
    ]
    return {
        "_id": repository.name,
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.namespace,
        "sha": oid,
        "private": repository.private,
        "disabled": False,
        "gated": False,
        "tags": [*card.get("tags", [])],
        "cardData": card,
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "lastModified": told_time(commit.date),
        "createdAt": told_time(min(commit.date for commit in repository.commits.values())),
        **{key: card[key] for key in ("pipeline_tag", "library_name") if key in card},
    }


def told_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@app.get("/api/{kind}/{namespace}/{name}")
def repository_info(request: Request, kind: str, namespace: str, name: str):
    return described(readable(request, kind, f"{namespace}/{name}"), "main")


@app.get("/api/{kind}/{namespace}/{name}/revision/{revision:path}")
def revision_info(request: Request, kind: str, namespace: str, name: str, revision: str):
    return described(readable(request, kind, f"{namespace}/{name}"), revision)


@app.get("/api/{kind}/{namespace}/{name}/auth-check")
def check_access(request: Request, kind: str, namespace: str, name: str):
    readable(request, kind, f"{namespace}/{name}")
    return {}


@app.put("/api/{kind}/{namespace}/{name}/settings")
async def change_settings(request: Request, kind: str, namespace: str, name: str):
    body = await request.json()
    with changing:
        repository = writable(request, kind, f"{namespace}/{name}")
        if "private" in body or "visibility" in body:
            repository.private = bool(body.get("private")) or body.get("visibility") == "private"
        repository.save()
    return {}


# Branches and tags


@app.get("/api/{kind}/{namespace}/{name}/refs")
def list_refs(request: Request, kind: str, namespace: str, name: str):
    repository = readable(request, kind, f"{namespace}/{name}")

    def told(group: str, refs: dict[str, str]) -> list[dict]:
        return [{"name": ref, "ref": f"refs/{group}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]

    return {"branches": told("heads", repository.branches), "tags": told("tags", repository.tags), "converts": []}


@app.post("/api/{kind}/{namespace}/{name}/branch/{branch:path}")
async def create_branch(request: Request, kind: str, namespace: str, name: str, branch: str):
    start = (await request.json()).get("startingPoint", "main")
    check_ref_name(branch)
    with changing:
        repository = writable(request, kind, f"{namespace}/{name}")
        if branch in repository.branches or branch in repository.tags:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = repository.find(start)
        repository.save()
    return {}


@app.post("/api/{kind}/{namespace}/{name}/tag/{revision:path}")
async def create_tag(request: Request, kind: str, namespace: str, name: str, revision: str):
    tag = (await request.json())["tag"]
    check_ref_name(tag)
    with changing:
        repository = writable(request, kind, f"{namespace}/{name}")
        if tag in repository.tags or tag in repository.branches:
            raise HubError(409, f"Reference already exists: {tag}")
        repository.tags[tag] = repository.find(revision)
        repository.save()
    return {}


@app.delete("/api/{kind}/{namespace}/{name}/{group}/{ref:path}")
def delete_ref(request: Request, kind: str, namespace: str, name: str, group: str, ref: str):
    with changing:
        repository = writable(request, kind, f"{namespace}/{name}")
        refs = {"branch": repository.branches, "tag": repository.tags}.get(group, {})
        if ref not in refs or (group, ref) == ("branch", "main"):
            raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        del refs[ref]
        repository.save()
    return {}


@app.get("/api/{kind}/{namespace}/{name}/commits/{revision:path}")
def list_commits(request: Request, kind: str, namespace: str, name: str, revision: str):
    repository = readable(request, kind, f"{namespace}/{name}")
    oid, found = repository.find(revision), []
    while oid is not None:
        commit = repository.commits[oid]
        told = {"title": commit.title, "message": commit.message, "date": told_time(commit.date)}
        found.append({"id": oid, "authors": [{"user": repository.namespace}], **told})
        oid = commit.parent
    return found


# Uploads


@app.post("/api/{kind}/{namespace}/{name}/preupload/{revision:path}")
async def choose_upload_modes(request: Request, kind: str, namespace: str, name: str, revision: str):
    repository = writable(request, kind, f"{namespace}/{name}")
    files = repository.files(revision)
    attributes = blob(files[".gitattributes"]["sha256"]).read_text() if ".gitattributes" in files else ""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]

    def mode_of(path: str, size: int) -> str:
        by_name = any(fnmatch.fnmatch(os.path.basename(path), pattern) for pattern in patterns)
        return "lfs" if by_name or size > LARGEST_REGULAR_FILE else "regular"

    def known_oid(file: dict | None) -> str | None:
        # The client leaves out what has this one already.
        return file and file["sha256" if file["large"] else "oid"]

    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": mode_of(file["path"], file["size"]),
                "shouldIgnore": False,
                "oid": known_oid(files.get(file["path"])),
            }
            for file in (await request.json())["files"]
        ]
    }


@app.post("/{namespace}/{name}.git/info/lfs/objects/batch")
@app.post("/{kind}/{namespace}/{name}.git/info/lfs/objects/batch")
async def offer_uploads(request: Request, namespace: str, name: str, kind: str = "models"):
    writable(request, kind, f"{namespace}/{name}")
    objects = []
    for item in (await request.json())["objects"]:
        oid, size = item["oid"], item["size"]
        objects.append({"oid": oid, "size": size})
        if not blob(oid).exists():
            hrefs = {action: f"{request.base_url}lfs/{action}/{oid}" for action in ("upload", "verify")}
            objects[-1]["actions"] = {action: {"href": href} for action, href in hrefs.items()}
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")


@app.put("/lfs/upload/{sha256}")
async def upload(request: Request, sha256: str):
    Faults.uploads += 1
    number, path, received = Faults.uploads, blob(sha256), 0
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{sha256}.{time.time_ns()}.partial")
    try:
        with open(partial, "wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                if Faults.armed.get("upload") == number and received >= Faults.armed["after_bytes"]:
                    await Faults.reach(upload=number)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise HubError(400, f"The content of {received} bytes is not that of {sha256}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Response()


@app.post("/lfs/verify/{sha256}")
async def verify(request: Request, sha256: str):
    size = (await request.json())["size"]
    if not blob(sha256).exists() or blob(sha256).stat().st_size != size:
        raise HubError(404, f"LFS object {sha256} of {size} bytes was not uploaded")
    return {}


@app.post("/api/validate-yaml")
async def validate_card(request: Request):
    metadata, errors = metadata_of((await request.json())["content"])
    warnings = [] if metadata or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    told = {"errors": [{"message": error} for error in errors], "warnings": warnings}
    return JSONResponse(told, 400 if errors else 200)


@app.post("/api/{kind}/{namespace}/{name}/commit/{branch:path}")
async def create_commit(request: Request, kind: str, namespace: str, name: str, branch: str):
    body = await request.body()
    if request.query_params.get("create_pr"):
        raise HubError(400, "This server has no pull requests")
    with changing:
        repository = writable(request, kind, f"{namespace}/{name}")
        parent = repository.find(branch)
        if branch not in repository.branches:
            raise HubError(400, f"Not a branch: {branch}")
        commit = Commit(dict(repository.commits[parent].files), "", parent=parent)
        for line in body.splitlines():
            operation = json.loads(line)
            apply_operation(commit, operation["key"], operation["value"])
        if "README.md" in commit.files and (
            errors := metadata_of(blob(commit.files["README.md"]["sha256"]).read_text())[1]
        ):
            raise HubError(400, f"Invalid metadata in README.md: {errors}")
        oid = repository.add(branch, commit)
        repository.save()
    url = f"{request.base_url}{repository.url}/commit/{oid}"
    return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}


def apply_operation(commit: Commit, key: str, value: dict):
    if key == "header":
        commit.title, commit.message = value["summary"], value.get("description", "")
        if value.get("parentCommit", commit.parent) != commit.parent:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
    elif key == "file":
        commit.files[value["path"]] = regular_file(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        commit.files[value["path"]] = large_file(value["oid"], value.get("size"))
    elif key in ("deletedFile", "deletedFolder"):
        path = value["path"].rstrip("/")
        gone = [name for name in commit.files if name == path or name.startswith(f"{path}/")]
        if not gone:
            raise HubError(404, f"There is no {path}", "EntryNotFound")
        for name in gone:
            del commit.files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


# Downloads


def told_file(path: str, file: dict) -> dict:
    told = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
    if file["large"]:
        told["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
    return told


def told_folder(path: str) -> dict:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def revision_and_path(request: Request, before: str) -> tuple[str, str]:
    """Both from the address as it was sent: a revision may have a slash, which is escaped there."""
    raw = request.scope["raw_path"].decode().partition("?")[0]
    revision, _, path = raw.split(f"/{before}/", 1)[1].partition("/")
    return unquote(revision), unquote(path)


@app.get("/api/{kind}/{namespace}/{name}/tree/{rest:path}")
def list_tree(request: Request, kind: str, namespace: str, name: str, rest: str, recursive: bool = False):
    repository = readable(request, kind, f"{namespace}/{name}")
    revision, folder = revision_and_path(request, "tree")
    start = f"{folder}/" if folder else ""
    entries = {}
    for path, file in sorted(repository.files(revision).items()):
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            parent = start + "/".join(parts[:depth])
            entries[parent] = told_folder(parent)
        if recursive or len(parts) == 1:
            entries[path] = told_file(path, file)
    if folder and not entries:
        raise HubError(404, f"There is no {folder}", "EntryNotFound")
    return list(entries.values())


@app.post("/api/{kind}/{namespace}/{name}/paths-info/{revision:path}")
async def paths_info(request: Request, kind: str, namespace: str, name: str, revision: str):
    body = await request.body()
    if "json" in request.headers.get("content-type", ""):
        paths = json.loads(body)["paths"]
    else:
        paths = parse_qs(body.decode())["paths"]
    files = readable(request, kind, f"{namespace}/{name}").files(revision)
    told = []
    for path in paths:
        if path in files:
            told.append(told_file(path, files[path]))
        elif any(other.startswith(f"{path.rstrip('/')}/") for other in files):
            told.append(told_folder(path))
    return told


@app.api_route("/{namespace}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
@app.api_route("/{kind}/{namespace}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
def resolve(request: Request, namespace: str, name: str, rest: str, kind: str = "models"):
    repository = readable(request, kind, f"{namespace}/{name}")
    revision, path = revision_and_path(request, "resolve")
    commit = repository.find(revision)
    file = repository.commits[commit].files.get(path)
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit, "ETag": f'"{file["oid"]}"'}
    if file["large"]:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file["sha256"]}"'}
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(file["size"])}
    return FileResponse(blob(file["sha256"]), headers=headers, media_type="application/octet-stream")


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_parent, daemon=True).start()
# What an upload left that was under way when the server was killed.
(ROOT / "holding").unlink(missing_ok=True)
for left in (ROOT / "blobs").glob("*.partial"):
    left.unlink()
