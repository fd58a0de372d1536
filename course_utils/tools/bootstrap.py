"""Sets the course up on first use, then hands over to the `course` command.

    python3 -m course_utils lab

Needs Python and nothing else, so only the standard library is imported here. Where the running
Python already has the course's packages (a conda environment, one's own), nothing is set up.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - said before a line that an older Python cannot run
    sys.exit(f"course: this is Python {sys.version.split()[0]}; the course needs 3.11 or newer.")

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STATE = VENV / "course-setup.json"  # {"cpu": bool, "done": {lock name: fingerprint}}
LOCKS = ("requirements.lock", "requirements-tests.lock")  # the second holds all of the first
GPU_BUILD = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a course command, in `.venv` if the running Python lacks the course's packages."""
    arguments = sys.argv[1:] if argv is None else argv
    cpu = "--cpu" in arguments
    command = [argument for argument in arguments if argument != "--cpu"]
    lock = LOCKS[command[:1] == ["test"]]
    try:
        if not command or {"-h", "--help"} & set(command) or ready(lock):
            from course_utils.tools.cli import main as course

            sys.exit(course(command))
        if Path(sys.prefix).resolve() == VENV.resolve():
            install(lock, cpu)
        else:
            make_venv()
        hand_over(arguments)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from here.", 130)
    except OSError as error:
        fail(f"{error.strerror or error}: {error.filename or ROOT}.")


def ready(lock: str) -> bool:
    """Whether the running Python has what a command needs."""
    if Path(sys.prefix).resolve() == VENV.resolve() and STATE.exists():
        return bool(state()["done"].get(lock) == fingerprint(lock))
    import importlib.metadata
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    if lock == LOCKS[1]:
        requirements += project["optional-dependencies"]["tests"]
    try:
        for requirement in requirements:
            importlib.metadata.distribution(re.split(r"[<>=!~;\[ ]", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def state() -> dict:
    """What earlier set-ups of `.venv` finished."""
    try:
        return dict(json.loads(STATE.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {"cpu": False, "done": {}}


def fingerprint(lock: str) -> str:
    """What an environment depends on: the lock, where the checkout lies, and Python's version."""
    where = f"{ROOT} {sys.version_info[:2]}".encode()
    return hashlib.sha256((ROOT / lock).read_bytes() + where).hexdigest()


def make_venv() -> None:
    """Create `.venv`, or create it again when its Python no longer runs."""
    if shutil.which(python()) and subprocess.run([python(), "-c", ""], check=False).returncode == 0:
        return
    check_owner(ROOT)
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        version = "{}.{}".format(*sys.version_info)
        fail(
            f"this Python cannot make environments: install its venv module (on Debian and Ubuntu "
            f"`apt install python{version}-venv`) and run the same command again."
        )
    run([sys.executable, "-m", "venv", "--clear", str(VENV)], f"{VENV} could not be made", "")


def check_owner(folder: Path) -> None:
    """Leave where the packages cannot be installed, however often one tries."""
    if not os.access(folder, os.W_OK):
        fail(
            f"the packages go to {VENV}, where you may not write: copy the folder {ROOT} to a "
            f"place of your own, and run the command there."
        )


def install(lock: str, cpu: bool) -> None:
    """Install a lock and the course itself into `.venv`, whose Python is the one running."""
    check_owner(VENV)
    before = state()
    linux = sys.platform == "linux"  # elsewhere the ordinary build is the small one
    cpu = linux and (before["cpu"] if before["done"] else cpu)
    gigabytes = 6 if linux and not cpu else 2
    # A changed lock replaces a few packages; only a first installation needs the whole room.
    if before["done"]:
        say("bringing .venv up to date …")
    else:
        free = shutil.disk_usage(VENV).free / 1e9
        if free < gigabytes:
            advice = " or add --cpu for the small build" if linux and not cpu else ""
            fail(
                f"the packages need {gigabytes} GB and {free:.1f} GB are free on this disk: "
                f"make room{advice}, then run the same command again."
            )
        minutes = "2 to 10 minutes, depending on the network"
        say(f"setting up .venv, once: about {gigabytes} GB on disk, {minutes} …")
    write_state(cpu, dict.fromkeys(before["done"], "under way"))
    if not importlib.util.find_spec("pip"):
        run([python(), "-m", "ensurepip"], "pip could not be installed")
    pip = [python(), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    run([*pip, "--retries", "2", "uv>=0.8,<1"], "the installer uv could not be downloaded")
    uv = [python(), "-m", "uv", "pip", "install", "--python", python(), "--no-deps"]
    failed = "the packages could not be installed"
    if cpu:
        # The small build has other hashes than the lock's and lies on torch's own index;
        # everything else is installed, and checked, as always.
        build, rest = split(lock)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, lock)
            path.write_text(rest, encoding="utf-8")
            run([*uv, "--require-hashes", "-r", str(path)], failed)
        run([*uv, "--torch-backend", "cpu", *build], failed)
    else:
        run([*uv, "--require-hashes", "-r", str(ROOT / lock)], failed)
    run([*uv, "--quiet", "-e", str(ROOT)], "the course itself could not be installed")
    write_state(cpu, {name: fingerprint(name) for name in LOCKS[: LOCKS.index(lock) + 1]})


def split(lock: str) -> tuple[list[str], str]:
    """A lock's pins of torch and torchvision, and the lock without anything of the GPU build."""
    blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text(encoding="utf-8"))
    rest = [block for block in blocks if not GPU_BUILD.match(block)]
    torch = [block.split()[0] for block in blocks if re.match("torch(vision)?==", block)]
    return torch, "\n".join(rest)


def write_state(cpu: bool, done: dict[str, str]) -> None:
    """Record what is installed, or is being installed: a fingerprint that fits no lock."""
    from course_utils.files import whole  # not above: too old a Python gets its sentence first

    with whole(STATE) as unfinished:
        unfinished.write_text(json.dumps({"cpu": cpu, "done": done}), encoding="utf-8")


def python() -> str:
    """The Python of `.venv`."""
    return str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run(command: list[str], failed: str, advice: str = "check the network connection and ") -> None:
    """Run a step of the set-up; its own lines stay visible, since a download takes minutes."""
    if subprocess.run(command, check=False).returncode == 0:
        return
    if shutil.disk_usage(ROOT).free < 3e8:
        fail(f"{failed}, because the disk is full: make room, then run the same command again.")
    fail(
        f"{failed}, for the reason above: {advice}run the same command again, it goes on from here."
    )


def hand_over(arguments: list[str]) -> NoReturn:
    """Run the same command again with the Python of `.venv`."""
    command = [python(), "-m", "course_utils", *arguments]
    if os.name == "nt":  # no exec there: wait, and leave Ctrl-C to the one at work
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


def say(message: str) -> None:
    """Tell the reader what happens."""
    print(f"course: {message}", file=sys.stderr, flush=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Leave with one sentence."""
    say(message)
    sys.exit(code)
