"""Goal: every row of the list is tried by tests that exist, every attack belongs to a row, and the table shows all."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults import table
from tests.faults.rows import ROWS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def functions_of(file: Path) -> set[str]:
    """The tests that a file defines."""
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_row_is_there_with_tests_that_exist() -> None:
    assert [row.number for row in ROWS] == list(range(1, 55))
    for row in ROWS:
        assert row.tests, row
        for test in row.tests:
            file, _, name = test.partition("::")
            assert name in functions_of(ROOT / file), f"row {row.number}: {test} is not there"


def test_every_attack_belongs_to_a_row() -> None:
    named = {test for row in ROWS for test in row.tests}
    for file in HERE.glob("test_*.py"):
        if file.name != Path(__file__).name:
            assert {f"tests/faults/{file.name}::{name}" for name in functions_of(file)} <= named


def test_the_table_has_every_row_and_leaves_the_rest_of_the_page(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "build/faults.json"
    page.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    for came in ("fine", "a | b"):
        table.write({"7": came}, results, page, "a machine")
        assert table.read(results) == {"7": came}
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("above", "below", False)
    assert len([line for line in lines if line.startswith("| ") and line[2].isdigit()]) == len(ROWS)
    assert "a \\| b" in page.read_text()


def test_the_page_has_its_marks() -> None:
    text = (ROOT / "docs/SECURITY.md").read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1
