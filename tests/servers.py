"""Servers on a loopback address: one that the library downloads from, and JupyterLab."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 30  # a slow machine that does other things at the same time


def jupyter_of_its_own(folder: Path) -> dict[str, str]:
    """An environment whose Jupyter has no settings and tabs but those in that folder."""
    jupyter, lab = ("CONFIG", "DATA", "RUNTIME"), ("SETTINGS", "WORKSPACES")
    kinds = [*(f"JUPYTER_{kind}" for kind in jupyter), *(f"JUPYTERLAB_{kind}" for kind in lab)]
    folders = {f"{kind}_DIR": str(folder / f".{kind}".lower()) for kind in kinds}
    return os.environ | folders | {"HOME": str(folder)}


@contextmanager
def jupyterlab(folder: Path, **environment: str) -> Iterator[Callable[[str], str]]:
    """Serve the notebooks of a folder by a Jupyter of its own; the address of each of its pages."""
    told = jupyter_of_its_own(folder) | {"PYTHONPATH": str(ROOT)} | environment
    settings = folder / ".jupyterlab_settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    news = settings / "notification.jupyterlab-settings"
    news.write_text('{"fetchNews": "false"}')  # the question would cover the page
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--allow-root", f"--ServerApp.root_dir={folder}"]
    with (folder / "log").open("w") as log:
        lab = subprocess.Popen(command, env=told, stdout=log, stderr=log)
    try:
        server = json.loads(_server_file(lab, folder).read_text())
        yield lambda page: f"{server['url']}{page}?token={server['token']}"
    finally:
        lab.terminate()
        lab.wait(30)


def _server_file(lab: subprocess.Popen[bytes], folder: Path) -> Path:
    """The file in which a running Jupyter server says where it is."""
    for _ in range(4 * SECONDS):
        files = list((folder / ".jupyter_runtime").glob("jpserver-*.json"))
        if files and files[0].stat().st_size:
            return files[0]
        if lab.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'log').read_text()}")


class Loopback:
    """Serves in a thread, by a handler that prints nothing, until it is stopped."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """A handler that prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


def check_sentence(error: BaseException) -> None:
    """One sentence, and no other error behind it."""
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
