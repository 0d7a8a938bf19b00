"""Tar shards of your own pictures: what they mean, how they may break, and how they may attack."""

import gzip
import io
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from own_pictures_helpers import encoded, every, lay, noise, tar

from tinydiff.data import shards
from tinydiff.data.folder import open_pictures


def samples(rng, n, **more):
    """{name: bytes} of n pictures with captions."""
    files = {}
    for i in range(n):
        files |= {f"{i:04}.png": encoded(noise(rng, 4, 4, 3)), f"{i:04}.txt": f"thing {i}"}
    return files | more


def opened(path):
    return open_pictures(str(path), "train", 4)


# what they mean

@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_give_what_the_folder_that_they_were_made_of_gives(tmp_path, rng, mode, format):
    files = samples(rng, 12) | {"in/here/0001.png": encoded(noise(rng, 9, 7)),
                                "größe-2.jpg": encoded(noise(rng, 4, 4, 3), "JPEG"),
                                "x" * 90 + "/" + "y" * 80 + ".png": encoded(noise(rng, 4, 4, 3))}
    folder = opened(lay(tmp_path / "pictures", files))
    shard = opened(tar(tmp_path / "all.tar", dict(sorted(files.items())), mode, format=format))
    assert shard.wordings == folder.wordings
    np.testing.assert_array_equal(shard.images, folder.images)
    assert (shard.count, shard.shape, shard.skipped) == (15, (4, 4, 3), {})


@pytest.mark.parametrize("path", ["part-{00..02}.tar", "part-*.tar", ".", "part-0{0..2}.tar"])
def test_braces_stars_and_folders_mean_the_same_shards(tmp_path, rng, monkeypatch, path):
    files = list(samples(rng, 9).items())
    for i in range(3):
        tar(tmp_path / f"part-{i:02}.tar", files[6 * i:6 * i + 6])
    monkeypatch.chdir(tmp_path)
    assert opened(path).corpus() == [f"thing {i}" for i in range(9)]


def test_a_shard_that_is_missing_is_named(tmp_path, rng):
    tar(tmp_path / "a-0.tar", samples(rng, 1))
    with pytest.raises(FileNotFoundError, match=r"there is no .*/a-1.tar; expected"):
        opened(tmp_path / "a-{0..999999999}.tar")
    with pytest.raises(FileNotFoundError, match="there is no"):
        opened(tmp_path / "b-*.tar")


def test_captions_come_from_text_then_json_then_the_key(tmp_path, rng):
    png = encoded(noise(rng, 4, 4, 3))
    source = opened(tar(tmp_path / "a.tar", [
        ("a.png", png), ("a.txt", "one\ntwo"), ("a.json", '{"caption": "never"}'), ("a.cls", "7"),
        ("b.json", '{"text": "three", "width": 4}'), ("b.PNG", png), ("b.seg.png", b"a mask"),
        ("c.png", png), ("c.json", "{}"), ("in.here/old_dog-7.png", png), ("alone.txt", "nobody"),
        ("._c.png", b"a Mac's"), (".png", png)]))
    assert source.wordings == [["one", "two"], ["three"], ["c"], ["old dog"]]
    assert source.skipped == {}


def test_the_same_key_in_two_places_is_two_pictures(tmp_path, rng):
    png = encoded(noise(rng, 4, 4, 3))
    files = [("a.png", png), ("b.png", png), ("a.png", png), ("in/a.png", png)]
    assert opened(tar(tmp_path / "a.tar", files)).count == 4


def test_a_batch_is_the_same_after_others_and_after_opening_again(tmp_path, rng):
    path = tar(tmp_path / "a.tar", samples(rng, 11))
    once, again = opened(path), opened(path)
    first = {step: once.batch(4, step, 3, 0.5, np.random.default_rng(step)) for step in (0, 5, 2)}
    for step in (5, 2, 0):
        pixels, said = again.batch(4, step, 3, 0.5, np.random.default_rng(step))
        np.testing.assert_array_equal(pixels, first[step][0])
        assert said == first[step][1]
    for pixels, text in zip(*first[5], strict=True):
        np.testing.assert_array_equal(pixels, every(once)[text])


# broken

def test_broken_samples_are_skipped_counted_and_named(tmp_path, rng):
    png = encoded(noise(rng, 4, 4, 3))
    source = opened(tar(tmp_path / "a.tar", [
        ("cut.png", png[:-30]), ("cut.txt", "x"), ("bad.png", png), ("bad.txt", b"\xff\xfe"),
        ("deep.png", png), ("deep.json", "[" * 60_000), ("list.png", png), ("list.json", "[1]"),
        ("half.png", png), ("half.json", '{"caption": "\\ud800"}'), ("good.png", png),
        ("long.png", png), ("long.txt", "x" * 70_000)]))
    assert source.corpus() == ["good"]
    assert set(source.skipped) == {f"a.tar/{key}" for key in ("cut", "bad", "deep", "list", "half",
                                                              "long")}
    assert f"{tmp_path}/a.tar: 1 pictures; skipped 6 of 7: a.tar/bad (" in source.source


@settings(max_examples=40)
@given(st.data())
def test_a_shard_cut_anywhere_gives_its_first_pictures_and_a_note(tmp_path_factory, data):
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("cut")
    files = samples(rng, 5)
    whole = tar(tmp_path / "a.tar", files).read_bytes()
    cut = data.draw(st.integers(0, 20 * 512 + 511))         # a header and one block, ten times
    packed = data.draw(st.booleans())
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole[:cut]) if packed else whole[:cut])
    tar(tmp_path / "b.tar", {"z.png": encoded(noise(rng, 4, 4, 3))})
    source = opened(tmp_path)
    complete = sum((4 * i + 1) * 512 + len(files[f"{i:04}.png"]) <= cut for i in range(1, 5))
    assert source.corpus() == [f"thing {i}" for i in range(complete)] + ["z"]  # the next has begun
    assert set(source.skipped) == {"a.tar"}


@settings(max_examples=60)
@given(at=st.integers(0, 9 * 512), junk=st.binary(min_size=1, max_size=20))
def test_damage_anywhere_is_noted_or_harmless(tmp_path_factory, at, junk):
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("hurt")
    whole = tar(tmp_path / "a.tar", samples(rng, 3)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:at] + junk + whole[at + len(junk):])
    tar(tmp_path / "b.tar", {"z.png": encoded(noise(rng, 4, 4, 3))})
    source = opened(tmp_path)
    assert source.corpus()[-1] == "z"
    assert source.count == 4 or source.skipped


def test_a_shard_that_is_none_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"PK" * 900)
    (tmp_path / "b.tar").write_bytes(b"")
    message = r"^expected pictures \(.+0 pictures; skipped 2 of 2: a.tar \("
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


# hostile

def header(name, size, kind=b"0", **more):
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = size
    for key, value in more.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse():
    """The header of a sparse file whose map goes on in the next blocks."""
    raw = bytearray(header("a.png", 0, b"S"))
    raw[482] = 1
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax(kind=b"x", **said):
    """An extended header for the next member, or for all."""
    rows = b""
    for key, value in said.items():
        row = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(row) + 1
        while len(str(length)) + len(row) != length:
            length = len(str(length)) + len(row)
        rows += str(length).encode() + row
    return header("pax", len(rows), kind) + rows + bytes(-len(rows) % 512)


BOMBS = {
    "a header of 4 GB": lambda: header("x", 2**32, b"x") + bytes(2**22),
    "a long name": lambda: header("x", 2**26, b"L") + bytes(2**26),
    "a negative size": lambda: pax(size=-5) + header("a.png", 0),
    "a size without end": lambda: pax(size=10**30) + header("a.png", 0),
    "a large size": lambda: header("a.png", 2**62),
    "a sparse file": lambda: sparse() + (b"1" * 504 + b"\1" + bytes(7)) * 2**13,
    "a sparse map without end": lambda: pax(GNU_sparse_major=1, GNU_sparse_minor=0)
    + header("a.png", 2**24) + b"9999999\n" + b"1\n" * 2**22,
    "a row of headers": lambda: pax(comment="x") * 3000,
    "a row of global headers": lambda: pax(b"g", comment="x") * 3000,
    "headers for all that follows": lambda: b"".join(
        pax(b"g", **{f"key{i}": "x" * 60_000}) + header("in", 0, b"5") for i in range(400))}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_header_fills_memory_or_takes_for_ever(tmp_path, rng, bomb):
    good = tar(tmp_path / "a.tar", samples(rng, 2)).read_bytes()[:8 * 512]
    (tmp_path / "a.tar").write_bytes(gzip.compress(good + BOMBS[bomb]()))
    tracemalloc.start()
    started = time.process_time()
    source = opened(tmp_path / "a.tar")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.corpus()[0] == "thing 0"
    assert set(source.skipped) == {"a.tar"}                 # it has no end
    assert seconds < 5
    assert peak < 2**24


def test_links_devices_and_paths_that_lead_out_write_and_read_nothing(tmp_path, rng):
    secret = lay(tmp_path, {"secret.txt": "secret"}) / "secret.txt"
    png = encoded(noise(rng, 4, 4, 3))
    path, before = tmp_path / "in" / "a.tar", sorted(tmp_path.rglob("*"))
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (("0.png", tarfile.SYMTYPE, str(secret)),
                                   ("1.txt", tarfile.LNKTYPE, "../secret.txt"),
                                   ("2.png", tarfile.CHRTYPE, ""), ("3.png", tarfile.FIFOTYPE, ""),
                                   ("4.png", tarfile.DIRTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ("../../up.png", "/etc/root.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png)
            archive.addfile(member, io.BytesIO(png))
    source = opened(path)
    assert source.corpus() == ["up", "root"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path, path.parent])


def test_a_picture_of_too_many_bytes_is_passed_by_and_named(tmp_path, rng):
    files = {"a.png": bytes(2**24 + 1), **samples(rng, 1)}
    source = opened(tar(tmp_path / "a.tar", files))
    assert (source.corpus(), source.skipped) == (["thing 0"], {"a.tar/a": "too many bytes"})


CLASSES = [(f"cls{i}", b"7") for i in range(9)]             # that mean nothing here


def test_memory_does_not_grow_with_the_shard(tmp_path, rng):
    bmp = encoded(noise(rng, 180, 180, 3), "BMP")           # 97 kB

    def peak(n):
        path = tar(tmp_path / "a.tar", ((f"{i}.{suffix}", data) for i in range(n)
                                        for suffix, data in [("bmp", bmp), *CLASSES]))
        tracemalloc.start()
        assert opened(path).count == n
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, path.stat().st_size

    few, many = peak(40), peak(300)
    assert many[1] > 2.9e7
    assert many[0] < few[0] + 1e6
    assert many[0] < 5e6


def test_braces_count_with_the_zeros_they_are_written_with():
    pairs = [f"a-{i}-{j}" for i in (8, 9, 10) for j in (0, 1)]
    assert [*shards.braces("a-{8..10}-{0..1}")] == pairs
    assert [*shards.braces("a-{08..10}")] == ["a-08", "a-09", "a-10"]
    assert [*shards.braces("a{b}")] == ["a{b}"]
