"""Servers on a loopback address: one that the library downloads from, and JupyterLab's own."""

import http.server
import os
import threading
from pathlib import Path


def jupyter_of_its_own(folder: Path) -> dict[str, str]:
    """An environment whose Jupyter has no settings and tabs but those in that folder."""
    jupyter, lab = ("CONFIG", "DATA", "RUNTIME"), ("SETTINGS", "WORKSPACES")
    kinds = [*(f"JUPYTER_{kind}" for kind in jupyter), *(f"JUPYTERLAB_{kind}" for kind in lab)]
    folders = {f"{kind}_DIR": str(folder / f".{kind}".lower()) for kind in kinds}
    return os.environ | folders | {"HOME": str(folder)}


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
