"""Data: the published numbers, every way a file may come, and every way it may be wrong."""

import gzip
import hashlib
import lzma
import pickle
import re
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_helpers import binary_batch, idx, python_batch, real_data, tar_gz
from hypothesis import given, strategies as st

from tinydiff import data
from tinydiff.data import cifar10, mnist, sources
from tinydiff.data.idx import read_idx

SHA = "[0-9a-f]{64}"
NOWHERE = ("http://127.0.0.1:9/mnist/a", "http://localhost:9/mnist/a")


@pytest.fixture(autouse=True)
def no_files_of_ours(monkeypatch, tmp_path):
    """No data folder, an empty cache, and no network."""
    monkeypatch.delenv("TINYDIFF_DATA_DIR", raising=False)
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("NO_PROXY", "*")
    for files in mnist, cifar10:
        nowhere = {key: tuple(replace(file, urls=NOWHERE) for file in those)
                   for key, those in files.FILES.items()}
        monkeypatch.setattr(files, "FILES", nowhere)
    monkeypatch.setattr(cifar10, "BINARY", replace(cifar10.BINARY, urls=NOWHERE))


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# the published numbers

def test_the_digits_are_the_published_test_images():
    digits = data.load("digits")
    assert (digits.images.shape, digits.images.dtype) == ((10_000, 28, 28, 1), np.uint8)
    assert (digits.labels.shape, digits.labels.dtype) == ((10_000,), np.int64)
    assert digits.images.sum(dtype=int) == 264_923_200
    assert np.bincount(digits.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974,
                                                   1009]
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert [digits.classes[label] for label in digits.labels[:3]] == ["seven", "two", "one"]
    assert digits.source == "embedded: MNIST's 10,000 test images"


def test_the_embedded_files_are_the_published_ones_byte_for_byte():
    for file in mnist.FILES["mnist", "test"]:
        raw = (sources.PACKAGED / file.path.split("/")[1]).read_bytes()
        assert (len(raw), sha256(raw)) == (file.size, file.checksum)


NUMBERS = {     # (set, split): sum of all pixels, images of each class, first ten labels
    ("mnist", "train"): (
        1_567_298_545, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    ("mnist", "test"): (
        264_923_200, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
    ("fashion-mnist", "test"): (573_469_082, [1000] * 10, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])}


@pytest.mark.parametrize(("name", "split"), NUMBERS)
def test_the_idx_sets_have_the_published_numbers(monkeypatch, name, split):
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(real_data(name)))
    loaded = data.load(name, split)
    total, counts, first = NUMBERS[name, split]
    assert loaded.images.sum(dtype=int) == total
    assert np.bincount(loaded.labels).tolist() == counts
    assert loaded.labels[:10].tolist() == first
    assert re.fullmatch(r"TINYDIFF_DATA_DIR: \S+-images-idx3-\S+, \S+-labels-\S+", loaded.source)


def test_cifar10_test_has_the_published_numbers(monkeypatch):
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(real_data("cifar-10")))
    test = data.load("cifar10", "test")
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert [test.classes[label] for label in test.labels[:4]] == ["cat", "ship", "ship", "airplane"]


@pytest.mark.slow
def test_cifar10_train_has_the_published_numbers(monkeypatch):
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(real_data("cifar-10")))
    train = data.load("cifar10")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(train.labels[:10_000]).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030,
                                                           1001, 1025, 981]
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert train.images[0, 0, :7, 0].tolist() == [59, 43, 50, 68, 98, 119, 139]
    levels = np.arange(256) / 255
    shares = np.array([np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(3)])
    shares = shares / shares.sum(1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)


# small sets that stand in for the published ones

@pytest.fixture
def small(monkeypatch, tmp_path, rng):
    """A tiny "mnist": its train files as bytes, with the tables of hashes to match."""
    images, labels = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8), np.arange(5, dtype=np.uint8)
    packed = []
    for array, file in zip((images, labels), mnist.FILES["mnist", "train"]):
        raw = idx(array)
        gz = gzip.compress(raw, mtime=0)
        file = replace(file, size=len(gz), checksum=sha256(gz), unpacked=sha256(raw))
        packed.append((file, gz, raw))
    monkeypatch.setitem(mnist.FILES, ("mnist", "train"), tuple(file for file, _, _ in packed))
    return images, packed


def put(folder, small, plain=False):
    """Lay the tiny set out in a data folder."""
    for file, gz, raw in small[1]:
        path = folder / (file.path.removesuffix(".gz") if plain else file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw if plain else gz)
    return folder


@pytest.mark.parametrize("plain", [False, True])
def test_idx_files_may_be_plain_or_gzipped(monkeypatch, tmp_path, small, plain):
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(put(tmp_path / "mine", small, plain)))
    loaded = data.load("mnist")
    np.testing.assert_array_equal(loaded.images[..., 0], small[0])
    assert loaded.labels.tolist() == [0, 1, 2, 3, 4]
    end = "ubyte" if plain else "ubyte.gz"
    assert loaded.source == (f"TINYDIFF_DATA_DIR: train-images-idx3-{end}, train-labels-idx1-{end}")


def test_your_folder_comes_before_the_cache(monkeypatch, tmp_path, small):
    put(tmp_path / "cache" / "tinydiff", small)
    assert data.load("mnist").source.startswith("cache: train-images")
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(put(tmp_path / "mine", small)))
    assert data.load("mnist").source.startswith("TINYDIFF_DATA_DIR: train-images")


def test_reading_your_folder_does_not_write_there(monkeypatch, tmp_path, small):
    mine = put(tmp_path / "mine", small)
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(mine))
    data.load("mnist")
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before


def test_mnists_test_split_needs_no_network():
    test, digits = data.load("mnist", "test"), data.load("digits")
    assert test.source == digits.source
    np.testing.assert_array_equal(test.labels, digits.labels)


@pytest.mark.parametrize("spoil", [
    lambda raw: raw[:-1], lambda raw: raw[:len(raw) // 2], lambda raw: b"", lambda raw: raw + b"x",
    lambda raw: raw[:100] + bytes([raw[100] ^ 1]) + raw[101:], lambda raw: b"<html>404</html>"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_damaged_file_is_told_with_both_hashes(monkeypatch, tmp_path, small, spoil, plain):
    mine = put(tmp_path / "mine", small, plain)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(mine))
    path = next(mine.rglob("*images*"))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"is damaged: expected sha256 {SHA}, found {SHA}; replace "
                                         "it in that folder") as error:
        data.load("mnist")
    assert one_line(error).startswith(f"{path.name} (TINYDIFF_DATA_DIR)")


def test_the_digits_do_not_look_at_your_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(tmp_path / "missing"))
    assert len(data.load("digits").images) == 10_000
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        data.load("mnist")


# CIFAR-10's four forms

@pytest.fixture
def batches(monkeypatch, rng):
    """Six tiny batches {name: (pixels, labels)}, with the hashes of their python form."""
    made = {name: (rng.integers(0, 256, (3, 3072), dtype=np.uint8), rng.integers(0, 10, 3).tolist())
            for name in cifar10.BATCHES}
    monkeypatch.setattr(cifar10, "BATCHES", {name: sha256(python_batch(*batch))
                                             for name, batch in made.items()})
    return made


def lay_out(form, folder, batches, monkeypatch):
    """Write the batches in one of the four forms, with the archive's checksum to match."""
    folder = folder / "cifar-10"
    folder.mkdir(parents=True)
    if form in ("", ".xz"):
        for name, batch in batches.items():
            raw = python_batch(*batch)
            (folder / f"{name}{form}").write_bytes(lzma.compress(raw) if form else raw)
        return
    if form == "python":
        files = {f"cifar-10-batches-py/{k}": python_batch(*b) for k, b in batches.items()}
    else:
        files = {f"cifar-10-batches-bin/{k}.bin": binary_batch(*b) for k, b in batches.items()}
        files["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\n"
    path = folder / f"cifar-10-{form}.tar.gz"
    tar_gz(path, dict(sorted(files.items(), reverse=True)))
    md5 = "md5:" + hashlib.md5(path.read_bytes()).hexdigest()
    constant = form.upper()
    monkeypatch.setattr(cifar10, constant, replace(getattr(cifar10, constant), checksum=md5))


@pytest.mark.parametrize("form", ["", ".xz", "python", "binary"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_is_the_same_in_its_four_forms(monkeypatch, tmp_path, batches, form, split):
    lay_out(form, tmp_path / "mine", batches, monkeypatch)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(tmp_path / "mine"))
    loaded = data.load("cifar10", split)
    names = [name for name in batches if ("test" in name) == (split == "test")]
    pixels = np.concatenate([batches[name][0] for name in names]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(loaded.images.transpose(0, 3, 1, 2), pixels)
    assert loaded.labels.tolist() == [n for name in names for n in batches[name][1]]
    assert (loaded.labels.dtype, loaded.images.flags.c_contiguous) == (np.int64, True)


@pytest.mark.parametrize("form", ["", ".xz", "python", "binary"])
@pytest.mark.parametrize("spoil", [lambda raw: raw[:-9], lambda raw: raw[:99] + b"?" + raw[100:]])
def test_a_damaged_cifar10_file_is_told_before_it_is_opened(monkeypatch, tmp_path, batches, form,
                                                            spoil):
    lay_out(form, tmp_path / "mine", batches, monkeypatch)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(tmp_path / "mine"))
    for path in (tmp_path / "mine" / "cifar-10").iterdir():
        path.write_bytes(spoil(path.read_bytes()))
    monkeypatch.setattr(cifar10, "BatchUnpickler", None)
    with pytest.raises(ValueError, match=r"is damaged: expected (sha256|md5) [0-9a-f]+, found "):
        data.load("cifar10")


def test_a_missing_batch_is_named(monkeypatch, tmp_path, batches):
    lay_out(".xz", tmp_path / "mine", batches, monkeypatch)
    (tmp_path / "mine" / "cifar-10" / "data_batch_3.xz").unlink()
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3 beside the other batches"):
        data.load("cifar10")
    assert len(data.load("cifar10", "test").images) == 3


class Malicious:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_even_with_the_right_hash(monkeypatch, tmp_path, batches,
                                                                     capsys, protocol):
    evil = pickle.dumps(Malicious(), protocol)
    (tmp_path / "cifar-10").mkdir()
    (tmp_path / "cifar-10" / "test_batch").write_bytes(evil)
    monkeypatch.setitem(cifar10.BATCHES, "test_batch", sha256(evil))
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"asks for \w+\.print, which is not allowed"):
        data.load("cifar10", "test")
    assert capsys.readouterr().out == ""


# the network

def test_offline_one_sentence_says_what_was_wanted_and_what_to_do():
    with pytest.raises(OSError, match="could not be downloaded") as error:
        data.load("mnist")
    text = one_line(error)
    for words in ("mnist/train-images-idx3-ubyte.gz (9.9 MB)", "127.0.0.1:9", "localhost:9",
                  "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                  "TINYDIFF_DATA_DIR", "`digits` needs no network"):
        assert words in text


def test_without_pooch_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert len(data.load("digits").images) == 10_000
    assert len(data.load("mnist", "test").images) == 10_000
    with pytest.raises(OSError, match=r"pip install pooch, or put .* md5 c32a1d4") as error:
        data.load("cifar10")
    one_line(error)


@pytest.fixture
def serve(tmp_path):
    """Serve tmp_path/www on this machine: url of a path below it."""
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}),
                      directory=tmp_path / "www")
    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield lambda path: f"http://127.0.0.1:{server.server_port}/{path}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def served(monkeypatch, tmp_path, small, serve):
    """The tiny set on its third host; the first is down and the second sends something else."""
    put(tmp_path / "www", small)
    (tmp_path / "www" / "wrong.gz").write_bytes(b"not this")
    urls = (NOWHERE[0], serve("wrong.gz"))
    monkeypatch.setitem(mnist.FILES, ("mnist", "train"), tuple(
        replace(file, urls=(*urls, serve(file.path))) for file, _, _ in small[1]))
    return tmp_path / "www"


def test_the_first_host_that_sends_the_right_file_is_enough(served, small):
    assert data.available()[1].place == "download"
    loaded = data.load("mnist")
    np.testing.assert_array_equal(loaded.images[..., 0], small[0])
    assert loaded.source.startswith("cache: train-images")
    for path in served.rglob("*.gz"):
        path.unlink()
    assert data.load("mnist").source == loaded.source       # the second time from the cache


def test_hosts_that_send_something_else_are_named(served):
    for path in served.glob("mnist/*"):
        path.write_bytes(b"altered on the way")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+ \(sent another file\)"):
        data.load("mnist")


def test_fetch_replaces_a_damaged_copy_in_the_cache(served, tmp_path, small):
    copy = put(tmp_path / "cache" / "tinydiff", small) / "mnist" / "train-images-idx3-ubyte.gz"
    copy.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"\(cache\) is damaged.*`tinydiff data fetch`"):
        data.load("mnist")
    rows = data.fetch("mnist")
    assert [(row.split, row.place) for row in rows] == [("train", "cache"), ("test", "embedded")]
    np.testing.assert_array_equal(data.load("mnist").images[..., 0], small[0])


# what the command line shows

def test_available_says_where_each_split_would_come_from(monkeypatch, tmp_path, small):
    rows = {(row.name, row.split): row[2:] for row in data.available()}
    assert rows["digits", "train"] == (10_000, "embedded", 1_648_877 + 4_542)
    assert rows["mnist", "test"] == rows["digits", "train"]
    assert rows["fashion-mnist", "train"] == (60_000, "download", 26_421_880 + 29_515)
    assert rows["cifar10", "train"] == (50_000, "download", 170_052_171)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(put(tmp_path / "mine", small)))
    size = sum(len(gz) for _, gz, _ in small[1])
    assert ("mnist", "train", 60_000, "TINYDIFF_DATA_DIR", size) in data.available()


def test_verify_says_what_is_good_damaged_and_missing(monkeypatch, tmp_path, small):
    assert [problem for _, problem in data.verify("digits")] == [""]
    (train, missing), (test, good) = data.verify("mnist")
    assert train.split == "train"
    assert missing == "mnist train is not here yet: tinydiff data fetch mnist"
    assert (test.split, good) == ("test", "")
    mine = put(tmp_path / "mine", small)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(mine))
    (mine / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    (_, damaged), _ = data.verify("mnist")
    assert "train-labels-idx1-ubyte.gz (TINYDIFF_DATA_DIR) is damaged" in damaged


@pytest.mark.parametrize("ask", [data.load, data.fetch, lambda name: list(data.verify(name))])
@pytest.mark.parametrize(("name", "nearest"), [("mnits", "mnist"), ("cifar-10", "cifar10"),
                                               ("fashion", "fashion-mnist"), ("digit", "digits")])
def test_an_unknown_set_is_refused_with_the_nearest_name(ask, name, nearest):
    with pytest.raises(ValueError, match=f"no data set '{name}'; did you mean '{nearest}'"):
        ask(name)


@pytest.mark.parametrize(("name", "split", "words"), [
    ("digits", "test", "digits has the train split, got 'test'"),
    ("mnist", "valid", "mnist has the train and the test split, got 'valid'")])
def test_an_unknown_split_is_refused(name, split, words):
    with pytest.raises(ValueError, match=words):
        data.load(name, split)


# IDX

@given(st.lists(st.integers(0, 5), max_size=4))
def test_an_idx_file_of_any_shape_comes_back(shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_idx(idx(array), "a"), array)


@pytest.mark.parametrize(("raw", "words"), [
    (b"", "a-ubyte is not an IDX file.*got an empty file"),
    (b"\0\0\x0d\1\0\0\0\0", "expected it to begin 00 00 08, got 00 00 0d"),
    (b"\0\0\x08\3\0\0\0\1", "is not an IDX file"),
    (b"\0\0\x08\1\0\0\0\5abcd", r"announces 5 bytes for shape \(5,\), but holds 4"),
    (b"\0\0\x08\1\0\0\0\3abcd", r"announces 3 bytes for shape \(3,\), but holds 4")])
def test_what_is_not_idx_is_refused(raw, words):
    with pytest.raises(ValueError, match=words):
        read_idx(raw, "a-ubyte")
