"""What README promises is true: its example runs, its files exist, its tables are fresh."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_prints_what_its_comments_say():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=ROOT,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shape, points = run.stdout.split("\n", 1)
    assert shape == "(8, 28, 28, 1) uint8"
    assert set(map(float, re.findall(r"-?\d+\.\d*", points))) <= {-1.0, 0.5, 1.0}


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_every_command_is_one_that_tinydiff_has():
    from tinydiff.cli import parser
    typed = re.findall(r"^tinydiff (.+)$", README, re.MULTILINE)
    assert typed
    for line in typed:
        parser().parse_args(shlex.split(line))


def test_the_reading_order_is_up_to_date():
    subprocess.run([sys.executable, "tools/reading.py", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("block", ["digit-quality", "demo-time", "reading"])
def test_generated_blocks_are_filled(block):
    inside = README.partition(f"<!-- {block}:begin -->")[2].partition(f"<!-- {block}:end -->")[0]
    assert "|" in inside
