"""Imports go down only, the two towers never touch, and files, names and the whole stay small."""

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from check_wheel import packages_declared, packages_on_disk

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    "tinydiff_kernels",
    "_version backend files kernels parallel progress replay",
    "autograd diffusion",
    "nn",
    "models optim data images checkpoint viz metrics",
    "predictor criterion tables recipe resuming autoencoding asking generate upscale train "
    "whole_step runs frozen_text variation evaluation pretrained",
    "demo report",
    "commands kernel_cases kernel_commands cli __main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
NETWORK_TOWER = {"autograd", "nn", "models", "optim"}
APART  = {"tinydiff/pretrained": 1_700, "tinydiff/data": 900, "tinydiff/evaluation": 750}
BUDGET = {"tinydiff": 7_950, "kernels": 5_000, "GPU": 6_650, **APART}
OURS = {"tinydiff", "tinydiff_kernels"}

KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
TINYDIFF = sorted((ROOT / "tinydiff").rglob("*.py"))


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(nodes, path):
    """Yield the absolute dotted name of everything that `nodes` of the file at `path` import."""
    package = path.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def run_at_import(node):
    """Yield the statements that importing a module runs: none in functions, none for editors."""
    for child in ast.iter_child_nodes(node):
        for_editors = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not for_editors and not isinstance(child, ast.FunctionDef):
            yield child
            yield from run_at_import(child)


@each(TINYDIFF)
def test_imports_go_down_and_never_across_to_the_other_tower(path):
    here = path.relative_to(ROOT / "tinydiff").parts[0].removesuffix(".py")
    if here == "__init__":
        return                                      # the front door: it opens every floor
    assert here in FLOOR, f"{here} has no floor yet: give it one in FLOORS"
    for name in imports(ast.walk(parse(path)), path):
        package, *inner = name.split(".")
        there = inner[0] if package == "tinydiff" and inner else package
        if package not in OURS or there == here:
            continue
        assert there in FLOOR, f"import {name} from the module that defines it"
        assert FLOOR[there] <= FLOOR[here], f"{here} imports {name} from a higher floor"
        assert here not in NETWORK_TOWER or there != "diffusion", f"{here} may not know {name}"
        arrays = there in ("backend", "kernels")
        assert here != "diffusion" or arrays, f"arrays only: {here} may not know {name}"
        doors = ("kernels", "kernel_cases", "kernel_commands")
        assert there != "tinydiff_kernels" or here in doors, f"only {', '.join(doors)} may"


@each(KERNELS)
def test_kernels_know_nothing_of_tinydiff(path):
    assert "tinydiff" not in {name.split(".")[0] for name in imports(ast.walk(parse(path)), path)}


@each(TINYDIFF)
def test_libraries_other_than_numpy_are_imported_late(path):
    roots = {name.split(".")[0] for name in imports(run_at_import(parse(path)), path)}
    assert roots <= {"numpy", *OURS, *sys.stdlib_module_names}


@each(TINYDIFF + KERNELS)
def test_a_file_is_short_and_finished(path):
    source = path.read_text(encoding="utf-8")
    names = list(imports(ast.walk(ast.parse(source)), path))
    assert len(source.splitlines()) <= 300
    assert not re.findall(r"\b(TO[D]O|FIXM[E]|NotImplemente[d]Error)\b", source)
    assert not [name for name in names if name.endswith(".*")], "star import"
    assert "pickle" not in {name.split(".")[0] for name in names} or path.name == "cifar10.py"


@pytest.mark.parametrize("what", BUDGET)
def test_the_line_budget_holds(what):
    """Lines of code and docstrings, without blank and comment-only ones."""
    comment = {".py": r"(?m)^\s*#.*", ".cu": r"/\*[^\0]*?\*/|//.*"}
    comment[".cuh"] = comment[".hpp"] = comment[".cu"]
    lines = 0
    for path in (ROOT / ("kernels" if what == "GPU" else what)).rglob("*"):
        apart = any(ROOT / other in path.parents for other in APART if other != what)
        if path.suffix in comment and not apart:
            text = path.read_text(encoding="utf-8")
            if "kernels" in path.parts and for_a_gpu(path, text) != (what == "GPU"):
                continue
            code = re.sub(comment[path.suffix], "", text)
            lines += sum(bool(line.strip()) for line in code.splitlines())
    assert 0 < lines <= BUDGET[what]


def for_a_gpu(path, text):
    """Whether a file of kernels/ is for a GPU, or steps through what is."""
    return path.suffix != ".py" or path.parent.name == "gpu" or "from ..gpu" in text


@pytest.mark.parametrize("package", packages_on_disk(ROOT))
def test_no_public_name_equals_a_module_beside_it(package):
    folder = ROOT / package.replace("tinydiff_kernels", "kernels").replace(".", "/")
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in folder.glob("*.py"):
        defined = {node.name for node in parse(path).body if hasattr(node, "name")}
        assert not defined & modules, f"{path.name} defines what a module beside it is called"
    opened = importlib.import_module(package)
    for name in modules & set(getattr(opened, "__all__", dir(opened))):
        assert isinstance(getattr(opened, name), ModuleType), f"{package}.{name} hides a module"


def test_every_package_is_listed_in_setup_cfg():
    assert set(packages_declared(ROOT)) ^ set(packages_on_disk(ROOT)) == set()
