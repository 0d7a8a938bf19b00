"""What text encoders do in their own ways: ours, CLIP's, BERT's and T5's.

A Form answers where words stand, who sees whom, how a layer joins what it reads, what is shown.
"""

import numpy as np

from tinydiff.autograd import Tensor, concat, mean, tanh
from tinydiff.models.tokenizer import PAD
from tinydiff.nn import Embedding, LayerNorm, Linear, RMSNorm


class Form:
    """What a kind of text encoder does in its own way; here, what most do. No object is made."""

    norm, bias, scale = LayerNorm, True, None             # of linear maps; of scores, None: 1/√d
    std = 0.02                                            # of the tables before training

    def tables(encoder, c, rng):                          # what `place` looks up
        encoder.position = Embedding(c.length, c.width, rng=rng, std=encoder.form.std)

    def place(encoder, x):                                # x of known places, a bias of scores
        return x + encoder.position.table[:x.shape[1]], None          # LDM Eq. 18

    def seen(ids, mask):                                  # (N, 1, 1 or L, L): who looks at whom
        return (np.ones_like(ids) if mask is None else mask).astype(bool)[:, None, None, :]

    def join(x, norm, layer):
        return x + layer(norm(x))                         # LDM Eq. 19, 20, 21, 22

    def finish(encoder, x, ids):
        return encoder.norm(x)                                        # LDM Eq. 23

    def summary(encoder, x, ids):                         # the whole text, an array (N, width)
        return None


class Masked(Form):
    """Ours: padding is not seen, and zeros are shown in its place."""

    def seen(ids, mask):
        return Form.seen(ids, ids != PAD if mask is None else mask)

    def finish(encoder, x, ids):
        return encoder.norm(x) * (ids != PAD)[:, :, None].astype(x.dtype)


class Near(Masked):
    """Ours, made to be understood soon: half the heads look back and half ahead, near sooner.

    So "red" is of the circle behind it, and "above" of what is on its either side, before anything
    is learned.  ALiBi (2108.12409)  Padding shows the text again, over and over, so that whoever
    attends hears words only, and the first token is the mean of all. The table starts so large
    that attention does not drown a word in all others.
    """

    std = 0.5

    def tables(encoder, c, rng):                          # nothing to look up
        pass

    def place(encoder, x):                                # (heads, L, L): 0 for oneself
        places, heads = (np.arange(n, like=x.data) for n in (x.shape[1], encoder.config.heads))
        ahead = (places - places[:, None]) * np.where(heads % 2, 1, -1)[:, None, None]
        slope = 0.25 ** (heads // 2)[:, None, None]       # 1, 1, 1/4, 1/4, …
        return x, Tensor(np.where(ahead >= 0, -slope * ahead, -1e4).astype(x.dtype))

    def finish(encoder, x, ids):
        n = (ids != PAD).sum(axis=1)[:, None]             # (N, 1), never 0: each text has a BEGIN
        texts, places = (np.arange(size, like=ids) for size in ids.shape)
        shown = encoder.norm(x)[texts[:, None], places % n]
        return concat(mean(shown, axis=1, keepdims=True), shown[:, 1:], axis=1)


class Clip(Form):
    """Tokens look back only, so the one at the end knows the whole text."""

    def seen(ids, mask):
        return Form.seen(ids, mask) & np.tri(ids.shape[1], dtype=bool, like=ids)

    def summary(encoder, x, ids):
        end = encoder.config.end
        sought = ids if end == 2 else ids == end
        return None if end is None else x.data[np.arange(len(ids), like=ids), sought.argmax(axis=1)]


class Bert(Form):
    """Norms stand behind what is joined; all tokens are of the first kind."""

    def tables(encoder, c, rng):
        Form.tables(encoder, c, rng)
        encoder.kind = Embedding(c.kinds, c.width, rng=rng)
        encoder.pooler = Linear(c.width, c.width, rng=rng) if c.pooler else None

    def place(encoder, x):
        return encoder.norm(Form.place(encoder, x)[0] + encoder.kind.table[0]), None

    def join(x, norm, layer):
        return norm(x + layer(x))                         # Transformer §3.1

    def finish(encoder, x, ids):
        return x

    def summary(encoder, x, ids):
        return tanh(encoder.pooler(x[:, 0])).data if encoder.pooler else None


def distances(L, rows, farthest, like=None):
    """(L, L): which of the rows of a table goes with query and key.  T5 (1910.10683) §2.1

    Half are for keys ahead. Near distances have a row each, others share one with ever more. An
    array where `like` is, so that nothing has to be sent there.
    """
    places, half = np.arange(L, like=like), rows // 2
    ahead = places - places[:, None]
    near, distance = half // 2, np.abs(ahead)
    far = np.log(np.maximum(distance, near) / near) / np.log(farthest / near)
    far = np.minimum(near + (far * (half - near)).astype(int), half - 1)
    return half * (ahead > 0) + np.where(distance < near, distance, far)


class T5(Form):
    """Places are distances, which count in the scores; those are not divided."""

    norm, bias, scale = RMSNorm, False, 1.0

    def tables(encoder, c, rng):
        encoder.position = Embedding(c.buckets, c.heads, rng=rng)

    def place(encoder, x):
        rows = distances(x.shape[1], encoder.config.buckets, encoder.config.farthest,
                         like=x.data)
        return x, encoder.position(rows).transpose(2, 0, 1)           # (heads, L, L)


FORMS = {"masked": Masked, "near": Near, "clip": Clip, "bert": Bert, "t5": T5}
