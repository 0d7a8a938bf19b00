"""A folder of your own pictures: captions, crops, every kind of file, and what is left out."""

import os
import tracemalloc
import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from own_pictures_helpers import encoded, every, lay, noise
from PIL import Image
from story_helpers import tiny

from tinydiff import data
from tinydiff.data import folder
from tinydiff.data.folder import open_pictures


def flat(*colour, size=(4, 4)):
    """A picture of one colour."""
    return encoded(np.full((*size, 3), colour, np.uint8))


RED = flat(255, 0, 0)


def opened(tmp_path, files, size=4):
    return open_pictures(str(lay(tmp_path / "pictures", files)), "train", size)


# captions

def test_a_text_file_comes_before_the_csv_and_that_before_the_name(tmp_path):
    source = opened(tmp_path, {
        "red_car-03.png": RED, "b.png": RED, "b.txt": "\ufeffa bus\n\n  an old bus \n",
        "c.png": RED, "d.png": RED, "d.txt": " \n",
        "captions.csv": "file,caption\nb.png,never said\nc.png,a cart\nc.png,an ox cart\n"
                        "d.png,a dog\n"})
    assert source.wordings == [["a bus", "an old bus"], ["a cart", "an ox cart"], ["a dog"],
                               ["red car"]]
    assert source.corpus() == ["a bus", "an old bus", "a cart", "an ox cart", "a dog", "red car"]
    assert source.prompts == ("a bus", "a cart", "a dog", "red car")
    assert source.skipped == {}
    assert source.source.endswith("pictures: 4 pictures")


def test_a_csv_may_have_a_mark_quotes_commas_other_titles_and_any_name(tmp_path):
    source = opened(tmp_path, {
        "in/a.png": RED, "b.png": RED,
        "stuff.csv": '\ufefffile_name,width,text\r\n./in/a.png,4,"red, ""very"" red"\r\n'
                     "b.png,4,\r\n"})
    assert source.wordings == [["b"], ['red, "very" red']]          # b.png: of its name


@pytest.mark.parametrize("text", [
    "file;caption\na.png;a car\n", "picture,says\na.png,a car\n", "file,caption\na.png\n",
    'file,caption\na.png,"no end', b"file,caption\na.png,\xff\xfe\n"])
def test_a_csv_that_is_no_table_of_captions_is_refused_in_a_sentence(tmp_path, text):
    with pytest.raises(ValueError, match=r"^captions.csv is no table of captions: .+") as error:
        opened(tmp_path, {"a.png": RED, "captions.csv": text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("stem", "said"), [
    ("red_car-03", "red car"), ("a.b.c", "a b c"), ("00017", ""), ("3d house (2)", "3d house"),
    ("größe", "größe"), ("हिन्दी_02", "हिन्दी")])
def test_a_name_says_its_words_without_numbers(stem, said):
    assert folder.words(stem) == said


def test_prompts_are_the_first_ten_plain_captions(tmp_path):
    names = [f"{word}-{i}.png" for word in "cbadefghijklm" for i in range(2)]
    files = {**dict.fromkeys(names, RED), "a-0.txt": "ah\nat first"}
    assert opened(tmp_path, files).prompts == ("ah", *"abcdefghi")


def test_the_share_of_plain_captions_is_kept(tmp_path):
    source = opened(tmp_path, {"a.png": RED, "a.txt": "plain\nother\nthird\nfourth"})
    said = source.batch(4000, 0, 0, 0.4, np.random.default_rng(0))[1]
    share = said.count("plain") / 4000                      # 0.4 + 0.6 / 4
    assert abs(share - 0.55) < 4 * (0.55 * 0.45 / 4000) ** 0.5
    assert set(source.batch(50, 0, 0, 1.0, np.random.default_rng(0))[1]) == {"plain"}


# pixels

def test_a_picture_of_the_right_size_keeps_every_pixel(tmp_path, rng):
    pixels = noise(rng, 8, 8, 3)
    source = opened(tmp_path, {"a.png": encoded(pixels), "b.bmp": encoded(pixels, "BMP"),
                               "c.webp": encoded(pixels, "WEBP", lossless=True)}, size=8)
    np.testing.assert_array_equal(source.images, [pixels] * 3)
    assert source.shape == (8, 8, 3)


def test_the_middle_square_is_what_is_kept(tmp_path, rng):
    wide = noise(rng, 8, 20, 3)
    source = opened(tmp_path, {"wide.png": encoded(wide),
                               "tall.png": encoded(wide.transpose(1, 0, 2).copy())}, size=8)
    shown = every(source)
    np.testing.assert_array_equal(shown["wide"], wide[:, 6:14])
    np.testing.assert_array_equal(shown["tall"], wide[:, 6:14].transpose(1, 0, 2))


def test_made_smaller_a_checkerboard_is_grey_and_not_one_of_its_colours(tmp_path):
    board = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    shown = opened(tmp_path, {"a.png": encoded(board)}, size=8).images
    assert np.abs(shown.astype(int) - 127.5).max() < 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_tiny_and_thin_pictures_fill_the_square(tmp_path, shape):
    shown = opened(tmp_path, {"a.png": flat(200, 100, 0, size=shape)}, size=8).images
    np.testing.assert_array_equal(shown, np.broadcast_to([200, 100, 0], (1, 8, 8, 3)))


def test_a_photo_that_lies_on_its_side_is_turned_upright(tmp_path, rng):
    pixels = noise(rng, 6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6                                        # turn by 90° clockwise to see it
    shown = opened(tmp_path, {"a.png": encoded(pixels, exif=exif)}, size=6).images[0]
    np.testing.assert_array_equal(shown, np.rot90(pixels, -1))


def test_what_is_transparent_is_white(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    half = np.full((4, 4, 4), (200, 0, 0, 128), np.uint8)
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.putpalette([10, 20, 30])
    shown = every(opened(tmp_path, {
        "clear.png": encoded(clear), "half.png": encoded(half),
        "palette.png": encoded(palette, transparency=0), "solid.png": encoded(palette)}))
    np.testing.assert_array_equal(shown["clear"], np.full((4, 4, 3), 255))
    np.testing.assert_array_equal(shown["palette"], np.full((4, 4, 3), 255))
    np.testing.assert_array_equal(shown["solid"], np.broadcast_to([10, 20, 30], (4, 4, 3)))
    over = 255 + (np.array([200, 0, 0]) - 255) * 128 / 255
    assert np.abs(shown["half"] - over).max() <= 1


def test_cmyk_and_sixteen_bit_grey_are_read(tmp_path):
    cmyk = Image.fromarray(np.full((16, 16, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    deep = np.full((4, 4), 40_000, np.uint16)
    shown = every(opened(tmp_path, {"ink.jpg": encoded(cmyk, "JPEG", quality=100),
                                    "deep.png": encoded(deep)}))
    assert np.abs(shown["ink"].astype(int) - [255, 0, 0]).max() < 4
    np.testing.assert_array_equal(shown["deep"], np.full((4, 4, 3), 40_000 // 257))


def test_a_large_jpeg_decoded_smaller_looks_as_if_decoded_whole(tmp_path):
    y, x = np.mgrid[:512, :512] / 80
    pixels = (np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 128).astype(np.uint8)
    shown = every(opened(tmp_path, {"a.jpg": encoded(pixels, "JPEG", quality=98),
                                    "b.png": encoded(pixels)}, size=16))
    assert np.abs(shown["a"].astype(int) - shown["b"]).max() < 8


def test_grey_stays_grey_only_if_all_are(tmp_path, rng):
    grey = noise(rng, 4, 4)
    files = {"a.png": encoded(grey), "b.png": encoded(np.repeat(grey[..., None], 3, 2))}
    source = opened(tmp_path, files)
    assert source.shape == (4, 4, 1)
    np.testing.assert_array_equal(source.images[..., 0], [grey, grey])
    source = opened(tmp_path, {**files, "an.png": RED})     # in the middle
    assert source.shape == (4, 4, 3)
    np.testing.assert_array_equal(source.images[0], np.repeat(grey[..., None], 3, 2))


# batches

def test_every_picture_comes_once_an_epoch_with_its_own_caption(tmp_path):
    source = opened(tmp_path, {f"{word}.png": flat(i, 0, 9)
                               for i, word in enumerate(["ant", "bee", "cow", "doe", "elk"])})
    said, seen = [], []
    for step in range(5):
        pixels, texts = source.batch(2, step, 7, 0.5, np.random.default_rng(step))
        said, seen = said + texts, seen + pixels[:, 0, 0, 0].tolist()
    assert sorted(said[:5]) == sorted(said[5:]) == ["ant", "bee", "cow", "doe", "elk"]
    assert [text[0] for text in said] == ["abcde"[i] for i in seen]
    orders = {tuple(source.batch(5, 0, seed, 1, np.random.default_rng(0))[1]) for seed in range(9)}
    assert len(orders) > 5


def test_a_batch_is_the_same_after_others_and_after_opening_again(tmp_path, rng):
    files = {f"{i}.png": encoded(noise(rng, 4, 4, 3)) for i in range(9)}
    files["3.txt"] = "one\ntwo\nthree"

    def drawn(source, step):
        return source.batch(4, step, 3, 0.5, np.random.default_rng(step))

    source = opened(tmp_path, files)
    first = [drawn(source, step) for step in (0, 5, 2)]
    again = opened(tmp_path, dict(reversed(files.items())))
    for (pixels, said), step in zip(first, (0, 5, 2)):
        for other in (drawn(source, step), drawn(again, step)):
            np.testing.assert_array_equal(pixels, other[0])
            assert said == other[1]


def test_memory_does_not_grow_with_the_folder(tmp_path, rng):
    png = encoded(noise(rng, 8, 8, 3))

    def peak(n):
        lay(tmp_path / "pictures", {f"{i}.png": png for i in range(n)})
        tracemalloc.start()
        source = open_pictures(tmp_path / "pictures", size=128)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, source.images.size * 3 // source.shape[2]

    few, many = peak(50), peak(250)
    assert many[1] - few[1] == 200 * 128 * 128 * 3          # 9.8 MB
    assert many[0] < few[0] + 2e6


def test_training_on_a_folder_names_what_it_skips_and_goes_on_bit_for_bit(tmp_path, typed, rng):
    lay(tmp_path / "mine", {f"{word}-{i}.png": encoded(noise(rng, 8, 8)) for word in ("ox", "yak")
                            for i in range(5)} | {"bad.png": b""})
    lay(tmp_path, {"my.toml": tiny(data={"name": "mine/", "size": 8}, train={"steps": 4}).toml()})
    code, out, _ = typed("train", "my.toml", "--out", "whole")
    assert code == 0
    assert "data: mine/: 10 pictures; skipped 1 of 11: bad.png (no known picture)" in out
    assert typed("train", "my.toml", "--out", "halves", "--stop-at", "1")[0] == 0
    assert typed("train", "my.toml", "--out", "halves", "--resume")[0] == 0
    whole, halves = (tmp_path / run / "checkpoint.safetensors" for run in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()


# what is left out

def test_broken_files_are_skipped_counted_and_named(tmp_path, rng):
    whole = encoded(noise(rng, 40, 40, 3))
    gif, jpg = (encoded(noise(rng, 40, 40), kind) for kind in ("GIF", "JPEG"))
    bad = {"cut.png": whole[:-900], "cut.gif": gif[:300], "cut.jpg": jpg[:len(jpg) // 2],
           "empty.png": b"", "text.png": "hello", "page.tiff": encoded(noise(rng, 4, 4), "TIFF"),
           "tiff.png": encoded(noise(rng, 4, 4), "TIFF"), "notes.md": "# notes",
           "said.png": RED, "said.txt": b"\xff\xfebad", "bent.png": whole[:60] + bytes(50)}
    source = opened(tmp_path, {"good.png": RED, "captions.csv": "file,caption\ngone.png,a ghost\n",
                               **bad})
    assert source.count == 1
    assert set(source.skipped) == set(bad) - {"said.txt"} | {"gone.png"}
    assert source.skipped["said.png"].startswith("'utf-8' codec can't decode byte 0xff")
    assert source.skipped["empty.png"] == source.skipped["text.png"] == "no known picture"
    assert source.skipped["gone.png"] == "only in the .csv"
    assert "/pictures: 1 pictures; skipped 11 of 12: bent.png (" in source.source
    assert source.source.endswith(", and 6 more")
    assert "0x" not in source.source                        # no address of a thing in memory


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    bomb = encoded(Image.new("1", (10_000, 7_000)))
    assert len(bomb) < 20_000
    monkeypatch.setattr(Image.Image, "convert", None)       # it must not come so far
    with pytest.raises(ValueError, match=r"skipped 1 of 1: a.png \(10000 × 7000 pixels\)"):
        opened(tmp_path, {"a.png": bomb})


def test_pillow_warnings_about_bombs_stop_nothing(tmp_path):
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert opened(tmp_path, {"a.png": bomb, "b.png": RED}).count == 1


def test_hidden_files_and_links_that_lead_out_are_left_alone(tmp_path):
    lay(tmp_path, {"outside.png": RED, "outside.txt": "secret"})
    home = lay(tmp_path / "pictures", {"a.png": RED, ".b.png": RED, ".thumbs/c.png": RED,
                                       "e.png": RED})
    for name, target in {"out.png": "../outside.png", "in.png": "a.png", "loop.png": "loop.png",
                         "e.txt": "../outside.txt", "up": ".."}.items():
        os.symlink(target, home / name)
    os.mkfifo(home / "pipe.png")
    source = open_pictures(str(home) + "/", size=4)
    assert source.corpus() == ["a", "e", "in"]
    assert set(source.skipped) == {"out.png", "loop.png", "pipe.png"}


def test_names_that_cannot_be_printed_do_no_harm(tmp_path):
    home = lay(tmp_path / "pictures", {"a\x1b[2Jb\n.png": RED, "c\n.png": "bad"})
    with open(os.fsencode(home) + b"/caf\xe9.png", "wb") as file:
        file.write(RED)
    source = open_pictures(home, size=4)
    assert source.count == 2
    assert source.source.isprintable()
    assert all(text.encode() for text in source.corpus())


@pytest.mark.parametrize("files", [{}, {"a.png": b""}, {"a.txt": "alone"}])
def test_a_folder_without_a_good_picture_is_refused_in_a_sentence(tmp_path, files):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"expected pictures \(.png .+\), got .+: 0 pictures"):
        opened(tmp_path, files)


def test_the_doors_refuse_what_is_not_there_and_other_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere; expected a folder"):
        data.load(str(tmp_path / "nowhere"))
    lay(tmp_path, {"a.png": RED})
    with pytest.raises(ValueError, match="have the train split, got 'test'"):
        data.load(f"{tmp_path}/", "test")
    assert data.load(f"{tmp_path}/", size=5).shape == (5, 5, 3)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "GIF", "BMP", "JPEG",
                                                                     "WEBP"]))
def test_no_damage_gives_anything_but_a_picture_or_the_reason(junk, at, kind):
    whole = encoded((np.arange(12 * 12 * 3, dtype=np.uint8) * 7).reshape(12, 12, 3), kind)
    at %= len(whole)
    damaged = BytesIO(whole[:at] + junk + whole[at + len(junk):])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # Pillow grumbles about some damage
        [(name, said, pixels)] = folder.looked_at(iter([("a", lambda: (["it"], damaged))]), 8)
    assert name == "a"
    if said:
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    else:
        assert pixels.isprintable()
        assert "object at" not in pixels
