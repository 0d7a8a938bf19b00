"""What setup.cfg packs is what stands on disk, compared without building a wheel."""

from pathlib import Path

from check_wheel import files_declared, files_on_disk, packages_on_disk

ROOT = Path(__file__).resolve().parents[1]


def test_every_file_of_the_product_is_packed():
    assert set(files_on_disk(ROOT)) - set(files_declared(ROOT)) == set()


def test_every_package_can_be_imported_as_a_package():
    folders = [ROOT / name.replace("tinydiff_kernels", "kernels").replace(".", "/")
               for name in packages_on_disk(ROOT)]
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_a_forgotten_package_and_a_forgotten_data_file_are_noticed(tmp_path):
    for name in ["tinydiff/__init__.py", "tinydiff/new/__init__.py", "tinydiff/data.bin"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "setup.cfg").write_text(
        "[options]\npackages =\n    tinydiff\n[options.package_data]\ntinydiff = *.toml\n")
    missing = set(files_on_disk(tmp_path)) - set(files_declared(tmp_path))
    assert missing == {"tinydiff/new/__init__.py", "tinydiff/data.bin"}
