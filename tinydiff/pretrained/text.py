"""The text encoders of transformers: CLIPTextModel, BertModel and T5EncoderModel."""

from dataclasses import replace
from functools import partial

import numpy as np

from tinydiff.models.text_encoder import TextEncoder, TextEncoderConfig
from tinydiff.pretrained.options import Options, is_list
from tinydiff.pretrained.tensors import named
from tinydiff.pretrained.weights import UNSET, Place, fill, renamed

CLASSES = {"CLIPTextModel": "clip", "CLIPModel": "clip", "BertModel": "bert",
           "BertForMaskedLM": "bert", "BertForPreTraining": "bert", "T5EncoderModel": "t5",
           "T5Model": "t5", "T5ForConditionalGeneration": "t5"}
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "gelu_quick", "gelu_new": "gelu_tanh", "relu": "relu",
               "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SIZES = "vocabulary length width depth heads hidden".split()
KEYS = {"t5": "vocab_size n_positions d_model num_layers num_heads d_ff".split()}
KEYS["clip"] = KEYS["bert"] = ("vocab_size max_position_embeddings hidden_size num_hidden_layers "
                               "num_attention_heads intermediate_size").split()
DEFAULTS = {"clip": (49408, 77, 512, 12, 8, 2048), "bert": (30522, 512, 768, 12, 12, 3072),
            "t5":   (32128, 512, 512, 6, 8, 2048)}
ENDS = (r"\.(w|scale|table)$", ".weight"), (r"\.(b|shift)$", ".bias")
NAMES = {                                                 # ours, theirs
    "clip": (
        (r"^(token|position)", r"embeddings.\1_embedding"), (r"^blocks", "encoder.layers"),
        (r"\.attention\.(q|k|v|out)", r".self_attn.\1_proj"), (r"\.norm", ".layer_norm"),
        (r"\.linear", ".mlp.fc"), (r"^norm", "final_layer_norm"), *ENDS),
    "bert": (
        (r"^token", "embeddings.word_embeddings"), (r"^kind", "embeddings.token_type_embeddings"),
        (r"^position", "embeddings.position_embeddings"), (r"^norm", "embeddings.LayerNorm"),
        (r"^pooler", "pooler.dense"), (r"^blocks", "encoder.layer"),
        (r"\.attention\.q", ".attention.self.query"), (r"\.attention\.k", ".attention.self.key"),
        (r"\.attention\.v", ".attention.self.value"), (r"n\.out", "n.output.dense"),
        (r"\.norm1", ".attention.output.LayerNorm"), (r"\.norm2", ".output.LayerNorm"),
        (r"\.linear1", ".intermediate.dense"), (r"\.linear2", ".output.dense"), *ENDS),
    "t5": (
        (r"^token", "shared"), (r"^norm", "encoder.final_layer_norm"),
        (r"^position", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        (r"^blocks", "encoder.block"), (r"\.attention\.(.)(ut)?", r".layer.0.SelfAttention.\1"),
        (r"\.norm1", ".layer.0.layer_norm"), (r"\.norm2", ".layer.1.layer_norm"),
        (r"\.(linear|mlp)", r".layer.1.DenseReluDense.\1"), (r"linear1", "wi"),
        (r"mlp\.gate", "wi_0"), (r"mlp\.value", "wi_1"), (r"linear2|mlp\.out", "wo"), *ENDS)}
OLD = ((r"^(text_model|bert)\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"),
       (r"LayerNorm\.beta$", "LayerNorm.bias"), (r"^encoder\.embed_tokens\.", "shared."))
IGNORE = {"clip": (r"embeddings\.position_ids$", r"^(vision_model|\w+_projection)\.|^logit_scale$"),
          "bert": (r"embeddings\.position_ids$", r"^cls\."),
          "t5":   (r"^(decoder|lm_head)\.", r"^(shared|encoder\.embed_tokens)\.")}    # tied


def place(form, path):
    """Where a parameter of a TextEncoder of this form stands in a model of theirs."""
    return Place(renamed(path, NAMES[form]))


def load_text_encoder(theirs, file, tensors):
    """The TextEncoder of a config of theirs, read from `file`, with their tensors.

    Raises ValueError naming file and key for what it cannot be, and as `weights.fill`.
    """
    config = read_config(theirs, file)
    if config.form == "bert":
        config = replace(config, pooler=any("pooler." in key for key in tensors))
    model = TextEncoder(config, rng=UNSET)
    fill(model, tensors, partial(place, config.form), IGNORE[config.form], OLD)
    tied = [key for key in tensors if renamed(key, OLD) == "shared.weight"]
    if len(tied) > 1 and not all(np.array_equal(tensors.read(key), model.token.table.data, True)
                                 for key in tied):
        raise ValueError(f"{tensors.file}: expected the same numbers in {named(' and '.join(tied))}"
                         "; delete the one that was not trained")
    return model


def read_config(theirs, file):
    """The TextEncoderConfig of a config of theirs, read from `file`.

    Raises ValueError naming file and key for what a TextEncoder cannot be.
    """
    o = Options(theirs, file)
    [name, *_] = o.take("architectures", None, lambda names: is_list(names)
                        and names[0] in list(CLASSES), f"one of {', '.join(CLASSES)}")
    form = CLASSES[name]
    if form == "clip":                                    # perhaps beside that of pictures
        o = Options(o.take("text_config", theirs, lambda c: type(c) is dict, "an object"), file)
    c = {ours: o.whole(key, default, 256 if ours == "depth" else 1 << 20)
         for ours, key, default in zip(SIZES, KEYS[form], DEFAULTS[form])}
    if form == "t5":
        return TextEncoderConfig(form="t5", **c | t5(o, c["heads"]))
    o.take("num_attention_heads", c["heads"], lambda n: c["width"] % n == 0,
           f"a divisor of hidden_size, {c['width']}")
    activation, eps = ("gelu", 1e-12) if form == "bert" else ("quick_gelu", 1e-5)
    c |= dict(activation=ACTIVATIONS[o.choice("hidden_act", activation, *ACTIVATIONS)],
              eps=o.positive("layer_norm_eps", eps), form=form)
    if form == "clip":
        end = o.take("eos_token_id", 49407, lambda i: type(i) is int, "one id")
        return TextEncoderConfig(**c, end=end)
    o.choice("position_embedding_type", "absolute", "absolute")
    o.choice("is_decoder", False, False)
    return TextEncoderConfig(**c, kinds=o.whole("type_vocab_size", 2))


def t5(o, heads):
    """What else a T5Config says. Its "gated-gelu" is the tanh form, its "gelu" is not."""
    kind = o.choice("feed_forward_proj", "relu", *ACTIVATIONS, *(f"gated-{a}" for a in ACTIVATIONS))
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    far = o.whole("relative_attention_max_distance", 128)
    return dict(length=0, inner=heads * o.whole("d_kv", 64), activation=ACTIVATIONS[name],
                gated=name != kind, eps=o.positive("layer_norm_epsilon", 1e-6), farthest=far,
                buckets=o.take("relative_attention_num_buckets", 32, lambda n: type(n) is int
                               and 4 <= n < 4 * far, f"a whole number from 4 to {4 * far - 1}"))


def write_config(config):
    """config.json of a CLIPTextModel.  ValueError naming keys of [text] for what it cannot be."""
    c = config
    if (c.form, c.gated, c.inner or c.width) != ("clip", False, c.width):
        raise ValueError('export: CLIPTextModel is text.form = "clip" without gated and inner, not '
                         f"{c.form!r}, {c.gated}, {c.inner}; train with these")
    sizes = c.vocabulary, c.length, c.width, c.depth, c.heads, c.hidden or 4 * c.width
    name = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation)
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": name,
            **dict(zip(KEYS["clip"], sizes)), "layer_norm_eps": c.eps,
            "eos_token_id": -1 if c.end is None else c.end}
