"""The command line: what each command says and leaves behind, and one sentence for each mistake."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from story_helpers import ENVIRONMENT, TINY, finished, tiny, tinydiff

from tinydiff import __version__, checkpoint, cli, demo, images
from tinydiff.recipe import load_recipe, shipped
from tinydiff.report import clock

SEVEN = "a handwritten seven"
ON_UNIX = pytest.mark.skipif(sys.platform == "win32", reason="a matter of Unix")


@pytest.fixture
def mistyped(typed):
    """A function: type what cannot work -> (exit code, the one sentence that says why)."""
    def run(*words):
        code, _, err = typed(*words)
        assert "Traceback" not in err
        (sentence,) = [line for line in err.splitlines() if re.match(r"tinydiff( \w+)?: ", line)]
        return code, sentence

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tiny.toml and a run of four steps of it."""
    home = tmp_path_factory.mktemp("trained")
    (home / "tiny.toml").write_text(TINY, encoding="utf-8")
    assert cli.main(["train", str(home / "tiny.toml"), "--out", str(home / "run"),
                     "--stop-at", "4"]) == 0
    return home


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, to be spoiled."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def proposed(out):
    """The words of the last command that was proposed, without `tinydiff`."""
    return shlex.split(out.splitlines()[-1].partition(" tinydiff ")[2])


# What works


def test_train_tells_and_leaves_what_the_contract_says_and_proposes_what_works(typed, trained):
    plan = ("train", trained / "tiny.toml", "--out", "a run", "--set", "train.steps=6")
    code, out, err = typed(*plan, "--stop-at", "3")
    assert code == 0
    assert re.search(r"device: cpu × \d+ · data: embedded: MNIST", out)
    assert re.search(r"[\d,]+ parameters · 6 steps of 8 images, 0 done", out)
    assert re.search(r"expected time: about \d+:\d\d · output: a run", out)
    assert "stopped, and saved in a run; go on with: " in out
    assert "loss" in err
    assert "images/s" in err
    code, out, _ = typed(*proposed(out))
    assert code == 0
    assert "6 steps of 8 images, 3 done" in out
    assert f"done: a run; now: tinydiff sample 'a run' --prompt '{SEVEN}'" in out
    code, out, _ = typed(*proposed(out))
    assert code == 0
    assert "wrote a run/samples/a-handwritten-seven-0.png" in out.replace(os.sep, "/")
    code, out, _ = typed(*proposed(out))
    assert code == 0
    found = {str(path.relative_to("a run")).replace(os.sep, "/")
             for path in images.Path("a run").rglob("*.*")}
    assert found == {"config.toml", "metrics.csv", "checkpoint.safetensors",
                     "samples/a-handwritten-seven-0.png", "samples/a-handwritten-seven-1.png"}
    assert load_recipe("a run/config.toml") == tiny(train={"steps": 6})


def test_train_list_names_the_shipped_recipes(typed):
    assert typed("train", "--list") == (0, "\n".join(shipped()) + "\n", "")


def test_sample_writes_what_the_name_of_the_file_asks_for(typed, trained):
    ask = ("sample", trained / "run", "--prompt", SEVEN, "--prompt", "2", "--n", 3)
    code, out, _ = typed(*ask, "--out", "a.npy")
    assert code == 0
    assert re.search(r"device: cpu × \d+ · model: .*run · pictures: 6$", out, re.MULTILINE)
    assert re.search(r"^expected time: about \d+:\d\d · output: a\.npy$", out, re.MULTILINE)
    pictures = np.load("a.npy")
    assert (pictures.dtype, pictures.shape) == (np.uint8, (6, 28, 28, 1))
    assert typed(*ask, "--out", "a.png")[0] == 0
    pytest.importorskip("PIL")
    np.testing.assert_array_equal(images.read_image("a.png"), images.grid(pictures, columns=3))
    assert typed(*ask, "--out", "B.PNG")[0] == 0
    assert images.Path("B.PNG").read_bytes() == images.Path("a.png").read_bytes()
    for name in ("a.gif", "a.webp", "B.GIF"):
        assert typed(*ask, "--out", name)[0] == 0
        from PIL import Image
        with Image.open(name) as film:
            assert (film.n_frames, film.size) == (5, (88, 58))


def test_sample_passes_every_option_on_and_stores_it_in_the_picture(typed, trained):
    options = {"n": 2, "seed": 5, "sampler": "ddpm", "steps": 3, "guidance": 1.5, "negative": "2",
               "size": [24, 32]}
    words = [word for key, value in options.items()
             for word in (f"--{key}", "24x32" if key == "size" else value)]
    assert typed("sample", trained / "run", "--prompt", SEVEN, *words, "--out", "a.png")[0] == 0
    assert images.read_provenance("a.png") == {
        **options, "tinydiff": __version__, "model": "run", "prompts": [SEVEN]}
    asked = {**options, "size": (24, 32)}
    expected = cli_run(trained / "run").generate([SEVEN], **asked)
    np.testing.assert_array_equal(images.read_image("a.png"), images.grid(expected))


def cli_run(folder):
    from tinydiff.runs import load_run
    return load_run(folder)


def test_the_same_seed_gives_the_same_bytes_in_two_processes(trained, tmp_path):
    for name in ("a.png", "b.png"):
        code, out, err = finished(tinydiff("sample", trained / "run", "--prompt", SEVEN, "--n", 4,
                                           "--out", tmp_path / name, OMP_NUM_THREADS="2"))
        assert code == 0, err
        assert f"wrote {tmp_path / name}" in out
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


class Page(HTMLParser):
    """Collects tags and counts those left open."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_demo_tells_its_story_and_can_be_gone_on_with(typed, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.setattr(demo, "load_recipe", lambda name: tiny(train={"steps": 5}))
    code, out, _ = typed("demo", "--stop-at", 2, "--out", "here")
    assert code == 0
    assert re.search(r"device: cpu × \d+ · data: embedded", out)
    assert "expected time: about" in out
    assert "look at " in out
    sheet = images.read_image("here/digits.png")
    assert sheet.shape == (2 * (5 * 30 - 2), 2 * (10 * 30 - 2), 1)     # five of each of ten, × 2
    told = images.read_provenance("here/digits.png")
    assert told == cli_run(images.Path("here")).settings(demo.PROMPTS, n=5)
    from PIL import Image
    with Image.open("here/denoising.gif") as film:
        assert (film.n_frames, film.size) == (5, (2 * (10 * 30 - 2), 2 * 28))
        film.seek(4)
        end = np.array(film.convert("L"))
    np.testing.assert_array_equal(end[..., None], sheet[:2 * 28])      # the first row of the sheet
    assert checkpoint.load("here/checkpoint.safetensors")[1]["step"] == 2
    code, out, _ = typed(*proposed(out))
    assert code == 0
    assert "5 steps of 8 images, 2 done" in out
    assert checkpoint.load("here/checkpoint.safetensors")[1]["step"] == 5

    page = Page()
    page.feed(images.Path("here/index.html").read_text(encoding="utf-8"))
    assert page.open == []
    pictures = [attrs["src"][:22] for tag, attrs in page.tags if tag == "img"]
    assert pictures == ["data:image/gif;base64,", "data:image/png;base64,"]
    (curve,) = [attrs["points"] for tag, attrs in page.tags if tag == "polyline"]
    assert [float(point.split(",")[0]) for point in curve.split()] == [0, 175, 350, 525, 700]
    assert proposed(out)[:2] == ["sample", "here"]
    assert typed(*proposed(out))[0] == 0


def test_a_demo_of_another_seed_does_not_mix_with_the_first(typed, mistyped, monkeypatch):
    monkeypatch.setattr(demo, "load_recipe", lambda name: tiny(train={"steps": 1}))
    assert typed("demo", "--out", "here")[0] == 0
    before = images.Path("here/digits.png").read_bytes()
    code, sentence = mistyped("demo", "--out", "here", "--seed", 1)
    assert code == 1
    assert "train.seed = 0, the recipe now says 1" in sentence
    assert typed("demo", "--out", "there", "--seed", 1)[0] == 0
    assert images.Path("here/digits.png").read_bytes() == before
    assert images.Path("there/digits.png").read_bytes() != before


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (59.6, "1:00"), (160, "2:40"),
                                               (3909, "1:05:09"), (360_000, "100:00:00")])
def test_times_are_told_as_a_clock_would(seconds, told):
    assert clock(seconds) == told


def test_data_lists_every_set_and_verifies_the_embedded_one(typed):
    code, out, _ = typed("data", "list")
    assert code == 0
    assert re.search(r"digits +train +10,000 pictures +1,653,419 bytes +embedded", out)
    assert {line.split()[0] for line in out.splitlines()[:-1]} == {
        "digits", "mnist", "fashion-mnist", "cifar10"}
    assert typed("data", "verify", "digits") == (0, "digits train: good (embedded)\n", "")
    code, out, _ = typed("data", "fetch", "digits")        # is here already: no network needed
    assert code == 0
    assert "digits train: 10,000 pictures from embedded" in out


def test_info_says_the_same_in_words_and_in_json(typed):
    facts = json.loads(typed("info", "--json")[1])
    assert facts.keys() >= {"tinydiff", "python", "numpy", "blas", "cores", "threads", "gpu"}
    assert (facts["tinydiff"], facts["numpy"]) == (__version__, np.__version__)
    lines = dict(line.split(maxsplit=1) for line in typed("info")[1].splitlines())
    assert lines == {name: str(fact) for name, fact in facts.items()}


def test_the_version_and_the_help_come_without_numpy():
    for words, says in ((["--version"], __version__), (["--help"], "tinydiff demo"),
                        (["sample", "--help"], "--negative"), (["train", "--help"], "--stop-at")):
        code = ("import sys\nfrom tinydiff.cli import main\n"
                f"try:\n    main({words})\nfinally:\n    assert 'numpy' not in sys.modules")
        done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, text=True,
                              capture_output=True, check=False, encoding="utf-8")
        assert (done.returncode, done.stderr) == (0, "")
        assert says in done.stdout


# What does not


@pytest.mark.parametrize(("words", "says"), [
    ("",                                         "the following arguments are required: COMMAND"),
    ("trian demo",                               "invalid choice: 'trian'"),
    ("train",                                    r"which recipe\? There are .*demo"),
    ("train dmeo",                               "no recipe 'dmeo'.*did you mean 'demo'"),
    ("train nowhere/a.toml",                     "no recipe 'nowhere/a.toml'"),
    ("train TINY --resume --out no",             "checkpoint.safetensors does not exist"),
    ("train TINY --out RUN",                     "holds a run already; --resume goes on with it"),
    ("train TINY --set train.step=1",            "did you mean 'steps'"),
    ("train TINY --set steps=1",                 "expected table.key=value"),
    ("train TINY --set train.lr=fast",           "train.lr expects a number, got 'fast'"),
    ("train TINY --set data.name=mnits",         "no data set 'mnits'; did you mean 'mnist'"),
    ("train TINY --set text.length=3",           "the text encoder reads at most 3"),
    ("train TINY --stop-at 0",                   "whole number from 1, got '0'"),
    ("train TINY --device gpu",                  "invalid choice: 'gpu'"),
    ("demo --seed -1",                           "from 0 to 18446744073709551615, got '-1'"),
    ("demo --seed 18446744073709551616",         "from 0 to 18446744073709551615"),
    ("sample RUN",                               "required: --prompt"),
    ("sample RUN --prompt 7 --n 0",              "--n: expected a whole number from 1, got '0'"),
    ("sample RUN --prompt 7 --n many",           "whole number from 1, got 'many'"),
    ("sample RUN --prompt 7 --steps 51",         "from 1 to the schedule's T = 50, got 51"),
    ("sample RUN --prompt 7 --steps 0",          "whole number from 1, got '0'"),
    ("sample RUN --prompt 7 --size 28",          "expected HxW, as in 28x28, got '28'"),
    ("sample RUN --prompt 7 --size 0x28",        "expected HxW"),
    ("sample RUN --prompt 7 --size 28x28x1",     "expected HxW"),
    ("sample RUN --prompt 7 --size 30x28",       r"in multiples of 4, got \(30, 28\)"),
    ("sample RUN --prompt 7 --sampler dpm",      "no sampler called 'dpm'; did you mean 'ddpm'"),
    ("sample RUN --prompt 7 --guidance much",    "invalid float value: 'much'"),
    ("sample RUN --prompt 7 --guidance nan",     "a finite guidance, got nan"),
    ("sample RUN --prompt 7 --batch 0",          "--batch: expected a whole number from 1"),
    ("sample RUN --prompt 7 --out a.bmp",        "ends in .png, .gif, .webp or .npy"),
    ("sample RUN --prompt abcdefghijklmnopqrstuvwxyz", "27 tokens long, the text encoder reads"),
    ("data fetch",                               "data fetch: which data set"),
    ("data fetch mnits",                         "no data set 'mnits'; did you mean 'mnist'"),
    ("data verify cifar",                        "did you mean 'cifar10'"),
    ("data burn mnist",                          "invalid choice: 'burn'")])
def test_what_is_typed_wrongly_costs_one_sentence_and_leaves_nothing(
        words, says, mistyped, trained, tmp_path):
    words = words.replace("TINY", (trained / "tiny.toml").as_posix())
    code, sentence = mistyped(*shlex.split(words.replace("RUN", (trained / "run").as_posix())))
    assert code == 2
    assert re.search(says, sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_cannot_be_used_is_told_with_the_reason(mistyped, trained):
    for words in (["train", trained / "tiny.toml"], ["sample", trained / "run", "--prompt", "7"]):
        code, sentence = mistyped(*words, "--device", "cuda")
        assert code == 2
        assert re.search(r"--device cuda: .+; use --device cpu", sentence)


def test_a_model_that_is_not_there_is_named(mistyped, tmp_path):
    assert mistyped("sample", "mnits", "--prompt", "7")[0] == 1
    (tmp_path / "empty").mkdir()
    code, sentence = mistyped("sample", "empty", "--prompt", "7")
    assert code == 1
    assert "empty holds neither checkpoint.safetensors nor model_index.json" in sentence


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda data: data[:1000],                        "cut short"),
    (lambda data: data[:-1] + bytes([data[-1] ^ 1]),  "is damaged"),
    (lambda data: b"",                                "an empty file"),
    (lambda data: b"PK\3\4" + data,                   "never unpickles")])
@pytest.mark.parametrize("words", [["sample", "run", "--prompt", "7"],
                                   ["train", "TINY", "--out", "run", "--resume"]])
def test_a_spoilt_checkpoint_is_told_and_left_as_it_is(spoil, says, words, mistyped, run, trained):
    path = run / "checkpoint.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    before = {file: file.read_bytes() for file in run.iterdir()}
    recipe = trained / "tiny.toml"
    code, sentence = mistyped(*[recipe if word == "TINY" else word for word in words])
    assert code == 1
    assert says in sentence
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_resuming_with_other_values_names_the_key(mistyped, run, trained):
    code, sentence = mistyped("train", trained / "tiny.toml", "--out", "run", "--resume",
                              "--set", "train.lr=0.5")
    assert code == 1
    assert "trained with train.lr = 0.002, the recipe now says 0.5" in sentence


def test_data_that_is_missing_cut_short_or_altered_is_told(mistyped, typed, trained, tmp_path,
                                                           monkeypatch):
    home = tmp_path / "data" / "mnist"
    home.mkdir(parents=True)
    monkeypatch.setenv("TINYDIFF_DATA_DIR", str(home.parent))
    monkeypatch.setitem(sys.modules, "pooch", None)        # no cache and no network
    train = ("train", trained / "tiny.toml", "--out", "out", "--set", "data.name=mnist")
    code, sentence = mistyped(*train)
    assert code == 1
    assert "is not here" in sentence
    for part in ("train-images-idx3", "train-labels-idx1"):
        (home / f"{part}-ubyte.gz").write_bytes(b"\x1f\x8b")
    code, sentence = mistyped(*train)
    assert code == 1
    assert "is damaged" in sentence
    code, out, err = typed("data", "verify", "mnist")
    assert code == 1
    assert "mnist train: train-images-idx3-ubyte.gz (TINYDIFF_DATA_DIR) is damaged" in out
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_fails_in_one_sentence_with_its_last_checkpoint(mistyped, trained):
    code, sentence = mistyped("train", trained / "tiny.toml", "--out", "out", "--set",
                              "train.lr=1e12", "--set", "train.warmup=0",
                              "--set", "train.save_every=1")
    assert code == 1
    assert re.search(r"the (loss|gradient) of step \d+ is (nan|inf), lost at ", sentence)
    assert checkpoint.load("out/checkpoint.safetensors")[1]["step"] >= 1


@pytest.mark.parametrize(("error", "code", "says"), [
    (KeyboardInterrupt(),                        130, "tinydiff: interrupted"),
    (MemoryError(),                              1,   "tinydiff: out of memory; take fewer or "
                                                      "smaller pictures"),
    (OSError(28, "No space left on device"),     1,   "tinydiff: No space left on device"),
    (OSError(28, "No space left", "a.png"),      1,   "tinydiff: a.png: No space left"),
    (OSError("one sentence"),                    1,   "tinydiff: one sentence"),
    (ModuleNotFoundError("films need Pillow"),   1,   "tinydiff: films need Pillow"),
    (ZeroDivisionError("division by zero"),      1,   "tinydiff: division by zero")])
def test_what_goes_wrong_becomes_one_sentence(error, code, says, typed, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(cli, "do_info", fail)
    assert typed("info") == (code, "", says + "\n")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_without_permission_to_write_one_sentence_names_the_place(mistyped, trained, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for words in (["train", trained / "tiny.toml", "--out", "locked/run"],
                  ["sample", trained / "run", "--prompt", "7", "--out", "locked/a.png"]):
        code, sentence = mistyped(*words)
        assert code == 1
        assert "locked" in sentence
        assert "Permission denied" in sentence


def test_a_file_where_a_folder_should_be_is_named(mistyped, trained, tmp_path, monkeypatch):
    def rehearsed(*_):
        raise AssertionError("too late")

    monkeypatch.setattr("tinydiff.report.rehearse", rehearsed)
    (tmp_path / "file").write_bytes(b"")
    for words in (["train", trained / "tiny.toml"], ["demo"]):
        for out in ("file", "file/run"):
            code, sentence = mistyped(*words, "--out", out)
            assert code == 2
            assert sentence == "tinydiff: file: is a file, expected a folder"


def test_a_picture_that_cannot_be_written_is_found_before_it_is_drawn(mistyped, trained, tmp_path,
                                                                      monkeypatch):
    def drawn(*_):
        raise AssertionError("too late")

    monkeypatch.setattr("tinydiff.generate.together", drawn)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for out in ("file/a.png", "folder.png"):
        code, sentence = mistyped("sample", trained / "run", "--prompt", "7", "--out", out)
        assert code == 1
        assert out in sentence


@pytest.mark.parametrize(("saved", "resume"), [(True, " --resume"), (False, "")])
def test_the_second_ctrl_c_says_what_is_lost_and_how_to_go_on(saved, resume, mistyped, trained,
                                                              monkeypatch):
    def pressed_twice(training, folder, **_):
        if saved:
            training.save(folder / "checkpoint.safetensors")
        raise KeyboardInterrupt

    monkeypatch.setattr("tinydiff.train.fit", pressed_twice)
    code, sentence = mistyped("train", trained / "tiny.toml", "--out", "out")
    assert code == 130
    assert re.search("interrupted; the steps since the last save are lost; go on with: tinydiff "
                     rf"train \S+tiny.toml --out out{resume}$", sentence)


LIMITED = """
import resource, sys
from tinydiff.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@ON_UNIX
@pytest.mark.parametrize(("limit", "words", "left"), [
    (100_000, "train TINY --out out",                   {"config.toml", "metrics.csv"}),
    (100, "train TINY --out out",                       set()),
    (200, "sample RUN --prompt 7 --out out/a.png",      set()),
    (200, "sample RUN --prompt 7 --out out/a.gif",      set()),
    (200, "sample RUN --prompt 7 --out out/a.npy",      set())])
def test_a_full_disk_costs_one_sentence_and_leaves_nothing_half_written(
        limit, words, left, trained, tmp_path):
    words = words.replace("TINY", str(trained / "tiny.toml")).replace("RUN", str(trained / "run"))
    done = subprocess.run([sys.executable, "-c", LIMITED, str(limit), *words.split()], text=True,
                          cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^tinydiff: out\S*: File too large$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == left


@ON_UNIX
def test_a_checkpoint_that_cannot_be_replaced_stays(trained, run, tmp_path):
    before = (run / "checkpoint.safetensors").read_bytes()
    words = ["train", str(trained / "tiny.toml"), "--out", "run", "--resume"]
    done = subprocess.run([sys.executable, "-c", LIMITED, "100000", *words], text=True,
                          cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 1
    assert "run/checkpoint.safetensors: File too large" in done.stderr
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert cli.main([*words[:-2], str(run), "--resume"]) == 0           # there is room again
