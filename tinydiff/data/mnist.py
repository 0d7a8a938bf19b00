"""MNIST and Fashion-MNIST: 28×28 grey pictures in ten classes, two sets in one format (IDX)."""

from pathlib import PurePosixPath

import numpy as np

from tinydiff.data.idx import read_idx
from tinydiff.data.sources import (
    EMBEDDED,
    PACKAGED,
    Found,
    Published,
    contents,
    describe,
    download,
    find,
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
HOSTS = {"mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist",
                   "https://storage.googleapis.com/cvdf-datasets/mnist"),
         "fashion-mnist": (
             "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
             "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com")}


def _published(path, size, packed, unpacked):
    path = PurePosixPath(path)
    urls = tuple(f"{host}/{path.name}" for host in HOSTS[str(path.parent)])
    return Published(str(path), size, "sha256:" + packed, urls, "sha256:" + unpacked)


# (set, split): images, labels, each with its bytes and the sha256 as published and decompressed
FILES = {
    ("mnist", "train"): (
        _published("mnist/train-images-idx3-ubyte.gz", 9_912_422,
                   "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                   "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        _published("mnist/train-labels-idx1-ubyte.gz", 28_881,
                   "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                   "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5")),
    ("mnist", "test"): (
        _published("mnist/t10k-images-idx3-ubyte.gz", 1_648_877,
                   "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                   "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        _published("mnist/t10k-labels-idx1-ubyte.gz", 4_542,
                   "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                   "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2")),
    ("fashion-mnist", "train"): (
        _published("fashion-mnist/train-images-idx3-ubyte.gz", 26_421_880,
                   "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                   "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        _published("fashion-mnist/train-labels-idx1-ubyte.gz", 29_515,
                   "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                   "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9")),
    ("fashion-mnist", "test"): (
        _published("fashion-mnist/t10k-images-idx3-ubyte.gz", 4_422_102,
                   "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                   "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        _published("fashion-mnist/t10k-labels-idx1-ubyte.gz", 5_148,
                   "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                   "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"))}
FILES["digits", "train"] = FILES["mnist", "test"]           # the copy inside the package


def locate(name, split):
    """Where the images and the labels lie now: [Found or None, Found or None]."""
    if name == "digits":
        return [Found(EMBEDDED, PACKAGED / PurePosixPath(file.path).name)
                for file in FILES[name, split]]
    return [find(file.path, file.path.removesuffix(".gz")) for file in FILES[name, split]]


def read(name, split):
    """Images uint8 (N, 28, 28, 1), labels int64 (N,), and where they came from."""
    files = FILES[name, split]
    found = [here or download(file) for here, file in zip(locate(name, split), files)]
    images, labels = (read_idx(contents(here, file.unpacked), here.path.name)
                      for here, file in zip(found, files))
    return images[..., None], labels.astype(np.int64), describe(found)
