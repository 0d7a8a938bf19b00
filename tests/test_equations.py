"""docs/equations.md holds: every equation has its row, every row its function and its test."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
TESTS = {f"{path.name}::{node.name}" for path in (ROOT / "tests").glob("*.py")
         for node in ast.parse(path.read_text(encoding="utf-8")).body
         if isinstance(node, ast.FunctionDef)}

# What the papers have: the last equation, the last algorithm, and what is needed without a number.
PAPERS = {
    "DDPM": (26, 4, ["§3.2", "§3.3", "§4", "§4.3", "§B"]),
    "DDIM": (16, 0, ["§2", "§4.1", "§5", "Theorem 1", "App. C.1"]),
    "iDDPM": (19, 0, []),
    "ADM": (60, 2, ["§3.1", "§4.3", "App. F", "App. G"]),
    "LDM": (25, 0, ["§3.3", "App. G, sampling", "App. G, scale"]),
    "CFG": (6, 2, ["§2, x0", "§2, λ", "§3.1", "§3.2"]),
    "EDM": (8, 2, [f"Table 1, {row}" for row in (
        "ODE solver", "time steps", "σ(t)", "s(t)", "F", "c_skip", "c_out", "c_in", "c_noise",
        "training σ", "weight λ", "parameters")]),
}

NUMBERS = r"\d+(?:[–-]\d+)?(?:,\s+\d+(?:[–-]\d+)?(?![.\d]))*"
ITEM = rf"(?:Eq\.\s+{NUMBERS}|Alg\.\s+{NUMBERS}|§[A-Z\d][.\d]*|App\.\s+[A-Z][.\d]*" \
       r"|Theorem\s+\d|Table\s+\d)"
CITATION = re.compile(rf"(?<!\w)({'|'.join(PAPERS)})\s+({ITEM}(?:,\s+{ITEM})*)")


def citations(text):
    """{(paper, item)} of all that `text` cites: ("DDPM", "Eq. 7"), ("ADM", "App. F") …"""
    found = set()
    text = re.sub(r"\n\s*# ", "\n", text)                # a citation may go on in the next line
    for paper, items in CITATION.findall(text):
        for item in re.findall(ITEM, items):
            kind, _, rest = re.sub(r"\s+", " ", item).rstrip(".").partition(" ")
            if kind in ("Eq.", "Alg."):
                found |= {(paper, f"{kind} {n}") for n in numbers(rest)}
            else:
                found.add((paper, f"{kind} {rest}".strip()))
    return found


def numbers(text):
    """The numbers of "4, 7–9": 4, 7, 8, 9."""
    for part in text.split(","):
        first, _, last = part.replace("–", "-").partition("-")
        yield from range(int(first), int(last or first) + 1)


def rows():
    """(paper, number, meaning, function, test) of each row of each paper's table."""
    paper = None
    for line in PAGE.splitlines():
        if line.startswith("## "):
            paper = line[3:].partition(":")[0]
        elif line.startswith("| ") and not line.startswith("| no."):
            yield paper, *(cell.strip() for cell in line.strip("|").split(" | "))


def items(number):
    """What a row's first cell stands for, as it is cited: (7) is Eq. 7, (28)–(31) four of them."""
    if number.startswith("("):
        return [f"Eq. {n}" for n in numbers(re.sub(r"[()]", "", number))]
    return [number.partition(",")[0] if number.startswith(("§", "App.", "Table")) else number]


def found(name):
    """What a dotted name relative to tinydiff leads to; of a property, its function."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if (ROOT / "tinydiff" / Path(*parts[:cut])).with_suffix(".py").exists():
            thing = import_module(".".join(["tinydiff", *parts[:cut]]))
            for part in parts[cut:]:
                thing = getattr(thing, part)
            return getattr(thing, "fget", thing)
    raise AttributeError(f"no module of tinydiff begins {name}")


ROWS = list(rows())
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")


@pytest.mark.parametrize(("text", "expected"), [
    ("x = y  # DDPM Eq. 7", {("DDPM", "Eq. 7")}),
    ("DDPM Eq. 6, 7, CFG Eq. 3", {("DDPM", "Eq. 6"), ("DDPM", "Eq. 7"), ("CFG", "Eq. 3")}),
    ("iDDPM Eq. 4–6", {("iDDPM", "Eq. 4"), ("iDDPM", "Eq. 5"), ("iDDPM", "Eq. 6")}),
    ("ADM Alg. 2, Eq. 11-12", {("ADM", "Alg. 2"), ("ADM", "Eq. 11"), ("ADM", "Eq. 12")}),
    ("as DDPM\n    Alg. 2, line 4", {("DDPM", "Alg. 2")}),
    ("# ADM Eq. 16,\n    # 17", {("ADM", "Eq. 16"), ("ADM", "Eq. 17")}),
    ("LDM §3.3. And EDM Table 1", {("LDM", "§3.3"), ("EDM", "Table 1")}),
    ("DDIM Eq. 14, 2011.13456", {("DDIM", "Eq. 14")}),
    ("ADM App. F. DDIM Theorem 1", {("ADM", "App. F"), ("DDIM", "Theorem 1")}),
    ("XDDPM Eq. 7, DPM++ Eq. 9, DDPM 7", set()),
])
def test_a_citation_names_paper_and_items(text, expected):
    assert citations(text) == expected


@pytest.mark.parametrize("paper", PAPERS)
def test_every_equation_and_algorithm_has_exactly_one_row(paper):
    equations, algorithms, rest = PAPERS[paper]
    expected = [*(f"Eq. {n}" for n in range(1, equations + 1)),
                *(f"Alg. {n}" for n in range(1, algorithms + 1)), *rest]
    listed = [item for row in ROWS if row[0] == paper
              for item in (items(row[1]) if row[1].startswith("(") else [row[1]])]
    assert listed == expected


def test_every_row_belongs_to_a_paper_of_the_notation_and_says_what_its_equation_says():
    notation = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    for paper, number, meaning, *cells in ROWS:
        assert f"| {paper} | " in notation
        assert len(cells) == 2, number
        assert len(meaning) > 3, number


def names(cell):
    """The names in a cell of code; none of a reason in italics. Nothing else is a cell."""
    if re.fullmatch(r"\*[^*]{8,}\*", cell):
        return []
    assert re.fullmatch(r"`[\w.:]+`(, `[\w.:]+`)*", cell), f"neither names nor a reason: {cell}"
    return re.findall(r"`([^`]+)`", cell)


@each_row
def test_the_functions_of_a_row_exist_and_cite_it(row):
    paper, number, _, cell, _ = row
    for name in names(cell):
        missing = {(paper, item) for item in items(number)} - citations(
            inspect.getsource(found(name)))
        assert not missing, f"{name} does not cite {missing}"


@each_row
def test_the_tests_of_a_row_exist(row):
    assert set(names(row[-1])) <= TESTS


def test_whatever_the_source_cites_is_in_the_ledger():
    listed = {(row[0], item) for row in ROWS for item in items(row[1])}
    for path in sorted((ROOT / "tinydiff").rglob("*.py")):
        cited = {c for c in citations(path.read_text(encoding="utf-8"))
                 if c[1].startswith(("Eq.", "Alg."))}
        assert cited <= listed, path.name
