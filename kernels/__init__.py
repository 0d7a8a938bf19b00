"""The kernels, one folder an operation, one numbered file a rung: array in, array out.

Nothing here knows Tensors or imports tinydiff. Start with conv2d/rung0_loops.py.
"""
