"""How many one-line faults in the library do its tests find?

    course test tests -n logical -m "not (notebooks or browser)" \\
        --cov --cov-context=test --junitxml=FOLDER/times.xml   # which test runs which line
    python tests/faults.py FOLDER [--number 240] [--seed 0]

Each fault changes one operator, number or name in one function: `+` for `-`, `<=` for `<`, `2` for
`1`, `max` for `min`. The tests that run its line are tried, shortest first, until one fails: the
short ones (those of `course test --fast`), and where none of them fails the others. FOLDER gets
faults.json. A fault is named by its function and its place there, so that two versions of the
library can be compared where the function is the same.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import io
import itertools
import json
import os
import signal
import sys
import time
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    *("contract", "images", "layers", "models", "networks", "progress", "training"),
    *("methods.backward", "methods.cam", "methods.gradients", "methods.lime", "methods.operations"),
    *("methods.perturbation", "methods.propagation", "methods.regions", "methods.relevance"),
    "methods.shapley",
    *("evaluation.axioms", "evaluation.metrics", "evaluation.sanity", "evaluation.truth"),
    *("evaluation.faithfulness", "evaluation.imputation", "evaluation.simulation"),
)
SWAPS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or},
    **{ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
NAMES = {
    **{"max": "min", "min": "max", "amax": "amin", "amin": "amax", "sum": "mean", "mean": "sum"},
    **{"argmax": "argmin", "abs": "sign", "clamp_min": "clamp_max", "any": "all", "all": "any"},
    **{"zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "ones_like": "zeros_like"},
}
SHORT = 60  # seconds that a fault may add to the tests' own before they count as hanging


class Fault(NamedTuple):
    module: str
    function: str
    line: int  # from the function's first
    was: str
    now: str
    number: int  # among the faults of its module

    def __str__(self) -> str:
        return f"{self.module}.{self.function}+{self.line}: {self.was} -> {self.now}"


# The faults -----------------------------------------------------------------------------------


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield replaced(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            yield replaced(node, ops=[SWAPS[type(op)]()])
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield replaced(node, value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield replaced(node, value=value + 1)
        case ast.Attribute(attr=name) if name in NAMES:
            yield replaced(node, attr=NAMES[name])
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield replaced(node, func=ast.copy_location(ast.Name(NAMES[name], ast.Load()), node))


def replaced(node: ast.AST, **fields: Any) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def logic(node: ast.AST) -> Iterator[tuple[ast.AST, str, Any]]:
    """(parent, field, child) of all that runs below a node: no messages, no types."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc", "msg", "type_params"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield node, name, index if isinstance(value, list) else None
                yield from logic(child)


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef):
            yield f"{inside}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{inside}{child.name}.")


def source(module: str) -> Path:
    """The file of a module such as "methods.cam"."""
    return ROOT.joinpath("course_utils", *module.split(".")).with_suffix(".py")


def faults(module: str) -> Iterator[tuple[Fault, ast.Module]]:
    """Every fault of a module, and its syntax tree with it; the tree is put right again after."""
    tree = ast.parse(source(module).read_text(encoding="utf-8"))
    number = 0
    for name, function in functions(tree):
        for parent, field, index in list(logic(function)):
            slot = getattr(parent, field)
            node = slot if index is None else slot[index]
            for changed in changes(node):
                ast.copy_location(changed, node)
                put(parent, field, index, changed)
                was, now = ast.unparse(node), ast.unparse(changed)
                line = node.lineno - function.lineno
                yield Fault(module, name, line, was, now, number), tree
                put(parent, field, index, node)
                number += 1


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def starts(module: str) -> dict[str, int]:
    """function -> its first line."""
    tree = ast.parse(source(module).read_text(encoding="utf-8"))
    return {name: function.lineno for name, function in functions(tree)}


# The tests ------------------------------------------------------------------------------------


def covering(folder: Path) -> dict[str, dict[str, list[str]]]:
    """module -> "function+line" -> the tests that run it, from the coverage in FOLDER."""
    from coverage import CoverageData

    stored = folder / "covering.json"
    if not stored.exists():
        data = CoverageData(str(ROOT / ".coverage"))
        data.read()
        found: dict[str, dict[str, list[str]]] = {}
        for module in MODULES:
            lines = data.contexts_by_lineno(str(source(module)))
            begun = sorted((line, name) for name, line in starts(module).items())
            found[module] = {
                f"{name}+{line - first}": sorted({c.split("|")[0] for c in contexts} - {""})
                for line, contexts in lines.items()
                for first, name in [max((b for b in begun if b[0] <= line), default=(0, ""))]
                if name
            }
        stored.write_text(json.dumps(found))
    return dict(json.loads(stored.read_text()))


def reaching(fault: Fault, lines: dict[str, list[str]]) -> list[str]:
    """The tests that run the line of a fault; of a default, all that call its function."""
    if tests := lines.get(f"{fault.function}+{fault.line}"):
        return tests
    of_function = (t for name, t in lines.items() if name.rpartition("+")[0] == fault.function)
    return sorted(set(itertools.chain.from_iterable(of_function)))


def durations(folder: Path) -> dict[str, float]:
    """test -> seconds."""
    cases = ET.parse(folder / "times.xml").getroot().iter("testcase")
    return {
        f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}": float(
            case.attrib["time"]
        )
        for case in cases
    }


class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the library from a syntax tree."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.name, self.tree = f"course_utils.{module}", tree
        self.path = str(source(module))

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: Any) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), self.path, "exec"), module.__dict__)


class Chosen:
    """A pytest plugin: these tests and no others, in this order; the first that fails ends it."""

    def __init__(self, order: Iterable[str], short: bool) -> None:
        self.place, self.short = {name: i for i, name in enumerate(order)}, short

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        long = ("slow", "references")
        items[:] = [
            item
            for item in items
            if item.nodeid in self.place
            and self.short is not any(item.get_closest_marker(mark) for mark in long)
        ]
        items.sort(key=lambda item: self.place[item.nodeid])


def attempt(tree: ast.Module, module: str, tests: list[str], short: bool) -> int:
    """In a process of its own: pytest's exit code."""
    import pytest

    sys.meta_path.insert(0, Broken(module, tree))
    files = sorted({name.split("::")[0] for name in tests})
    quiet = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not benchmark"]
    return int(pytest.main([*files, *quiet], plugins=[Chosen(tests, short)]))


class Trial:
    """One fault and the tests that run its line: first the short ones, then the others."""

    def __init__(self, fault: Fault, tests: list[str], times: dict[str, float]) -> None:
        self.fault, self.stages = fault, ["fast", "library"] if tests else []
        self.tests = sorted(tests, key=lambda name: times.get(name, 0))
        self.limit = SHORT + 3 * sum(times.get(name, 0) for name in tests)
        self.found = "survived" if tests else "never run"
        self.seconds = 0.0

    def start(self) -> None:
        """Fork a process that runs the tests of the next stage."""
        self.stage, self.begun = self.stages.pop(0), time.monotonic()
        self.child = os.fork()
        if self.child:
            return
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        with contextlib.suppress(BaseException):
            tree = next(tree for fault, tree in faults(self.fault.module) if fault == self.fault)
            code = attempt(tree, self.fault.module, self.tests, self.stage == "fast")
        os._exit(code)

    def ended(self) -> bool:
        """Whether the process is through, or has been ended because it hung."""
        seconds = time.monotonic() - self.begun
        done, status = os.waitpid(self.child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        if not done and seconds < self.limit:
            return False
        if not done:
            os.killpg(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        self.seconds += seconds
        if code not in (0, 5):  # 5: no such test in this stage
            self.found, self.stages = f"{self.stage}: {'failed' if done else 'hung'}", []
        return True


def warm() -> None:
    """Import what the tests import, once for all children, but nothing of this course."""
    import pytest

    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["tests", "--collect-only", "-qq", "-p", "no:cacheprovider"])
    for name in [name for name in sys.modules if name.split(".")[0] in ("course_utils", "tests")]:
        del sys.modules[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    covered, times = covering(options.folder), durations(options.folder)
    chosen = sorted(
        (fault for module in MODULES for fault, _ in faults(module)),
        key=lambda fault: zlib.crc32(f"{options.seed} {fault}".encode()),
    )[: options.number]
    warm()
    waiting = [Trial(fault, reaching(fault, covered[fault.module]), times) for fault in chosen]
    running: list[Trial] = []
    results = []
    while waiting or running:
        for trial in [trial for trial in running if trial.ended()]:
            running.remove(trial)
            waiting.insert(0, trial)
        while waiting and len(running) < (os.cpu_count() or 1):
            trial = waiting.pop(0)
            if trial.stages:
                trial.start()
                running.append(trial)
                continue
            results.append(trial.fault._asdict() | {"found": trial.found})
            tried = f"{trial.found:15} {trial.seconds:4.0f} s {len(trial.tests):5} tests"
            print(f"{tried}  {trial.fault}", flush=True)
        time.sleep(0.02)
    (options.folder / "faults.json").write_text(json.dumps(results, indent=1))
    for kind in sorted({result["found"] for result in results}):
        print(f"{kind}: {sum(result['found'] == kind for result in results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
