"""Files appear whole or not at all, whatever goes wrong."""

import os
import subprocess
import sys

import pytest

from tinydiff.files import append, probe, replace_atomically, write_atomically


def everything_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_new_contents_replace_the_old(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert everything_in(tmp_path) == {"a.bin": b"new"}


def test_a_missing_folder_is_made(tmp_path):
    write_atomically(tmp_path / "deep" / "er" / "a.bin", b"x")
    assert (tmp_path / "deep" / "er" / "a.bin").read_bytes() == b"x"


def test_until_the_block_ends_the_old_file_is_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replace_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def write_half(path, trouble):
    with replace_atomically(path) as file:
        file.write(b"half")
        raise trouble


@pytest.mark.parametrize("trouble", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3)])
def test_trouble_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, trouble):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(trouble)):
        write_half(path, trouble)
    assert everything_in(tmp_path) == {"a.bin": b"old"}


def test_a_new_file_gets_the_permissions_that_open_would_give(tmp_path):
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_name_as_long_as_the_system_allows_can_be_replaced(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"x")
    assert everything_in(tmp_path) == {path.name: b"x"}


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="run cannot be written"):
        write_atomically(tmp_path / "run", b"x")
    assert (tmp_path / "run").is_dir()


def test_appending_adds_to_the_end_and_starts_a_missing_file(tmp_path):
    for line in (b"one\n", b"two\n"):
        append(tmp_path / "log", line)
    assert everything_in(tmp_path) == {"log": b"one\ntwo\n"}


APPENDING = """
import errno, resource, sys
from tinydiff.files import append
resource.setrlimit(resource.RLIMIT_FSIZE, (25, 25))
try:
    for _ in range(4):
        append(sys.argv[1], b"ten bytes\\n")
except OSError as error:
    print(errno.errorcode[error.errno], error.filename == sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are a matter of Unix")
def test_a_line_that_finds_no_room_leaves_no_half_of_it(tmp_path):
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", APPENDING, str(path)], check=True, text=True,
                          capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.split() == ["EFBIG", "True"]
    assert path.read_bytes() == 2 * b"ten bytes\n"


def test_a_probe_makes_the_folder_and_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "deep" / "a.png"
    probe(path)
    assert everything_in(path.parent) == {}
    path.write_bytes(b"old")
    probe(path)
    assert everything_in(path.parent) == {"a.png": b"old"}
    with pytest.raises(OSError, match="deep cannot be written"):
        probe(path.parent)
    with pytest.raises(OSError, match=r"File exists|Not a directory") as caught:
        probe(path / "b.png")                               # a file on the way
    assert caught.value.filename == str(path / "b.png")


LIMITED = """
import errno, resource, signal, sys
from tinydiff.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(sys.argv[1], bytes(100_000))
except OSError as error:
    print(errno.errorcode[error.errno], error.filename == sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are a matter of Unix")
def test_a_file_size_limit_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True, text=True,
                          capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.split() == ["EFBIG", "True"]
    assert everything_in(tmp_path) == {"a.bin": b"old"}


def write_to_a_full_disk(path):
    with replace_atomically(path) as file, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), file.fileno())               # from here on the disk is full
        file.write(b"x" * 100_000)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        write_to_a_full_disk(tmp_path / "a.bin")
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert everything_in(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_write_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write_atomically(tmp_path / "a.bin", b"x")
    assert caught.value.filename == str(tmp_path / "a.bin")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_probe_finds_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    for path in (tmp_path / "a.png", tmp_path / "deep" / "a.png"):
        with pytest.raises(PermissionError) as caught:
            probe(path)
        assert caught.value.filename == str(path)
