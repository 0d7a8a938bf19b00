"""Files appear whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def replace_atomically(path):
    """Open a file for writing bytes that takes the place of `path` when the block ends well.

    Until then it is a temporary file in the same folder, which is made if need be. If anything goes
    wrong (disk full, Ctrl-C), the temporary file is removed and whatever stood at `path` stays.
    Raises OSError naming `path`.
    """
    target = reachable(path)
    temporary = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())                         # on disk before it has a name
        os.replace(temporary, target)
    except BaseException as error:
        if temporary.exists():
            temporary.unlink()
        ours = {None, temporary, str(temporary)}
        if isinstance(error, OSError) and error.errno and error.filename in ours:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_atomically(path, data):
    """Replace the contents of `path` by the bytes `data`, or leave it as it was."""
    with replace_atomically(path) as file:
        file.write(data)


def append(path, data):
    """Add the bytes `data` to the file at `path`, all or none of them.  OSError naming `path`."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data):]              # a full disk may take a part
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from None


def probe(path):
    """Make the folder of `path` and see that a file can be written there.  OSError naming `path`.

    So that long work that ends in this file does not find out at its end.
    """
    folder = reachable(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def reachable(path):
    """The file that `path` leads to, so that a link stays a link; OSError if it is no file."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} cannot be written: something that is not a file has this name")
    return target
