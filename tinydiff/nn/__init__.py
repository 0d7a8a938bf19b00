"""Layers: plain classes that hold Tensors and are called. Start with module.py, then layers.py."""

from tinydiff.nn.attention import Attention
from tinydiff.nn.layers import Conv2d, Embedding, GroupNorm, LayerNorm, Linear, RMSNorm, suited
from tinydiff.nn.module import Module
from tinydiff.nn.time_embedding import TimeEmbedding, sinusoids

__all__ = ["Attention", "Conv2d", "Embedding", "GroupNorm", "LayerNorm", "Linear", "Module",
           "RMSNorm", "TimeEmbedding", "sinusoids", "suited"]
