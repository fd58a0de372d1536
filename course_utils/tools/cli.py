"""The `course` command: open the course, check it, fetch and train its models, run its tests."""

import argparse
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
import tomllib
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
WORK = ROOT / "work"
LIVE = ROOT / "live"
SLIDES = ROOT / "slides"
Checks = list[tuple[str, Callable[[], str]]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"course: {message} (`{self.prog} --help` lists what there is)\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 where something failed, 2 for a typo."""
    parser = _command_line()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "run")}
    if arguments.command == "test":
        given = sys.argv[1:] if argv is None else argv
        options = {"pytest": given[given.index("test") + 1 :]}  # in the order they were typed
    # A kernel finds the library even where the course itself was not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    # Containers often forbid Python to keep what it compiled: each kernel would compile torch anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        return int(arguments.run(**options))
    except KeyboardInterrupt:
        print("course: stopped.", file=sys.stderr)
        return 130
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"course: {_sentence(error)}", file=sys.stderr)
        return 1


def _command_line() -> argparse.ArgumentParser:
    """All commands, each with the function that runs it."""
    parser = _Parser(prog="course", description="A hands-on course on explaining CNNs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, run: Callable[..., int], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        command.set_defaults(run=run)
        return command

    command = add("lab", lab, "open JupyterLab at your copies in work/, or at that of one lecture")
    command.add_argument("lecture", nargs="?", metavar="NN", help="its number, such as 01")
    command.add_argument("--live", action="store_true", help="open the instructor's copy in live/")
    add("doctor", doctor, "check whether every lecture can run here, in plain words")
    command = add("fetch", fetch, "download a model of torchvision or timm ahead of class")
    command.add_argument("name", metavar="NAME", help="such as resnet18")
    command = add("train", train, "train a model of the course again, from its recipe")
    command.add_argument("name", metavar="NAME", help="such as scenes")
    command = add("microscope", microscope, "look at every unit of a model of the course again")
    command.add_argument("name", metavar="NAME", help="such as scenes")
    command = add("league", league, "judge every method by the truth again (half an hour)")
    row = "measure this row alone, such as gradient or '|gradient|' (repeat for more)"
    command.add_argument("--only", action="append", metavar="NAME", help=row)
    beside = "the second table: photographs and a network that others trained (twenty minutes)"
    command.add_argument("--photographs", action="store_true", help=beside)
    command = add("poster", draw_poster, "draw every method's maps of three pictures (two minutes)")
    command.add_argument("path", type=Path, metavar="FILE", help="such as poster.png")
    add("roar", roar, "retrain without the pixels that methods choose (ten minutes)")
    command = add("live", write_live, "write an instructor's copy of a lecture, to type in class")
    command.add_argument("lecture", metavar="NN", help="its number, such as 01")
    command = add("slides", slides, "write a lecture as slides, or all, which need no network")
    command.add_argument("lecture", nargs="?", metavar="NN", help="its number, such as 01")
    command = add("release", release, "make the homework that students get from its keys")
    command.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="make this an nbgrader course, too"
    )
    command = add("handout", handout, "write what a class gets: no keys, no tests, no answers")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    command = add("test", test, "check style, types, library and notebooks")
    command.add_argument("--fast", action="store_true", help="style and the short tests alone")
    command.add_argument("--browser", action="store_true", help="every panel in a browser, alone")
    command.add_argument("pytest", nargs="*", metavar="ARG", help="passed on to pytest")
    return parser


def _sentence(error: Exception) -> str:
    """An error in one line, without the argument's name, which only a caller in Python needs."""
    if isinstance(error, ImportError) and error.name:
        return f"the package {error.name} is missing; install the course as its README says"
    return " ".join((str(error) or type(error).__name__).removeprefix("name: ").split())


# Opening -------------------------------------------------------------------------------------


def lab(lecture: str | None = None, live: bool = False) -> int:
    """Serve JupyterLab on this computer alone, and open a browser where there is one."""
    lectures()  # says so where there are none
    name = find_lecture(lecture).name if lecture else ""
    if not live:
        _copy_notebooks()
    elif lecture and not (LIVE / name).exists():
        write_live(lecture)
    # What a live copy links to lies beside its folder, so more than its folder is served.
    folder, tree = (ROOT, "/lab/tree/live/") if live else (WORK, "/lab/tree/")
    page = tree + name if name else "/lab"
    server = _server(page, browser=_has_browser(), folder=folder)

    def announce() -> None:
        token = server.identity_provider.token
        print(f"JupyterLab is at {server.connection_url}{page.lstrip('/')}?token={token}")
        print("Stop it with Ctrl-C.", flush=True)

    server.io_loop.add_callback(announce)  # once it listens, and knows on which port
    server.start()
    return 0


def _copy_notebooks() -> None:
    """Make the copies in work/, and name those that have fallen behind."""
    from course_utils.tools import work

    try:
        outdated = work.make(NOTEBOOKS, WORK)
    except PermissionError:
        raise PermissionError(
            f"your copies of the notebooks go to {WORK}, where you may not write; copy the folder "
            f"{ROOT} to a place of your own, and run the command there"
        ) from None
    for path in outdated:
        print(
            f"{path.relative_to(WORK)} has a newer version, and you have edited your copy, which "
            "stays as it is; rename or delete it to get the new one"
        )


def lectures() -> list[Path]:
    """The notebooks of the lectures, in their order."""
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"there are no lectures in {NOTEBOOKS}; `git checkout notebooks`")
    return paths


def find_lecture(number: str) -> Path:
    """The notebook of a lecture, given as "1" or "01"."""
    paths = lectures()
    for path in paths:
        if path.name.startswith(f"{number:0>2}_"):
            return path
    there = ", ".join(path.name[:2] for path in paths)
    raise ValueError(f"there is no lecture {number!r}; choose one of {there}")


def _has_browser() -> bool:
    """Whether a page would open in a window, rather than in a terminal browser or nowhere."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _server(page: str, browser: bool, folder: Path = NOTEBOOKS):  # type: ignore[no-untyped-def]
    """A JupyterLab server, not yet started; where the port is taken it finds another."""
    from jupyterlab.labapp import LabApp

    options = {
        "ServerApp.root_dir": folder,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.open_browser": browser,
        "ServerApp.allow_root": hasattr(os, "geteuid") and os.geteuid() == 0,
        "ServerApp.log_level": "ERROR",
        "LabApp.log_level": "ERROR",
        "LabApp.default_url": page,
        # Adds the alternative texts of pictures, and takes away the question about news.
        "LabApp.extra_labextensions_path": Path(__file__).with_name("labextensions"),
        # Else each kernel warns in the terminal that others may listen.
        "MappingKernelManager.transport_encryption": "auto",
        # A token of our own, since Jupyter tells its own only in a page of log lines.
        "IdentityProvider.token": secrets.token_urlsafe(24),
    }
    return LabApp.initialize_server(argv=[f"--{k}={v}" for k, v in options.items()])


# Checking ------------------------------------------------------------------------------------


def doctor() -> int:
    """Print what works and what does not; 1 where a lecture could not run."""
    started: Checks = [
        ("Python", _python),
        ("device", _device),
        ("torchvision models", _cached),
        ("disk", _disk),
        ("kernel", _kernel),
        ("JupyterLab", _jupyterlab),
    ]
    failed = 0
    for name, finding, works in _examine([*_installed(), *started]):
        print(f"{'ok      ' if works else 'PROBLEM '} {name}: {finding}", flush=True)
        failed += not works
    print(
        "Every lecture can run."
        if not failed
        else f"Not every lecture can run: {failed} problem{'s' * (failed > 1)} above."
    )
    return int(failed > 0)


def problems() -> list[str]:
    """What is missing for the lectures, a sentence each: packages, notebooks, shipped models."""
    return [f"{name}: {finding}" for name, finding, works in _examine(_installed()) if not works]


def _installed() -> Checks:
    return [
        ("packages", _packages),
        ("lectures", _lectures),
        *((f"model {name}", partial(_model, name)) for name in _shipped()),
        ("photographs", _photographs),
        # Lecture 04 looks at the units of one model alone.
        *((f"microscope {name}", partial(_units, name)) for name in _shipped() if name == "scenes"),
    ]


def _examine(checks: Checks) -> Iterator[tuple[str, str, bool]]:
    """(name, what was found, whether it works) of each check."""
    for name, check in checks:
        try:
            yield name, check(), True
        except Exception as error:  # whatever is wrong, the other checks still have to be made
            yield name, _sentence(error), False


def _python() -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _packages() -> str:
    from packaging.requirements import Requirement

    wrong = []
    requirements = [Requirement(text) for text in _project()["dependencies"]]
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted is {requirement.specifier}")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; install the course as its README says")
    return f"all {len(requirements)} are there, in the versions wanted"


def _project() -> dict:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def _lectures() -> str:
    return ", ".join(path.name[:2] for path in lectures())


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA)"
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return f"processor with {os.cpu_count()} cores, which is all the course needs"


def _shipped() -> Sequence[str]:
    try:
        from course_utils import models, pretrained
    except ImportError:
        return ()  # the check of the packages says which
    return [*models.SHIPPED, *pretrained.PACKED]


def _model(name: str) -> str:
    from course_utils import models

    classifier = models.load(name, device="cpu")
    return (
        f"reads {len(classifier.classes)} classes from {classifier.size}×{classifier.size} pixels"
    )


def _photographs() -> str:
    from course_utils.worlds import photographs

    things = sum(len(photographs.load(name).masks) for name in photographs.NAMES)
    return f"{len(photographs.NAMES)}, with the outlines of {things} things"


def _units(name: str) -> str:
    from course_utils.units import microscope

    return f"knows {sum(map(len, microscope.load(name).scenes.values())):,} units"


def _cached() -> str:
    import torch
    import torchvision.models

    there = {path.name for path in Path(torch.hub.get_dir(), "checkpoints").glob("*.pth")}
    names = [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[2] in there
    ]
    return f"{', '.join(names) or 'none'} on this computer; `course fetch NAME` downloads one"


def _disk() -> str:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < 0.5:
        raise OSError(f"only {free:.1f} GB are free, and a lecture may write some; make room")
    return f"{free:.0f} GB free"


def _kernel() -> str:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(
        kernel_name="python3", cwd=str(NOTEBOOKS), stderr=subprocess.DEVNULL
    )
    try:
        reply = client.execute_interactive("import course_utils", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"a notebook cannot use the library: {reply['content']['evalue']}")
    return "starts, and finds the library"


def _jupyterlab() -> str:
    """Start a server as `course lab` does; in a process of its own, since it keeps its state."""
    code = (
        "from course_utils.tools import cli; server = cli._server('/lab', browser=False);"
        "server.io_loop.add_callback(server.stop); server.start()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode:
        last = result.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"does not start: {last[-1]}")
    return "starts"


# Models --------------------------------------------------------------------------------------


def fetch(name: str) -> int:
    """Download a model of torchvision or timm into its cache, checked against its checksum."""
    from course_utils import models

    print(f"{name} is at {models.fetch(name)}")
    return 0


def train(name: str) -> int:
    """Train a shipped model again, print how well it does, and write its datasheet."""
    from course_utils import training
    from course_utils.contract import check_choice
    from course_utils.homework import hw06
    from course_utils.tools import datasheets

    recipes = training.RECIPES | hw06.recipes()
    check_choice("name", name, recipes)
    metrics = training.train_recipe(name, recipes[name])
    datasheets.write()
    for key, value in metrics.items():
        if isinstance(value, dict):
            print(f"{key} held-out images: {100 * value['accuracy']:.1f} % right")
        else:
            print(f"{key}: {value}")
    return 0


def microscope(name: str) -> int:
    """Look at every unit of a shipped model again, and write down what was seen."""
    from course_utils.tools import datasheets
    from course_utils.units import microscope

    print(f"what the units of {name} answer to is in {microscope.survey(name)}")
    datasheets.write()
    return 0


# Evaluation ----------------------------------------------------------------------------------


def league(only: Sequence[str] | None = None, photographs: bool = False) -> int:
    """Put every method through every metric on scenes whose truth is known; store the table.

    only: measures these rows alone; the others stay as they were.
    photographs: makes the table of photographs instead, where no truth is known.
    """
    from course_utils.evaluation import field, league, standings
    from course_utils.tools import datasheets

    if photographs:
        print(f"{field.make(only)}\nthe table is in {field.PATH}")
        return 0
    table = league.make_rows(only) if only else league.make()
    datasheets.replace_section(ROOT / "README.md", "league", standings.markdown(table))
    print(f"{table}\nthe table is in {standings.PATH}, and in the README")
    return 0


def draw_poster(path: Path) -> int:
    """Draw every method's maps of three pictures, side by side."""
    from course_utils.tools import poster

    poster.draw(path)
    print(f"the maps are in {path}")
    return 0


def roar() -> int:
    """Remove what methods find important from small scenes, retrain, and store the accuracies."""
    from course_utils.evaluation import experiments

    print(f"the accuracies are in {experiments.make()}")
    return 0


# Teaching ------------------------------------------------------------------------------------


def write_live(lecture: str) -> int:
    """Write an instructor's copy of a lecture into live/, and its timing sheet."""
    from course_utils.tools import live

    copy, sheet = live.make(find_lecture(lecture), LIVE)
    print(f"the copy is {copy}\nthe timing sheet is {sheet}")
    print(f"`course lab --live {lecture}` opens the copy")
    return 0


def slides(lecture: str | None = None) -> int:
    """Write a lecture, or every one, into slides/, as a file that a browser opens."""
    from course_utils.tools import slides

    for path in [find_lecture(lecture)] if lecture else lectures():
        print(slides.write(path, SLIDES), flush=True)
    return 0


def release(folder: Path | None = None) -> int:
    """Make notebooks/homework from solutions/ again; in a folder, an nbgrader course of it."""
    from course_utils.tools import release

    for path in release.make() + (release.course(folder) if folder else []):
        print(path)
    return 0


def handout(folder: Path) -> int:
    """Write the course as a class gets it into a folder."""
    from course_utils.tools import handout

    print(f"the hand-out is {handout.make(folder)}")
    return 0


# Testing -------------------------------------------------------------------------------------


STYLE = {
    "lint": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
}
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"]
KERNELS = "notebooks or browser"  # the marks of tests that start programs of their own
LONG = f"{KERNELS} or slow or references or benchmark"


def test(pytest: list[str]) -> int:
    """Style and types, beside the tests and then the notebooks; `--fast` leaves out what is long.

    `--browser` runs the browser's tests alone, with those that are too long for every run.
    Whatever else is given goes to pytest, which then runs what it names, and nothing beside it.
    """
    if not (ROOT / "tests").exists():
        raise FileNotFoundError("there are no tests here; the course is handed out without them")
    tools = ("ruff", "mypy", "pytest", "nbval", "xdist", "pytest_cov", "pytest_env")
    missing = [tool for tool in tools if not importlib.util.find_spec(tool)]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} are missing; `python3 -m course_utils test` sets all up"
        )
    fast, browser = "--fast" in pytest, "--browser" in pytest
    given = [argument for argument in pytest if argument not in ("--fast", "--browser")]
    # A worker a core, one thread each; a file is one worker's, in the order of tests/conftest.py.
    workers = ["-n", "logical", "--dist=loadfile", "--no-loadscope-reorder", "--durations=10"]
    stages = {}
    if fast:
        stages["tests"] = ["pytest", "tests", *workers, "-m", f"not ({LONG})", *given]
    elif browser:
        stages["browser"] = ["pytest", "tests/test_browser.py", "-m", "browser", *given]
    elif given:
        stages["pytest"] = ["pytest", *NBVAL, *given]
    else:  # apart, because nbval's own coverage would keep the kernels from starting
        library = f"not ({KERNELS} or benchmark)"
        stages["tests"] = ["pytest", "tests", *workers, "-m", library, "--cov"]
        stages["notebooks"] = ["pytest", *NBVAL, *workers, "-m", f"({KERNELS}) and not thorough"]
    with ThreadPoolExecutor(1) as beside:
        style = {name: beside.submit(_run, command, quiet=True) for name, command in STYLE.items()}
        done = {name: _run(command) for name, command in stages.items()}
        done |= {name: future.result() for name, future in style.items()}
    for name in STYLE:
        print(f"course: {name}\n{done[name].stdout}", end="")
    print("course:", ", ".join(f"{name} {run.seconds:.0f} s" for name, run in done.items()))
    failed = [name for name, run in done.items() if run.code]
    if failed:
        print(f"course: FAILED: {', '.join(failed)} (see above)")
    return int(bool(failed))


class _Run(NamedTuple):
    code: int
    stdout: str
    seconds: float


def _run(command: list[str], quiet: bool = False) -> _Run:
    """Run a tool of Python's in the course's folder; quiet: keep what it prints for later."""
    if not quiet:
        print(f"course: {' '.join(command)}", flush=True)
    begun = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    return _Run(result.returncode, result.stdout or "", time.perf_counter() - begun)
