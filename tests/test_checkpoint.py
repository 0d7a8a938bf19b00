"""Checkpoints: what is saved comes back, what is damaged is refused, and the library agrees."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors_helpers import by_hand, entry

from tinydiff.checkpoint import DTYPES, load, save

SHA = "[0-9a-f]{64}"
A = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
VIEWS = {"as it is": A, "transposed": A.T, "swapped": A.swapaxes(0, 1), "reversed": A[::-1],
         "every second": A[:, ::2, ::-2], "Fortran": np.asfortranarray(A), "0-d": np.float32(7),
         "a 0-d array": np.array(7.5), "empty": A[:0], "empty inside": np.zeros((3, 0, 2)),
         "broadcast": np.broadcast_to(np.float32(3), (2, 2)), "big-endian": A.astype(">f4"),
         "read-only": np.frombuffer(bytes(8), np.int32), "bool": A > 7}


def same(read, saved):
    saved = np.asarray(saved)
    assert read.dtype == saved.dtype.newbyteorder("=")
    assert read.shape == saved.shape
    np.testing.assert_array_equal(read, saved)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def test_every_layout_of_memory_comes_back_as_it_looked(path):
    save(path, VIEWS, {})
    arrays, config = load(path)
    assert (list(arrays), config) == ([*sorted(arrays)], {})
    for name, saved in VIEWS.items():
        same(arrays[name], saved)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_dtype_comes_back_bit_for_bit(path, rng, dtype):
    saved = rng.integers(0, 2, (3, 16), dtype=np.uint8).view(dtype)
    save(path, {"a": saved}, {})
    read = load(path)[0]["a"]
    assert (read.dtype, read.tobytes()) == (saved.dtype, saved.tobytes())


@st.composite
def strided_arrays(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    base = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    array = base.astype(draw(st.sampled_from(["f4", ">f8", "f2", ">i2", "u1", "?"])))
    steps = tuple(slice(None, None, draw(st.sampled_from([1, -1, 2, -2]))) for _ in shape)
    return array[steps].transpose(draw(st.permutations(range(len(shape)))))


@given(st.dictionaries(st.text(max_size=5).filter(lambda s: s.isprintable()), strided_arrays(),
                       max_size=4))
def test_any_arrays_come_back(tmp_path_factory, saved):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    save(path, saved, {"n": len(saved)})
    arrays, config = load(path)
    assert (arrays.keys(), config) == (saved.keys(), {"n": len(saved)})
    for name in saved:
        same(arrays[name], saved[name])


def test_the_config_comes_back(path):
    config = {"model": {"channels": [32, 64], "lr": 1e-3, "name": "七"}, "step": 2**63, "x": None}
    save(path, {}, config)
    assert load(path) == ({}, config)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    save(tmp_path / "a", {"x": A, "y": A.T}, {"p": 1, "q": 2})
    save(tmp_path / "b", {"y": A.T.copy(), "x": A.astype(">f4")}, {"q": 2, "p": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_laid_out_as_documented(path):
    save(path, {"b": A, "a": np.array([1, 2], np.int16)}, {"k": 1})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__")
    assert length % 8 == 0
    assert header == {"a": entry("I16", [2], 0, 4), "b": entry("F32", [2, 3, 4], 4, 100)}
    assert data[8 + length:] == np.array([1, 2], "<i2").tobytes() + A.tobytes()
    assert (metadata["format"], metadata["config"]) == ("tinydiff 1", '{"k":1}')


def test_what_was_read_may_be_changed(path):
    save(path, {"a": A}, {})
    read = load(path)[0]["a"]
    read += 1
    np.testing.assert_array_equal(read, A + 1)


def test_saving_and_loading_need_memory_for_the_arrays_once(path):
    big = np.zeros((2, 4_000_000), np.float32)              # 32 MB, transposed below
    tracemalloc.start()
    save(path, {"a": big.T, "b": big}, {})
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    load(path)
    loading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert saving < 1.1 * big.nbytes                        # one contiguous copy at a time
    assert loading < 2.1 * big.nbytes                       # the two arrays themselves


def test_every_altered_byte_is_noticed(path):
    save(path, {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 0))}, {"lr": 0.1})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1:])
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
            load(path)


def test_every_cut_and_every_surplus_is_noticed(path):
    save(path, {"a": np.arange(3, dtype=np.float32)}, {"lr": 0.1})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut short|damaged header|not a safetensors file"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="too long"):
        load(path)


def test_an_altered_array_is_told_with_both_hashes(path):
    save(path, {"a": A}, {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"is damaged: expected sha256 {SHA}, found {SHA}"):
        load(path)


@pytest.mark.parametrize(("entries", "size", "words"), [
    ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "b should lie at bytes 8"),
    ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, 20, "b should lie at bytes 8"),
    ({"a": entry("F32", [2], 0, 800)}, 8, "a should lie at bytes 0 to 8"),
    ({"a": entry("F32", [2], 0, 8)}, 4, "cut short: its arrays take 8 bytes, the file has 4"),
    ({"a": entry("F32", [-2], 0, 8)}, 8, "damaged header"),
    ({"a": entry("F32", [True], 0, 4)}, 4, "damaged header"),
    ({"a": entry("F32", [2], 8, 0)}, 8, "should lie"),
    ({"a": entry("F32", [10**30, 0], 0, 0)}, 0, "damaged header"),
    ({"a": entry("F32", [1] * 200, 0, 4)}, 4, "damaged header"),
    ({"a": entry("F31", [2], 0, 8)}, 8, "a has the unknown dtype 'F31'"),
    ({"a": {"dtype": "F32", "shape": [2]}}, 8, "damaged header"),
    ({"a": entry("F32", "ab", 0, 8)}, 8, "damaged header"),
    ({"a": entry(["F32"], [2], 0, 8)}, 8, "damaged header"),
    ({"a": 7}, 8, "damaged header"),
    ({"__metadata__": {"format": 1}}, 0, "must hold strings"),
    ({"__metadata__": [1]}, 0, "damaged header"),
    (b"{]", 0, "damaged header"),
    (b"{" + b'"a":[' * 100_000, 0, "damaged header")])
def test_a_header_that_lies_is_refused(path, entries, size, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(by_hand(path, entries, bytes(size)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "words"), [
    (b"", "an empty file"),
    (b"hello", "5 bytes that begin 68 65 6c 6c 6f"),
    (pickle.dumps({"weights": [1.0]}), "a pickle"),
    (b"PK\x03\x04" + bytes(40), "a zip archive, as PyTorch"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    (struct.pack("<Q", 10**12) + b"{}", "header takes 1000000000000 bytes, 2 are left")])
def test_a_file_of_another_kind_is_named_and_never_unpickled(path, data, words):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        load(path)


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


@pytest.mark.parametrize(("metadata", "words"), [
    ({"format": "tinydiff 2", "config": "{}", "sha256": "0"}, "says 'tinydiff 2', this version"),
    ({"format": "tinydiff 1", "sha256": "0"}, "lost its config"),
    ({"format": "tinydiff 1", "config": "{}"}, "lost its config or its sha256")])
def test_a_later_format_and_a_lost_config_are_refused(path, metadata, words):
    with pytest.raises(ValueError, match=words):
        load(by_hand(path, {"__metadata__": metadata}))


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.array([None])])
def test_a_dtype_that_safetensors_lacks_is_refused_before_writing(path, array):
    with pytest.raises(ValueError, match="a has dtype"):
        save(path, {"a": array}, {})
    assert not path.exists()


def test_the_name_that_the_format_keeps_for_itself_is_refused(path):
    with pytest.raises(ValueError, match="no array may be called __metadata__"):
        save(path, {"__metadata__": A}, {})


def test_bfloat16_is_read_as_float32(path):
    exact = np.array([1.0, -2.5, 3.140625, np.inf, 0.0, 2.0**-130], np.float32)
    upper = (exact.view(np.uint32) >> 16).astype("<u2")
    arrays, _ = load(by_hand(path, {"a": entry("BF16", [2, 3], 0, 12)}, upper.tobytes()))
    assert arrays["a"].dtype == np.float32
    np.testing.assert_array_equal(arrays["a"], exact.reshape(2, 3))


def test_bfloat16_is_read_as_torch_reads_it(path, rng):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensor = torch.from_numpy(rng.standard_normal((5, 7), np.float32)).to(torch.bfloat16)
    library.save_file({"a": tensor, "b": torch.zeros(3, dtype=torch.float16)}, path)
    arrays, config = load(path)
    np.testing.assert_array_equal(arrays["a"], tensor.float().numpy())
    assert (arrays["b"].dtype, config) == (np.float16, {})


def test_the_library_reads_what_we_write(path):
    library = pytest.importorskip("safetensors.numpy")
    save(path, VIEWS, {"k": 1})
    read = library.load_file(path)
    assert read.keys() == VIEWS.keys()
    for name, saved in VIEWS.items():
        same(read[name], saved)


def test_we_read_what_the_library_writes(path, rng):
    library = pytest.importorskip("safetensors.numpy")
    saved = {"z": rng.standard_normal((3, 5)), "a": np.arange(7, dtype=np.uint8), "m": A.copy(),
             "none": np.zeros((0, 4), np.float16), "scalar": np.array(2, np.int64)}
    library.save_file(saved, path, metadata={"format": "pt"})
    arrays, config = load(path)
    assert (arrays.keys(), config) == (saved.keys(), {})
    for name in saved:
        same(arrays[name], saved[name])


LIMITED = """
import resource, signal, sys
import numpy as np
from tinydiff.checkpoint import save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(sys.argv[1], {"a": np.zeros(100_000)}, {})
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are a matter of Unix")
def test_a_file_size_limit_keeps_the_last_good_checkpoint(path):
    save(path, {"a": A}, {"step": 1})
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True, text=True,
                          capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.strip() == "File too large"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
