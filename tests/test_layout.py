"""The tree: packages that an installation takes along, tests that stand where the code stands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainers", "deploy", "nas")
COPIED = ROOT / "deploy/runtime"  # data: it goes into every export as it is


def folders_of(package: str) -> set[Path]:
    return {path.parent for path in (ROOT / package).rglob("*.py")} - {COPIED}


def test_every_folder_is_a_package_that_says_what_it_is() -> None:
    """setuptools takes those with an `__init__.py` alone, and so would Ray's workers miss the others."""
    for folder in {folder for package in PACKAGES for folder in folders_of(package)}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_tests_stand_where_the_code_stands() -> None:
    mirrored = {path.parent.relative_to(ROOT / "tests") for name in PACKAGES for path in (ROOT / "tests" / name).rglob("test_*.py")}
    assert mirrored <= {folder.relative_to(ROOT) for package in PACKAGES for folder in folders_of(package)}
    assert not list((ROOT / "tests").rglob("__init__.py"))  # they would shadow the packages
