"""pyproject.toml, environment.yml and the locks agree, and the set-up installs them."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_utils.tools import bootstrap
from tests.test_rooms import imported as imported_by

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch"}  # what conda-forge calls differently

each_lock = pytest.mark.parametrize("lock", bootstrap.LOCKS)


def parsed(texts: list[str]) -> dict[str, set[str]]:
    """Name → bounds."""
    requirements = [Requirement(text) for text in texts]
    return {
        canonicalize_name(requirement.name): {str(bound) for bound in requirement.specifier}
        for requirement in requirements
    }


def pins(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each pin of a lock with its hashes."""
    blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text(encoding="utf-8").strip())
    return [
        (
            Requirement(block.split(" \\")[0]),
            re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", block),
        )
        for block in blocks
    ]


def test_environment_has_the_requirements_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    from_conda = parsed([entry for entry in conda if entry != "pip"])
    assert from_conda.pop("python") == {PROJECT["requires-python"]}
    from_pip = last["pip"]
    assert from_pip[-1] == "-e ."
    both = {CONDA_NAMES.get(name, name): bounds for name, bounds in from_conda.items()}
    assert both | parsed(from_pip[:-1]) == parsed(PROJECT["dependencies"])


def test_every_package_that_the_library_imports_is_a_requirement() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["nbgrader"]]
    declared = {*parsed(wanted), canonicalize_name(PROJECT["name"])}
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "course_utils").rglob("*.py"))
    names = {name.split(".")[0] for source in sources for name in imported_by(source)}
    distributions = importlib.metadata.packages_distributions()
    for name in names - {*sys.stdlib_module_names, "course_utils"}:
        assert declared & {*map(canonicalize_name, distributions[name])}, name


def test_every_requirement_is_bounded_on_both_sides() -> None:
    groups = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for group in groups for text in group)]:
        operators = {bound.operator for bound in Requirement(text).specifier}
        assert operators == {">=", "<"}, text


@each_lock
def test_lock_has_every_requirement_within_its_bounds(lock: str) -> None:
    wanted = list(PROJECT["dependencies"])
    if "tests" in lock:
        wanted += PROJECT["optional-dependencies"]["tests"]
        wanted += PROJECT["optional-dependencies"]["references"]
    locked = {canonicalize_name(pin.name): pin for pin, _ in pins(lock)}
    for requirement in map(Requirement, wanted):
        (version,) = locked[canonicalize_name(requirement.name)].specifier
        assert version.operator == "=="
        assert version.version in requirement.specifier


@each_lock
def test_lock_has_hashes_and_no_addresses(lock: str) -> None:
    for pin, hashes in pins(lock):
        assert hashes, pin
    assert not re.search(r"://|@ |--(extra-)?index|--find-links", (ROOT / lock).read_text())


def test_tests_are_locked_to_the_versions_of_the_course() -> None:
    course, tests = ({pin.name: str(pin.specifier) for pin, _ in pins(x)} for x in bootstrap.LOCKS)
    assert course.items() <= tests.items()


def test_one_version_a_package_on_every_python() -> None:
    """Stored outputs are compared, so Python's version must not change the numbers."""
    names = [pin.name for pin, _ in pins("requirements.lock")]
    assert len(names) == len(set(names))


def test_no_gpu_package_in_the_small_build() -> None:
    torch, rest = bootstrap.split("requirements.lock")
    assert [pin.split("==")[0] for pin in torch] == ["torch", "torchvision"]
    kept = set(re.findall(r"^([\w-]+)==", rest, re.M))
    dropped = {pin.name for pin, _ in pins("requirements.lock")} - kept
    assert {"torch", "torchvision", "triton"} <= dropped
    for name in dropped - {"torch", "torchvision", "triton"}:
        assert name.startswith(("nvidia-", "cuda-"))


def test_the_library_imports_nothing_by_itself() -> None:
    """`python3 -m course_utils` must start where nothing is installed."""
    code = (
        "import sys; before = set(sys.modules); from course_utils.tools import bootstrap, cli;"
        "print({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names) - {'course_utils'})"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("given", "spin", "block"),
    [
        ({}, "1000", "1"),
        ({"GOMP_SPINCOUNT": "5"}, "5", "1"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, None),
    ],
)
def test_threads_wait_briefly_unless_one_has_said_otherwise(
    given: dict[str, str], spin: str | None, block: str | None
) -> None:
    policy = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in policy}
    code = f"import course_utils, os; print([os.environ.get(name) for name in {policy[1:]}])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment | given, check=True
    )
    assert result.stdout.strip() == str([spin, block])


# What takes long to import, and a lecture's first cell does not need.
LATER = {
    *("captum", "jupyterlab", "lucent", "nbconvert", "nbformat", "pandas", "sklearn", "timm"),
    *("scipy.stats", "skimage.feature", "skimage.metrics", "sympy", "torch._dynamo", "torchvision"),
}


def imported(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after it ran the code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stdout.split())


def test_panels_import_nothing_until_they_are_used() -> None:
    assert not imported("import course_utils.panels") & {*LATER, "torch", "matplotlib", "IPython"}


@pytest.mark.slow
def test_what_lectures_import_is_light() -> None:
    """All that a student can name at the start, every panel, the course's own model, some maps."""
    paths = [path.relative_to(ROOT) for path in (ROOT / "course_utils").rglob("[a-z]*.py")]
    taught = [path for path in paths if not {"homework", "tools"} & {*path.parts}]
    modules = ["course_utils.homework", *(".".join(p.with_suffix("").parts) for p in taught)]
    code = f"""
import torch, {", ".join(sorted(modules))}
from course_utils import models, panels
for name in panels.MODULES:
    getattr(panels, name)
model, image = models.load("scenes").model, torch.rand(1, 3, 32, 32)
course_utils.methods.gradients.guided_backprop(model, image)
course_utils.methods.propagation.deeplift(model, image)
course_utils.evaluation.sanity.parameter_randomization(
    model, image, course_utils.methods.gradients.gradient
)
"""
    found = imported(code)
    assert "torch" in found
    assert not found & LATER


# The set-up, with every command recorded instead of run.


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A Linux machine with room, whose .venv is the running Python's."""
    venv = tmp_path / ".venv"
    venv.mkdir()
    commands: list[list[str]] = []
    locks: list[str] = []
    failing: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        if "-r" in command:
            locks.append(Path(command[command.index("-r") + 1]).read_text(encoding="utf-8"))
        return SimpleNamespace(returncode=int(any(word in command for word in failing)))

    def handed_over(_: list[str]) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "STATE", venv / "course-setup.json")
    monkeypatch.setattr(bootstrap.sys, "prefix", str(venv))
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.setattr(bootstrap, "hand_over", handed_over)
    free = SimpleNamespace(free=100e9)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: free)
    (venv / "course-setup.json").write_text('{"cpu": false, "done": {}}')
    return SimpleNamespace(venv=venv, commands=commands, locks=locks, failing=failing, disk=free)


def leave(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        bootstrap.main(list(arguments))
    return int(str(stopped.value.code or 0))


def state(machine: SimpleNamespace) -> dict:
    return dict(json.loads((machine.venv / "course-setup.json").read_text()))


def test_set_up_installs_the_lock_with_hashes_and_then_the_course(machine: SimpleNamespace) -> None:
    assert leave("lab") == 0
    *_, uv, packages, course = machine.commands
    assert uv[-1].startswith("uv>=")
    assert {"--require-hashes", "--no-deps"} <= set(packages)
    assert machine.locks == [(ROOT / "requirements.lock").read_text(encoding="utf-8")]
    assert course[-2:] == ["-e", str(ROOT)]
    assert list(state(machine)["done"]) == ["requirements.lock"]
    assert bootstrap.ready("requirements.lock")
    assert not bootstrap.ready("requirements-tests.lock")


def test_the_tests_need_their_own_lock(machine: SimpleNamespace) -> None:
    assert leave("test") == 0
    assert machine.locks == [(ROOT / "requirements-tests.lock").read_text(encoding="utf-8")]
    assert bootstrap.ready("requirements.lock")
    assert bootstrap.ready("requirements-tests.lock")


def test_the_small_build_is_not_checked_against_hashes_it_cannot_have(
    machine: SimpleNamespace,
) -> None:
    assert leave("lab", "--cpu") == 0
    packages, torch = machine.commands[-3:-1]
    assert "--require-hashes" in packages
    assert "nvidia" not in machine.locks[0]
    assert torch[-4:-2] == ["--torch-backend", "cpu"]
    assert [pin.split("==")[0] for pin in torch[-2:]] == ["torch", "torchvision"]
    assert "--require-hashes" not in torch
    machine.commands.clear()
    assert leave("test") == 0  # remembered
    assert any("--torch-backend" in command for command in machine.commands)


def test_after_an_interrupted_download_the_other_build_can_be_chosen(
    machine: SimpleNamespace,
) -> None:
    machine.failing.append("--require-hashes")
    assert leave("lab") == 1
    machine.failing.clear()
    assert leave("lab", "--cpu") == 0
    assert state(machine)["cpu"]


def test_an_interrupted_update_keeps_the_build(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave("lab", "--cpu")
    monkeypatch.setattr(bootstrap, "fingerprint", lambda lock: "changed")
    machine.failing.append("--require-hashes")
    assert leave("lab") == 1
    assert state(machine)["cpu"]
    assert not bootstrap.ready("requirements.lock")
    machine.failing.clear()
    assert leave("lab") == 0
    assert any("--torch-backend" in command for command in machine.commands)


@pytest.mark.parametrize("step", ["uv>=0.8,<1", "--require-hashes", "-e"])
def test_an_interrupted_set_up_is_taken_up_again(
    machine: SimpleNamespace, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.failing.append(step)
    assert leave("lab") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"course: .* check the network connection .*\.", error)
    assert not bootstrap.ready("requirements.lock")
    machine.failing.clear()
    assert leave("lab") == 0
    assert bootstrap.ready("requirements.lock")


def test_a_changed_lock_is_installed(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave("lab")
    monkeypatch.setattr(bootstrap, "fingerprint", lambda lock: "changed")
    assert not bootstrap.ready("requirements.lock")


def test_no_room(machine: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    machine.disk.free = 3e9
    assert leave("lab") == 1
    assert "3.0 GB are free on this disk: make room or add --cpu" in capsys.readouterr().err
    assert machine.commands == []
    assert leave("lab", "--cpu") == 0


def test_disk_full_on_the_way(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = iter([100e9, 1e6])
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(sizes)))
    machine.failing.append("--require-hashes")
    assert leave("lab") == 1
    assert "because the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["its own", "/usr"])
def test_a_folder_of_another_user(
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prefix: str,
) -> None:
    """No second try would help, so none is advised."""
    if prefix == "/usr":
        monkeypatch.setattr(bootstrap.sys, "prefix", prefix)
        monkeypatch.setattr(bootstrap, "ready", lambda lock: False)
    monkeypatch.setattr(bootstrap.os, "access", lambda path, mode: False)
    assert leave("lab") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("to a place of your own, and run the command there.")
    assert machine.commands == []


def test_python_without_venv(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap.sys, "prefix", "/usr")
    monkeypatch.setattr(bootstrap, "ready", lambda lock: False)
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    assert leave("lab") == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt install python{version}-venv" in capsys.readouterr().err


def test_an_environment_of_ones_own_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python that runs these tests has the packages, so nothing is set up."""
    monkeypatch.setattr(bootstrap, "STATE", Path("nowhere"))
    assert bootstrap.ready("requirements.lock")
    assert bootstrap.ready("requirements-tests.lock")


def test_missing_packages_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution: Callable[[str], object] = importlib.metadata.distribution

    def lacking(name: str) -> object:
        if name == "ruff":
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(bootstrap, "STATE", Path("nowhere"))
    monkeypatch.setattr(importlib.metadata, "distribution", lacking)
    assert bootstrap.ready("requirements.lock")
    assert not bootstrap.ready("requirements-tests.lock")


def test_help_needs_nothing_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "course_utils", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0
    assert "doctor" in result.stdout
    assert os.listdir(tmp_path) == []
