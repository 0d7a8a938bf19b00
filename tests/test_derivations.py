"""The derivations are true: their Python runs and its asserts hold; and links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DERIVATIONS = sorted((ROOT / "docs" / "derivations").glob("*.md"))
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


def blocks(page):
    """Yield the page's Python blocks, moved down so that an error names the page's own line."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        yield "\n" * text.count("\n", 0, found.start(1)) + found[1]


@pytest.mark.parametrize("page", DERIVATIONS, ids=lambda page: page.stem)
def test_a_derivation_agrees_with_a_known_answer_and_with_finite_differences(page):
    by_hand, by_differences, *more = blocks(page)
    names = {}
    for block in (by_hand, by_differences, *more):
        assert re.search(r"^ *assert ", block, flags=re.MULTILINE)
        exec(compile(block, page, "exec"), names)
    assert "/ (2 * h)" in by_differences


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []
