# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Starts `hub_server.py` as a process of its own, and the processes that are its clients."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx


HERE = Path(__file__).parent
OWNER, STRANGER, READER = "hf_owner", "hf_stranger", "hf_reader"


def end(process):
    """Ends a process and those that it started, which are its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


class Hub:
    """
    A running server.

    Attributes:
        root: Folder of its state.
        url: Where it listens.
    """

    def __init__(self, root):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.process = None

    def start(self):
        # The listening socket is handed over, so that nobody can take the port in between.
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(128)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            command = [sys.executable, "-m", "uvicorn", "hub_server:app", "--app-dir", str(HERE), "--log-level"]
            with open(self.root / "server.log", "ab") as log:
                self.process = subprocess.Popen(
                    [*command, "warning", "--fd", str(listening.fileno())],
                    env={**os.environ, "HUB_ROOT": str(self.root)},
                    pass_fds=[listening.fileno()],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for _ in range(1200):
            try:
                httpx.get(f"{self.url}/ready", timeout=60).raise_for_status()
                return self
            except httpx.TransportError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"the server did not start:\n{(self.root / 'server.log').read_text()}")

    def stop(self):
        end(self.process)
        self.process.stdin.close()

    def environment(self, home, token=OWNER):
        """Variables of a process whose Hub this is, with a cache of its own in `home`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        # A proxy would be asked for this machine as well.
        environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
        environment |= {
            "HOME": str(home),
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return environment | ({} if token is None else {"HF_TOKEN": token})

    def ask(self, method, path, token=OWNER, **options):
        """A plain request."""
        headers = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **options.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, trust_env=False, **options)

    def requests(self):
        """All requests that were answered, as `METHOD /path`."""
        path = self.root / "requests.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [f"{line['method']} {line['path']}" for line in lines]

    def files(self, repository, revision="main", kind="models"):
        """Size and SHA-256 (or git's id, of a small file) by path."""
        answer = self.ask("GET", f"/api/{kind}/{repository}/tree/{revision}?recursive=true")
        answer.raise_for_status()
        return {entry["path"]: entry.get("lfs", entry)["oid"] for entry in answer.json() if entry["type"] == "file"}

    def arm(self, **fault):
        self.ask("PUT", "/faults", json=fault).raise_for_status()

    def wait_until_held(self, process):
        """Waits until a fault has hit a client; `False` if it ended before."""
        for _ in range(6000):
            if (self.root / "holding").exists():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        raise TimeoutError("no request was held, and the client has not ended")

    def release(self):
        (self.root / "holding").unlink(missing_ok=True)


@contextmanager
def running_hub(root):
    hub = Hub(root).start()
    try:
        yield hub
    finally:
        hub.stop()


def run_script(hub, script, *arguments, home, token=OWNER, isolated=False, timeout=300):
    """Runs a script in a process of its own that talks to the server."""
    command = [sys.executable, *(["-I"] if isolated else []), str(script), *map(str, arguments)]
    return subprocess.run(
        command,
        env=hub.environment(home, token),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class ClientError(Exception):
    """What a call raised in the other process.

    Attributes:
        kind: Name of its class.
    """

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Client:
    """A process of `hub_client.py`: `call("load", auto="AutoModel", repository="org/name")` calls its function of that name."""

    def __init__(self, hub, home, token=OWNER):
        home = Path(home)
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "client.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "hub_client.py")],
                env=hub.environment(home, token),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        if self._line() != "ready\n":
            raise RuntimeError(f"the client did not start:\n{self.log.read_text()}")

    def _line(self):
        return self.process.stdout.readline()

    def send(self, name, /, **arguments):
        """Calls without waiting for the answer."""
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self._line()
        if not line:
            raise RuntimeError(f"the client is gone:\n{self.log.read_text()[-5000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"])
        return answer["answer"]

    def call(self, name, /, **arguments):
        self.send(name, **arguments)
        return self.answer()

    def kill(self):
        end(self.process)
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def client_of(hub, home, token=OWNER):
    client = Client(hub, home, token)
    try:
        yield client
    finally:
        client.kill()
