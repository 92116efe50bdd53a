"""Imports go one way: docs/architecture.md declares every module as core, an entry or periphery."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "transrec"
PAGE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([^`]+)` \| (core|entry|periphery) \|", PAGE, re.MULTILINE))
MODULES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
MAY_IMPORT = {"core": {"core"}, "entry": {"core", "entry"}, "periphery": {"core", "entry", "periphery"}}


def row_of(module: str) -> str | None:
    """Return the row of a module: its own, or that of the innermost folder that has one."""
    places = [module, *(f"{folder.as_posix()}/" for folder in Path(module).parents)]
    return next((place for place in places if place in ROWS), None)


def imported_by(module: str) -> Iterator[str]:
    """Yield the modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = "/".join(name.split(".")[1:])
            if name.startswith("transrec.") and (paths := {f"{path}.py", f"{path}/__init__.py"} & {*MODULES}):
                yield paths.pop()


def test_every_module_has_a_row_and_every_row_a_module():
    assert [module for module in MODULES if not row_of(module)] == []
    assert sorted({row_of(module) for module in MODULES} ^ {*ROWS}) == []


@pytest.mark.parametrize("kind", ["core", "entry"])
def test_imports_run_one_way(kind):
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if ROWS.get(row_of(module)) == kind
        for other in imported_by(module)
        if ROWS.get(row_of(other)) not in MAY_IMPORT[kind]
    ]
    assert wrong == []


# Functions with more arguments: classes made from their flags by name, and functions whose arguments are all named
# options.
MORE_ARGUMENTS = {
    ("data/batches.py", "__init__"),
    ("data/demo.py", "make_text_backbone"),
    ("data/demo.py", "make_image_backbone"),
    ("data/images/build.py", "build_store"),
    ("interop.py", "load_original"),
    ("models/objectives/sampled_softmax.py", "__init__"),
}


def test_functions_take_at_most_six_arguments():
    more = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > 6:
                    more.add((module, node.name))
    assert more == MORE_ARGUMENTS


def test_who_sees_all_settings():
    """Everything else that the runner calls takes only the arguments that it needs."""
    seeing = {module for module in MODULES if "settings.py" in imported_by(module)}
    assert {row_of(module) for module in seeing} == {"finished.py", "runner.py", "studies/", "reports/"}


def test_the_pages_name_what_is_there():
    for page in ("docs/architecture.md", "CONTRIBUTING.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert ((REPOSITORY / page).parent / link).exists(), f"{page} links to {link}"
        for path in re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?|\w+\.py)`", text):
            # NAME.py stands for any file there.
            places = [top / path.replace("NAME", "__init__") for top in (REPOSITORY, PACKAGE)]
            assert any(place.exists() for place in places), f"{page} names {path}"
