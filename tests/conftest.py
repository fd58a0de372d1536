import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Tests run small networks: handing their work to several threads takes longer than doing it.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is one worker's; files that take long come first, so that no worker waits at the end.

    That is, files with tests that have a mark (any means long), homework, then by length.
    """
    notebooks = [item for item in items if item.path.suffix == ".ipynb"]
    for cell in notebooks:
        cell.add_marker(pytest.mark.notebooks)
    long = ("slow", "references", "notebooks", "browser")
    marked = {item.path for item in items if any(map(item.get_closest_marker, long))}
    marked -= {cell.path for cell in notebooks}
    length = Counter(item.path for item in items)
    items.sort(
        key=lambda item: (
            item.path not in marked,
            item.path.parent.name != "solutions",
            -length[item.path],
        )
    )


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches beyond this machine fails, also where there is a network."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _loopback(address[0]):
            raise OSError(f"a test must not use the network, but it asked for {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True)
def _shipped_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The course's own model, whatever the shell that runs the tests prefers."""
    monkeypatch.delenv("COURSE_MODEL", raising=False)


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Panels that show many scenes, or prepare methods with them, draw few."""
    from course_utils.panels import (
        concepts,
        dictionaries,
        examples,
        explainer,
        maximization,
        studies,
    )

    monkeypatch.setattr(maximization, "SCENES", 16)
    for name, few in (("SCENES", 16), ("CROPS", 2), ("STEPS", 20)):
        monkeypatch.setattr(dictionaries, name, few)
    dictionaries._shown.cache_clear()
    monkeypatch.setattr(explainer, "BACKGROUND", 6)
    monkeypatch.setattr(concepts, "SCENES", 16)
    monkeypatch.setattr(studies, "POOL", 12)
    monkeypatch.setattr(examples, "CROPS", 4)
    for made in examples.SETS.values():
        monkeypatch.setattr(made, "length", 32)
        monkeypatch.setattr(made, "_drawn", None)
    examples._drawn.cache_clear()
    yield
    examples._drawn.cache_clear()
    dictionaries._shown.cache_clear()


@pytest.fixture(scope="module")  # Playwright's event loop would run in all tests that come after
def chromium() -> Iterator[Any]:
    """A headless Chromium, the system's or Playwright's own; skips without one, but not in CI."""
    from playwright.sync_api import Error, sync_playwright

    from tests.pages import launch

    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except Error as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium starts here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()
