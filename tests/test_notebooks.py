"""The notebook generator finds scripts by number or name, and says which cell fails."""

import pytest

import notebooks


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    fails = "# %%\nx = 1\n\n# %% [markdown]\n# Now\n\n# %%\nx / 0\n"
    works = "# %%\nimport os\n\nassert os.environ['TINYDIFF_FAST']\n"
    (tmp_path / "03_autograd.py").write_text(fails)
    (tmp_path / "05_training.py").write_text(works)
    return tmp_path


def test_a_script_is_found_by_number_by_name_and_by_both(folder):
    assert [path.name for path in notebooks.scripts()] == ["03_autograd.py", "05_training.py"]
    for name in ("05", "training", "05_training"):
        assert [path.name for path in notebooks.scripts(name)] == ["05_training.py"]


def test_an_unknown_name_is_answered_with_the_known_ones(folder):
    with pytest.raises(SystemExit, match="none is called 04; there are 03_autograd, 05_training"):
        notebooks.scripts("04")


def test_two_notebooks_may_not_share_a_number(folder):
    (folder / "05_again.py").touch()
    with pytest.raises(SystemExit, match="two share a number"):
        notebooks.scripts()


def test_a_failure_names_notebook_and_cell(folder):
    with pytest.raises(SystemExit, match=r"03_autograd, cell c02:\n(.|\n)*ZeroDivisionError"):
        notebooks.check(folder / "03_autograd.py")


def test_a_script_runs_fast_and_misses_its_notebook(folder):
    pytest.importorskip("nbformat")
    with pytest.raises(SystemExit, match=r"05_training\.ipynb is missing"):
        notebooks.check(folder / "05_training.py")


def test_what_is_written_is_executed_repeatable_and_noticed_when_it_grows_stale(folder):
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    script = folder / "07_text.py"
    script.write_text("# %% [markdown]\n# Words\n\n# %%\n6 * 7\n")
    notebooks.write(script)
    written = script.with_suffix(".ipynb").read_bytes()
    assert b'"42"' in written
    assert b"language_info" not in written
    notebooks.check(script)
    notebooks.write(script)
    assert script.with_suffix(".ipynb").read_bytes() == written
    script.write_text(script.read_text() + "7 * 6\n")
    with pytest.raises(SystemExit, match="shows other cells"):
        notebooks.check(script)
