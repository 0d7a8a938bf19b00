"""Pages and marks say of a GPU what was measured there, and call nothing verified that was not."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE, OTHER = "norm/rung4_vector.cu", "conv2d/rung7_mma.cu"
BLOCKS = {"kernels.md": ("gpu-verified", "gpu-speed"), "readme.md": ("gpu-step",)}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_page
    return gpu_page


def row(op="norm.rows", rung="vector", kernels=(FILE + " rows_bf16", FILE + " combine"), **changes):
    return {"op": op, "rung": rung, "shape": "P=5 D=6", "dtype": "bfloat16", "ok": True,
            "bit_equal": True, "launched": list(kernels)} | changes


def report_of(page, *rows, **meta):
    files = {FILE: {"rows_bf16": {}, "combine": {}}, OTHER: {"forward": {}}}
    return {"meta": {"device": "NVIDIA H100", "date": "2026-12-24", "backend": "gpu",
                     "dirty": False, "commit": "0123456789", "quick": False,
                     "versions": {"torch": "2.11"},
                     "digests": {file: page.digest(file) for file in files},
                     "planted overrun": {"ok": True}} | meta,
            "build": {"files": files}, "left_out": [], "step": None, "sampler": None,
            "ceilings": {"bytes": {"per_second": 3e12}, "bfloat16": {"per_second": 8e14},
                         "float32": {"per_second": 5e13}}, "kernels": list(rows)}


def made(page, folder, *reports):
    """({name of a page: its text}, the marks) of reports."""
    for number, report in enumerate(reports):
        (folder / f"{number}.json").write_text(json.dumps(report))
    for name, blocks in BLOCKS.items():
        (folder / name).write_text("".join(f"<!-- {b}:begin -->\n<!-- {b}:end -->\n"
                                           for b in blocks))
    page.main(["--reports", str(folder), "--kernels", str(folder / "kernels.md"),
               "--readme", str(folder / "readme.md"), "--verified", str(folder / "marks")])
    return ({name: (folder / name).read_text() for name in BLOCKS},
            json.loads((folder / "marks").read_text()))


def test_a_file_is_verified_whose_kernels_all_ran_and_were_right(page, tmp_path):
    pages, marks = made(page, tmp_path, report_of(page, row()))
    assert marks == {FILE: {"date": "2026-12-24", "device": "NVIDIA H100",
                            "kernels": ["combine", "rows_bf16"]}}
    assert f"- NVIDIA H100, 2026-12-24, commit 0123456: `{FILE}`" in pages["kernels.md"]
    assert OTHER not in pages["kernels.md"]
    assert "1 files of kernels are verified" in pages["readme.md"]


@pytest.mark.parametrize("rows", [
    [row(ok=False)], [row(bit_equal=False)], [row(kernels=[FILE + " rows_bf16"])], [],
    [row(), row(shape="P=7 D=33", ok=False, launched=[])],
    [row(), row("norm.forward", shape="N=1", ok=False)]],
    ids=["wrong", "never the same", "half of its kernels", "none", "wrong elsewhere",
         "wrong in another operation"])
def test_a_file_is_not_verified_that_was_wrong_anywhere_or_never_ran(page, tmp_path, rows):
    pages, marks = made(page, tmp_path, report_of(page, *rows))
    assert marks == {}
    assert "No rung is GPU-verified yet" in pages["kernels.md"]
    assert "Nothing is verified yet" in pages["readme.md"]


@pytest.mark.parametrize("meta", [{"quick": True}, {"planted overrun": {"ok": False}},
                                  {"digests": {FILE: "of other sources"}}, {"backend": "host"}],
                         ids=["quick", "blind to overruns", "changed since", "no GPU"])
def test_a_report_that_cannot_vouch_for_its_kernels_verifies_none(page, tmp_path, meta):
    assert made(page, tmp_path, report_of(page, row(), **meta))[1] == {}


def test_a_run_without_time_for_all_of_its_cases_verifies_none(page, tmp_path):
    report = report_of(page, row())
    report["left_out"] = ["correctness: norm.rows vector …, and the 9 after it: no time was left"]
    assert made(page, tmp_path, report)[1] == {}
    report["left_out"] = ["correctness: conv2d.forward wgmma …: it needs a GPU of capability 9.0"]
    assert FILE in made(page, tmp_path, report)[1]


def test_another_gpus_failure_takes_no_mark_and_a_newer_report_gives_its_date(page, tmp_path):
    wrong = report_of(page, row(ok=False), device="NVIDIA A100", date="2026-12-25")
    old = report_of(page, row(), date="2026-01-01")
    marks = made(page, tmp_path, old, report_of(page, row()), wrong)[1]
    assert marks[FILE]["date"] == "2026-12-24"


def test_the_fastest_rung_is_bold_and_what_was_not_found_right_is_marked(page, tmp_path):
    fast = row(ms=0.5, floor_ms=0.25, torch_ms=1.0, compile_ms=0.8)
    slow = row(rung="cuda_shuffle", ms=2.0, torch_ms=1.0, compile_ms=0.8, ok=False)
    pages, _ = made(page, tmp_path, report_of(page, fast, slow))
    assert "| norm | shape | vector | cuda_shuffle | floor | torch | compiled | best ÷ torch |" in (
        pages["kernels.md"])
    assert ("| rows, bfloat16 | P=5 D=6 | **0.500** | 2.000 † | 0.250 | 1.000 | 0.800 | 0.62 |"
            in pages["kernels.md"])
    assert "3.0 TB/s, a product does 800.0 TFLOP/s" in pages["kernels.md"]


def test_steps_stand_in_a_table_under_the_gpus_name(page, tmp_path):
    report = report_of(page) | {
        "step": [{"batch": 128, "ours_ms": 12.345, "ours_spread": 0.1, "torch_ms": 20.0}],
        "sampler": [{"batch": 1, "ours_ms": 0.5, "ours_bytes": 3_000_000_000}]}
    text = made(page, tmp_path, report)[0]["readme.md"]
    assert "|  | batch | ours, ms | torch, ms | ours, GB |" in text
    assert "| training step | 128 | 12.35 | 20.00 |  |" in text
    assert "| sampling step | 1 | 0.50 |  | 3.00 |" in text


def test_the_pages_and_marks_are_those_of_the_reports_that_are_here(page, tmp_path):
    copies = {}
    for name, path in (("kernels", ROOT / "kernels" / "README.md"), ("readme", ROOT / "README.md"),
                       ("verified", ROOT / "kernels" / "gpu" / "verified.json")):
        copies[path] = tmp_path / name
        copies[path].write_bytes(path.read_bytes())
    page.main([word for path in copies.values() for word in (f"--{path.name}", str(path))])
    for path, copy in copies.items():
        assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), (
            "python benchmarks/gpu_page.py")


def test_the_marks_are_what_the_list_of_kernels_reads(page, tmp_path, monkeypatch):
    from tinydiff import kernel_commands
    marks = made(page, tmp_path, report_of(page, row()))[1]
    stored = {"verified": marks, "resources": {"kernels": {}}}
    monkeypatch.setattr(kernel_commands, "stored", stored.get)
    said = kernel_commands.marks(kernel_commands.facts("norm", "vector"))
    assert said.endswith("GPU-verified 2026-12-24, NVIDIA H100")
    assert "not yet" in kernel_commands.marks(kernel_commands.facts("conv2d", "mma"))
