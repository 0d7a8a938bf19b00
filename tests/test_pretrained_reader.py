"""Published weights: read as stored, put where they belong, and refused whole where they do not."""

import json
import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors_helpers import by_hand, entry

from tinydiff import checkpoint
from tinydiff.checkpoint import BITS, save, write
from tinydiff.nn import Conv2d, Embedding, GroupNorm, Linear, Module
from tinydiff.pretrained.tensors import open_tensors, read_json
from tinydiff.pretrained.weights import UNSET, Place, as_theirs, fill, renamed

BASE = "model"
A = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
ONE_LINE = r"\A[^\n]{1,900}\Z"


def shards(folder, weight_map, **files):
    """An index and its shards: a=["x"] is a.safetensors with the tensor x, which is A."""
    index = folder / f"{BASE}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    for name, keys in files.items():
        write(folder / f"{name}.safetensors", dict.fromkeys(keys, A), {"format": "pt"})


class Net(Module):
    """One parameter of every kind, and two that are halves of one of theirs."""

    def __init__(self, rng):
        self.conv = Conv2d(3, 5, 3, rng=rng)
        self.one = Conv2d(5, 4, 1, rng=rng)
        self.linear = Linear(4, 6, rng=rng)
        self.window = Linear(6, 4, rng=rng)
        self.norm = GroupNorm(4, 2)
        self.table = Embedding(7, 3, rng=rng)
        self.scale, self.shift = Linear(3, 4, rng=rng), Linear(3, 4, rng=rng)


def place(path):
    """Net's names among theirs."""
    key = renamed(path, [(r"^(scale|shift)\.", "emb."), (r"\.(w|scale|table)$", ".weight"),
                         (r"\.(b|shift)$", ".bias")])
    return Place(key, int(path.startswith("shift")), window=path.startswith("window"))


@pytest.fixture
def net(rng):
    """A Net without two equal numbers."""
    net = Net(rng)
    for p in net.parameters().values():
        p.data[...] = rng.standard_normal(p.shape)
    return net


def files_of(net, folder, **changes):
    """Net's weights as a file of theirs, with {key: array} changed, or left out where None."""
    arrays = as_theirs(net, place) | {key.replace("__", "."): a for key, a in changes.items()}
    write(folder / f"{BASE}.safetensors",
          {key: array for key, array in arrays.items() if array is not None}, {"format": "pt"})
    return open_tensors(folder, BASE)


@pytest.mark.parametrize("dtype", BITS)
def test_numbers_of_every_dtype_become_float32_or_int64(tmp_path, rng, dtype):
    bits = rng.integers(0, 2, (5, 32), dtype=np.uint8).view(BITS[dtype])
    by_hand(tmp_path / "model.safetensors", {"a": entry(dtype, [*bits.shape], 0, bits.nbytes)},
            bits.tobytes())
    read = open_tensors(tmp_path, BASE).read("a")
    expected = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else bits
    assert read.dtype == (np.float32 if "F" in dtype else np.int64)
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(read, expected.astype(read.dtype))


def test_a_float64_beyond_float32_is_infinite(tmp_path):
    write(tmp_path / "model.safetensors", {"a": np.array([1e300, -1e300, np.nan, 1e-300])}, {})
    np.testing.assert_array_equal(open_tensors(tmp_path, BASE).read("a"),
                                  [np.inf, -np.inf, np.nan, 0])


@given(st.slices(4))
def test_some_rows_are_those_rows(tmp_path_factory, rows):
    rows = slice(rows.start, rows.stop)                                     # without a step
    folder = tmp_path_factory.mktemp("rows")
    write(folder / "model.safetensors", {"before": A[:1], "a": A, "z": A}, {})
    np.testing.assert_array_equal(open_tensors(folder, BASE).read("a", rows), A[rows])


def test_scalars_and_empty_tensors_are_read(tmp_path):
    write(tmp_path / "model.safetensors", {"a": np.float32(7), "b": A[:0], "c": A[:, :0]}, {})
    tensors = open_tensors(tmp_path, BASE)
    assert {key: tensors.read(key).tolist() for key in tensors} == {"a": 7, "b": [], "c": [[]] * 4}


def test_a_file_cut_after_it_was_opened_is_refused_and_the_process_lives(tmp_path):
    write(tmp_path / "model.safetensors", {"a": np.ones((1000, 1000), np.float32)}, {})
    tensors = open_tensors(tmp_path, BASE)
    os.truncate(tensors.file, 10_000)
    with pytest.raises(ValueError, match="was cut short while it was read"):
        tensors.read("a")


def test_shards_are_read_as_one(tmp_path):
    shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"},
           a=["x", "z"], b=["y"])
    tensors = open_tensors(tmp_path, BASE)
    assert sorted(tensors) == ["x", "y", "z"]
    assert tensors["y"].file.name == "b.safetensors"
    np.testing.assert_array_equal(tensors.read("z"), A)


@pytest.mark.parametrize(("weight_map", "words"), [
    ({"x": "../a.safetensors"}, "x is said to be in ../a.safetensors, expected a .s"),
    ({"x": "/etc/passwd"}, "expected a .safetensors file in the same folder"),
    ({"x": "b\\a.safetensors"}, "expected a .safetensors file in the same folder"),
    ({"x": "c:a.safetensors"}, "expected a .safetensors file in the same folder"),
    ({"x": "a.safetensors\0"}, "expected a .safetensors file in the same folder"),
    ({"x": "a.bin"}, "expected a .safetensors file in the same folder"),
    ({"x": ["a.safetensors"]}, "expected a .safetensors file in the same folder"),
    ({"x": "a" * 1000 + ".safetensors"}, r"aaa\.\.\., expected a .safetensors file"),
    ({"x\n": "../a"}, r"'x\\n' is said to be in ../a"),
    ({"y": "b.safetensors", "x": "c.safetensors"}, "c.safetensors is missing, though model.safe"),
    ({"x": "a.safetensors"}, "a.safetensors also holds y, unlike model.safetensors.index.json"),
    ({"x": "a.safetensors", "y": "b.safetensors"}, "a.safetensors also holds y"),
    ({k: "a.safetensors" for k in "xyz"}, "a.safetensors lacks z, unlike"),
    (["x"], r"weight_map is \['x'\], expected {key: file}"),
    (None, "weight_map is None")])
def test_an_index_that_lies_or_leaves_its_folder_is_refused(tmp_path, weight_map, words):
    shards(tmp_path, weight_map, a=["x", "y"], b=["y"])
    (tmp_path.parent / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        open_tensors(tmp_path, BASE)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_whole_file_comes_before_shards_and_shards_before_variants(tmp_path):
    chosen = []
    for name in ("model.non_ema.safetensors", "model.fp16.safetensors", "model.safetensors"):
        write(tmp_path / name, {"x": A}, {})
        chosen.append(open_tensors(tmp_path, BASE).file.name)
        shards(tmp_path, {"x": "model.fp16-00001-of-00001.safetensors"},
               **{"model.fp16-00001-of-00001": ["x"]})
        chosen.append(open_tensors(tmp_path, BASE).file.name)
        (tmp_path / "model.safetensors.index.json").unlink()
    index = "model.safetensors.index.json"
    assert chosen == ["model.non_ema.safetensors", index, "model.fp16.safetensors", index,
                      "model.safetensors", "model.safetensors"]


def test_shards_of_a_variant_are_found_by_their_index(tmp_path):
    shards(tmp_path, {"x": "model.fp16-00001-of-00001.safetensors"},
           **{"model.fp16-00001-of-00001": ["x"]})
    (tmp_path / "model.safetensors.index.json").rename(
        tmp_path / "model.safetensors.index.fp16.json")
    np.testing.assert_array_equal(open_tensors(tmp_path, BASE).read("x"), A)


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin", "v1-5.ckpt", "flax.msgpack"])
def test_a_pickle_is_refused_and_told_how_to_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(ValueError, match=rf"{name} is not safetensors.*save_pretrained"):
        open_tensors(tmp_path, BASE)


def test_a_folder_without_weights_is_told_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors"):
        open_tensors(tmp_path, BASE)


def test_fill_puts_every_number_where_theirs_computes_the_same(tmp_path, rng, net):
    theirs = {key: np.array(a) for key, a in as_theirs(net, place).items()}
    write(tmp_path / "model.safetensors", theirs, {})
    ours = Net(UNSET)
    fill(ours, open_tensors(tmp_path, BASE), place)
    x = rng.standard_normal((1, 3, 3, 3)).astype(np.float32)                # (N, H, W, C)
    y = np.einsum("ocuv,uvc->o", theirs["conv.weight"], x[0]) + theirs["conv.bias"]
    np.testing.assert_allclose(ours.conv(x).data[0, 1, 1], y, rtol=1e-5)
    z = theirs["one.weight"][:, :, 0, 0] @ y + theirs["one.bias"]
    np.testing.assert_allclose(ours.one(y[None, None, None]).data[0, 0, 0], z, rtol=1e-5)
    y = theirs["linear.weight"] @ z + theirs["linear.bias"]
    np.testing.assert_allclose(ours.linear(z[None]).data[0], y, rtol=1e-5)
    z = theirs["window.weight"][:, :, 0, 0] @ y + theirs["window.bias"]
    np.testing.assert_allclose(ours.window(y[None]).data[0], z, rtol=1e-5)
    both = theirs["emb.weight"] @ x[0, 0, 0] + theirs["emb.bias"]
    for half, layer in ((both[:4], ours.scale), (both[4:], ours.shift)):
        np.testing.assert_allclose(layer(x[0, 0, :1]).data[0], half, rtol=1e-5)
    np.testing.assert_array_equal(ours.table(np.array([6])).data[0], theirs["table.weight"][6])
    np.testing.assert_array_equal(ours.norm.shift.data, theirs["norm.bias"])


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 18])
def test_the_way_back_undoes_fill_for_every_block(tmp_path, monkeypatch, net, block):
    monkeypatch.setattr("tinydiff.pretrained.weights.BLOCK", block)
    ours = Net(UNSET)
    fill(ours, files_of(net, tmp_path), place)
    for path, p in net.parameters().items():
        np.testing.assert_array_equal(ours.parameters()[path].data, p.data)


@pytest.mark.parametrize(("changes", "words"), [
    ({"conv__weight": None}, r"\(missing: conv\.weight\)"),
    ({"extra": A}, r"\(left over: extra\)"),
    ({f"extra{i}": A for i in range(9)}, r"left over: extra0, extra1, extra2 and 6 more\)"),
    ({"one__weight": np.zeros((4, 5), np.float32)}, r"misshapen: one\.weight \(4, 5\), expected "
                                                    r"\(4, 5, 1, 1\)\)"),
    ({"emb__bias": np.zeros(4, np.float32)}, r"emb\.bias \(4,\), expected \(8,\)"),
    ({"norm__bias": np.zeros(4, np.int64)}, r"no floats: norm\.bias I64"),
    ({"conv__bias": None, "x\ny": A}, r"missing: conv\.bias; left over: 'x\\ny'\)")])
def test_weights_of_another_model_are_refused_before_any_is_taken(tmp_path, net, changes, words):
    ours = Net(UNSET)
    with pytest.raises(ValueError, match=rf"model\.safetensors does not hold .*{words}"):
        fill(ours, files_of(net, tmp_path, **changes), place)
    assert not any(p.data.any() for path, p in ours.parameters().items() if path != "norm.scale")


def test_only_what_may_be_left_over_is_ignored(tmp_path, net):
    tensors = files_of(net, tmp_path, embeddings__position_ids=np.zeros((1, 77), np.int64))
    fill(Net(UNSET), tensors, place, ignore=[r"position_ids$"])
    with pytest.raises(ValueError, match=r"left over: embeddings\.position_ids"):
        fill(Net(UNSET), tensors, place, ignore=[r"^position_ids"])


def test_old_names_are_read_as_todays_and_not_beside_them(tmp_path, net):
    old = [(r"^convolution\.", "conv.")]
    weight = as_theirs(net, place)["conv.weight"]
    ours = Net(UNSET)
    tensors = files_of(net, tmp_path, convolution__weight=weight, conv__weight=None)
    fill(ours, tensors, place, old=old)
    np.testing.assert_array_equal(ours.conv.w.data, net.conv.w.data)
    with pytest.raises(ValueError, match="left over: conv"):
        fill(ours, files_of(net, tmp_path, convolution__weight=weight), place, old=old)


def test_numbers_that_are_not_finite_are_taken_as_they_are(tmp_path, net):
    ours = Net(UNSET)
    fill(ours, files_of(net, tmp_path, norm__bias=np.array([np.nan, np.inf, 0, -np.inf])), place)
    np.testing.assert_array_equal(ours.norm.shift.data, [np.nan, np.inf, 0, -np.inf])


def test_drawing_with_one_generator_gives_what_it_always_gave():
    layer, table = Linear(3, 4, rng=np.random.default_rng(5)), np.random.default_rng(6)
    limit, draw = 1.0, np.random.default_rng(5)
    np.testing.assert_array_equal(layer.w.data, draw.uniform(-limit, limit, (3, 4)).astype("f4"))
    drawn = (0.02 * np.random.default_rng(6).standard_normal((9, 8))).astype(np.float32)
    np.testing.assert_array_equal(Embedding(9, 8, rng=table).table.data, drawn)


def test_a_model_is_filled_in_the_memory_of_its_own_weights(tmp_path):
    write(tmp_path / "model.safetensors", {"w": np.zeros((1 << 11, 1 << 12), np.float32),   # 32 MB
                                           "b": np.zeros(1 << 11, np.float16)}, {})
    model = Linear(1 << 12, 1 << 11, rng=UNSET)
    tracemalloc.start()
    fill(model, open_tensors(tmp_path, BASE), lambda path: Place(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="asks Linux for its memory")
def test_unset_weights_take_no_memory_until_they_are_filled():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    layers = Linear(1 << 13, 1 << 13, rng=UNSET), Embedding(1 << 13, 1 << 13, rng=UNSET)
    assert resident() - before < 1 << 24                                    # of 2 · 256 MB
    assert layers[0].count() == (1 << 26) + (1 << 13)


# Hostile files

def test_every_flipped_bit_is_refused_or_changes_one_number_or_name(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"a": A, "b": np.arange(3, dtype=np.int32)}, {"format": "pt"})
    whole, taken = path.read_bytes(), 0
    for i in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        try:
            tensors = open_tensors(tmp_path, BASE)
            sizes = sorted(tensors.read(key).size for key in tensors)
        except ValueError:
            continue
        taken += 1
        assert sizes == [3, 24]
    assert taken >= 8 * (96 + 12)                                           # the numbers themselves


def test_every_cut_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"a": A}, {"format": "pt"})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=ONE_LINE):
            open_tensors(tmp_path, BASE)


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-2, 30), st.floats(),
                st.text(max_size=3), st.sampled_from(["F32", "F16", "F8_E4M3", 10**30, "x" * 5000]),
                st.lists(st.integers(-1, 100), max_size=3), st.just({}))


@settings(max_examples=1500)
@given(st.data())
def test_an_edited_header_is_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    header = {"a": entry("F32", [4, 2, 3], 0, 96), "b": entry("BF16", [2], 96, 100),
              "__metadata__": {"format": "pt"}}
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(header)))
        if not isinstance(header[key], dict) or data.draw(st.integers(0, 5)) == 0:
            header[key] = data.draw(ODD)
        else:
            header[key] = {**header[key], data.draw(st.sampled_from(
                ["dtype", "shape", "data_offsets", "more"])): data.draw(ODD)}
    by_hand(folder / "model.safetensors", header, bytes(100))
    said, sizes = "one line", []
    try:
        tensors = open_tensors(folder, BASE)
        sizes = [tensors.read(key).size for key in tensors]
    except ValueError as error:
        said = str(error)
    assert re.match(ONE_LINE, said)
    assert sum(sizes) <= 100


@pytest.mark.parametrize(("header", "words"), [
    (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
     b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "the same name twice"),
    ({"a": entry("F8_E5M2", [4], 0, 4)}, "a has the unknown dtype 'F8_E5M2'"),
    ({"a": entry("F32", [1 << 62, 4], 0, 4)}, "damaged header"),
    ({"a": entry("F32", [1 << 40], 0, 4 << 40)}, "cut short"),
    ({"a": entry("F32", [1], False, 4)}, "damaged header"),
    ({"a": entry("F32", [1.0], 0, 4)}, "damaged header"),
    (b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}", "nested too deeply"),
    (b'{"a":' + b"1" * 10**6 + b"}", "damaged header"),
    (b'{"\xff":0}', "damaged header"),
    (json.dumps({"a": entry("F32", [1], 0, 4)}).encode("utf-16-le"), "damaged header"),
    ({"a": entry("F32", {}, 0, 4)}, "a has shape {}"),
    ({"x" * 10**6: 7}, "damaged header")])
def test_a_hostile_header_is_refused_in_one_line(tmp_path, header, words):
    by_hand(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(ValueError, match=words) as caught:
        open_tensors(tmp_path, BASE)
    assert re.match(ONE_LINE, str(caught.value))


def test_a_header_larger_than_any_model_needs_is_refused_unread(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 200 << 20) + b"{")
        file.truncate(300 << 20)                                            # sparse
    with pytest.raises(ValueError, match="a header of 209715200 bytes, expected at most"):
        open_tensors(tmp_path, BASE)


@pytest.mark.parametrize(("data", "words"), [
    (b"", "is not what it should be"), (b"[1]", "holds a list"), (b"{", "download it again"),
    (b'{"a": "\xff"}', "is not what it should be"), (b'{"a": 1, "a": 2}', "the same name twice"),
    (b'{"a":' * 10**5 + b"0" + b"}" * 10**5, "nested too deeply"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5", "Git LFS pointer")])
def test_a_json_file_that_holds_no_object_is_refused(tmp_path, data, words):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_json_file_is_read_with_the_infinity_that_schedulers_write(tmp_path):
    (tmp_path / "a.json").write_text('{"lambda_min_clipped": -Infinity, "beta": [1e-4, "é"]}')
    assert read_json(tmp_path / "a.json") == {"lambda_min_clipped": -np.inf, "beta": [1e-4, "é"]}


def test_a_json_file_too_large_or_missing_is_refused(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 30)                                              # sparse
    tracemalloc.start()
    with pytest.raises(ValueError, match="it has more than"):
        read_json(tmp_path / "a.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26
    with pytest.raises(FileNotFoundError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")


def test_our_own_checkpoints_and_theirs_have_one_reader(tmp_path):
    save(tmp_path / "model.safetensors", {"a": A}, {"k": 1})
    tensors = open_tensors(tmp_path, BASE)
    np.testing.assert_array_equal(tensors.read("a"), checkpoint.load(tensors.file)[0]["a"])
