"""Does a wheel hold what stands on disk?  python tools/check_wheel.py dist/tinydiff-….whl

`packages =` and `package_data` in setup.cfg are written by hand, so a new folder or a new kind of
file is easily left out of the wheel. Everything under tinydiff/ and kernels/ is meant to ship.
"""

import sys
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

FOLDERS = {"tinydiff": "tinydiff", "kernels": "tinydiff_kernels"}      # on disk -> as installed


def files_on_disk(root):
    """Every file that belongs to the product, by its installed name, sorted."""
    return sorted(
        str(PurePosixPath(installed, *path.relative_to(root / folder).parts))
        for folder, installed in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.parts))


def packages_on_disk(root):
    """Every folder that holds Python files, as the dotted name of a package, sorted."""
    parents = {PurePosixPath(name).parent for name in files_on_disk(root) if name.endswith(".py")}
    return sorted(str(parent).replace("/", ".") for parent in parents)


def packages_declared(root):
    """The packages that setup.cfg lists, sorted."""
    return sorted(_setup_cfg(root)["options"]["packages"].split())


def files_declared(root):
    """The files that setup.cfg packs: each package's modules, and the patterns of package_data."""
    data = _setup_cfg(root)["options.package_data"]
    files = set()
    for package in packages_declared(root):
        folder = PurePosixPath(package.replace(".", "/"))
        patterns = f"*.py, {data.get(package, '')}, {data.get('*', '')}".split(", ")
        depths = {str(folder / pattern): pattern.count("/") for pattern in patterns if pattern}
        files |= {name for name in files_on_disk(root) for pattern, depth in depths.items()
                  if PurePosixPath(name).match(pattern)
                  and len(PurePosixPath(name).parts) == len(folder.parts) + depth + 1}
    return sorted(files)


def _setup_cfg(root):
    config = ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return config


def main(wheel):
    root = Path(__file__).resolve().parents[1]
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    on_disk = set(files_on_disk(root))
    for name in sorted(packed ^ on_disk):
        print(f"{name}: {'in the wheel only' if name in packed else 'missing from the wheel'}")
    if packed != on_disk:
        raise SystemExit(f"{wheel}: does not hold what stands on disk; mend setup.cfg")
    print(f"{wheel}: all {len(packed)} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
