"""A GPU's kernels, with a GPU and without: written once, run there, stepped through here.

A kernel in Python (`python.py`) runs on a GPU through Numba-CUDA, and thread by thread in
`simulator.py`; a kernel in CUDA C++ (`source.py`) runs on a GPU as machine code of NVRTC, and on
the CPU as the host's compiler makes it with `host.hpp`. Which it is, its arrays decide: CuPy's or
NumPy's. Start with python.py and conv2d/rung5_cuda_naive.py.
"""
