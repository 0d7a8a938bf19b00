"""Captions: many ways to ask for the same picture, made from its label."""

from tinydiff.data.mnist import DIGITS

THINGS = {
    "fashion-mnist": ("a t-shirt", "trousers", "a pullover", "a dress", "a coat",
                      "a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
    "cifar10": ("an airplane", "an automobile", "a bird", "a cat", "a deer",
                "a dog", "a frog", "a horse", "a ship", "a truck")}

OF_A_DIGIT = (                          # the first is how we ask for it ourselves
    "a handwritten {word}", "a handwritten {numeral}", "a hand-drawn {word}",
    "the digit {word}", "the digit {numeral}", "a handwritten digit {numeral}",
    "the number {word}", "the number {numeral}", "a handwritten number {word}",
    "{a} {word}", "{a} {numeral}", "{a} {word} written by hand",
    "a picture of {a} {word}", "a picture of the digit {numeral}",
    "{word}", "{numeral}")

OF_A_THING = (
    "a photo of {a_thing}", "a picture of {a_thing}", "a small picture of {a_thing}",
    "a small photo of {a_thing}", "an image of {a_thing}", "a blurry photo of {a_thing}",
    "a photo showing {a_thing}", "a thumbnail of {a_thing}", "this is a photo of {a_thing}",
    "a cropped photo of {a_thing}", "{a_thing}", "{thing}")


def captions(name, label):
    """Every caption of a label in the set `name`, the canonical one first.

    Raises ValueError for a set without captions or a label outside 0…9.
    """
    if name not in {"digits", "mnist", *THINGS} or label not in range(10):
        raise ValueError(f"captions: expected a label 0 to 9 of digits, mnist, "
                         f"{' or '.join(THINGS)}, got {label!r} of {name!r}")
    if name in THINGS:
        a_thing = THINGS[name][label]
        thing = a_thing.removeprefix("a ").removeprefix("an ")
        said = [form.format(a_thing=a_thing, thing=thing) for form in OF_A_THING]
        return tuple(dict.fromkeys(said))                   # "trousers" have no article
    a = "an" if label == 8 else "a"
    return tuple(form.format(word=DIGITS[label], numeral=label, a=a) for form in OF_A_DIGIT)
