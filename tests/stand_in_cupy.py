"""A strict stand-in for the module `cupy`: its arrays are NumPy's, its manners are CuPy's.

No array turns into NumPy's by itself, NumPy's arrays are refused beside it, only what CuPy has is
there, and every way between host and device is counted, with the file that took it. A stream may
record (stand_in_graph.py); what is not imitated is work that waits, and memory really elsewhere.

    def test_…(cupy):                                     # a fixture of conftest.py
        x = cupy.asarray(np.ones(3))
        assert len(cupy.stand_in.uploads) == 1
"""

import sys
from functools import reduce, wraps
from math import erf, erfc
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import stand_in_cuda
import stand_in_graph
from stand_in_cuda import CUDARuntimeError, OutOfMemoryError, charge, device
from stand_in_graph import asked, computed, refuse_cublas, refuse_waiting, sent

__all__ = ["CUDARuntimeError", "OutOfMemoryError", "device"]

# What CuPy 14 has: names and the keywords they take. A test compares them with CuPy itself.
UFUNCS = """absolute add arccos cos divide equal exp expm1 greater greater_equal isfinite less
less_equal log log1p maximum minimum multiply negative not_equal power sign sin sqrt square subtract
tanh""".split()
FUNCTIONS = {
    "any": "axis", "arange": "dtype", "array_equal": "", "ascontiguousarray": "dtype",
    "broadcast_to": "", "clip": "out", "concatenate": "axis out dtype casting", "einsum": "",
    "empty": "dtype", "empty_like": "dtype shape", "eye": "dtype", "full": "dtype",
    "matmul": "out", "meshgrid": "indexing", "moveaxis": "", "ones": "dtype",
    "ones_like": "dtype shape", "pad": "mode", "quantile": "axis", "repeat": "axis", "sinc": "",
    "stack": "axis out dtype casting", "tri": "M k dtype", "where": "", "zeros": "dtype",
    "zeros_like": "dtype shape"}
METHODS = {
    "all": "axis keepdims", "any": "axis keepdims", "argmax": "axis", "argmin": "axis",
    "astype": "copy", "clip": "min max", "copy": "", "cumsum": "axis", "max": "axis keepdims",
    "mean": "axis dtype keepdims", "min": "axis keepdims", "repeat": "axis", "reshape": "",
    "round": "", "squeeze": "axis", "std": "axis keepdims", "sum": "axis dtype keepdims",
    "swapaxes": "", "transpose": "", "view": ""}
OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lt le gt ge eq ne".split()

uploads, downloads, synchronisations = [], [], []         # (file, shape) each, up to `clear`
doors = set()                                             # the files that had any of the first two


def clear():
    for ways in (uploads, downloads, synchronisations):
        ways.clear()
    stand_in_graph.clear()


def note(ways, shape):
    """Who was it: the first file outside this one and NumPy. Nobody while a stream records."""
    if ways is not uploads:
        refuse_waiting()
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__ or "numpy" in Path(frame.f_code.co_filename).parts:
        frame = frame.f_back
    file = Path(frame.f_code.co_filename).name
    ways.append((file, tuple(shape)))
    if ways is not synchronisations:
        doors.add(file)


def bare(x):
    """An argument as a kernel gets it: memory for an array of ours, and numbers."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return type(x)(map(bare, x)) if isinstance(x, (list, tuple)) else x


def ours(y):
    """A result of NumPy's as an array of ours, or several."""
    if isinstance(y, (list, tuple)):
        return type(y)(map(ours, y))
    x = object.__new__(ndarray)
    x._host = np.asarray(y)
    charge(x._host)
    return x


def imitated(name, function, keywords):
    """`function` of NumPy on arrays of ours, with CuPy's keywords and no others."""
    @wraps(function)
    def f(*args, **options):
        if strange := options.keys() - keywords:
            raise TypeError(f"cupy.{name} takes no {', '.join(sorted(strange))}")
        refuse_cublas(name)
        args, options = bare(args), {key: bare(value) for key, value in options.items()}
        with np.errstate(all="ignore"):                   # as on a GPU
            return ours(computed(function, *args, **options))
    return f


class ndarray:
    """cupy.ndarray, as far as it is used here."""

    __slots__ = ("_host", "__weakref__")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None):
        assert memptr is None, "views of memory are made by as_strided"
        self._host = ours(np.empty(shape, dtype))._host

    shape    = property(lambda x: x._host.shape)
    ndim     = property(lambda x: x._host.ndim)
    size     = property(lambda x: x._host.size)
    dtype    = property(lambda x: x._host.dtype)
    itemsize = property(lambda x: x._host.itemsize)
    nbytes   = property(lambda x: x._host.nbytes)
    strides  = property(lambda x: x._host.strides)
    T        = property(lambda x: ours(x._host.T))
    data     = property(lambda x: SimpleNamespace(ptr=x._host.ctypes.data))

    @property
    def flags(self):
        flags = self._host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous,
                               owndata=flags.owndata)

    def get(self):
        note(downloads, self.shape)
        return self._host.copy()

    def tolist(self):
        note(downloads, self.shape)
        return self._host.tolist()

    def one(self):
        """The only number, for which the host must wait."""
        note(synchronisations, self.shape)
        return self._host.item()

    item      = one
    __bool__  = lambda self: bool(self.one())
    __int__   = lambda self: int(self.one())
    __float__ = lambda self: float(self.one())
    __repr__  = lambda self: f"on the device: {self._host!r}"

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __deepcopy__(self, memo):
        return self.copy()

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __getitem__(self, index):
        if any(isinstance(i, ndarray) and i.dtype == bool for i in several(index)):
            note(synchronisations, self.shape)            # how many are True?
        return ours(computed(np.ndarray.__getitem__, self._host, indexed(index)))

    def __setitem__(self, index, value):
        if not isinstance(value, NUMBERS):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        with np.errstate(all="ignore"):
            asked(np.ndarray.__setitem__, self._host, indexed(index), bare(value))

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        f = getattr(sys.modules["cupy"], ufunc.__name__, None)
        if method != "__call__" or f is None:
            return NotImplemented
        if "out" in options:
            [options["out"]] = options["out"]
        return f(*inputs, **options)

    def __array_function__(self, function, types, args, options):
        path = function.__module__.split(".")[1:]
        try:
            f = getattr(reduce(getattr, path, sys.modules["cupy"]), function.__name__)
        except AttributeError:
            return NotImplemented
        return f(*args, **options)


NUMBERS = ndarray, np.generic, int, float                 # what an operator takes beside an array


def several(index):
    return index if isinstance(index, tuple) else (index,)


def indexed(index):
    """An index as NumPy takes it. What comes from the host is sent over, as CuPy does unasked."""
    parts = []
    for part in several(index):
        if isinstance(part, (np.ndarray, list)):
            note(uploads, np.shape(part))
            part = sent(np.array(part))
        elif isinstance(part, ndarray):
            part = part._host
        parts.append(part)
    return tuple(parts)


def operator(name, reflected=False):
    function = getattr(np.ndarray, f"__{name}__")

    def f(x, y):
        if getattr(type(y), "__array_ufunc__", 0) is None:
            return NotImplemented                         # a Tensor: its turn
        if not isinstance(y, NUMBERS):
            raise TypeError(f"Unsupported type {type(y)}")
        refuse_cublas(name)
        with np.errstate(all="ignore"):
            if name.startswith("i"):                      # iadd: in place
                asked(function, x._host, bare(y))
                return x
            return ours(computed(function, x._host, bare(y)))
    return f


for name in OPERATORS:
    setattr(ndarray, f"__{name}__", operator(name))
    if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{name}__", operator(f"r{name}"))
        setattr(ndarray, f"__i{name}__", operator(f"i{name}"))
for name in ("neg", "abs", "invert", "pos"):
    setattr(ndarray, f"__{name}__", imitated(name, getattr(np.ndarray, f"__{name}__"), ""))
for name, keywords in METHODS.items():
    setattr(ndarray, name, imitated(f"ndarray.{name}", getattr(np.ndarray, name), keywords.split()))


def in_numbers(name):
    """A method that takes a shape or axes: CuPy has them as numbers or one tuple, nothing else."""
    method = getattr(ndarray, name)

    def f(x, *numbers):
        if any(isinstance(n, (list, np.ndarray)) for n in numbers):
            raise TypeError("an integer is required")
        return method(x, *numbers)
    return f


ndarray.reshape, ndarray.transpose = in_numbers("reshape"), in_numbers("transpose")


def asarray(x, dtype=None):
    if isinstance(x, ndarray):
        return x if dtype in (None, x.dtype) else x.astype(dtype)
    note(uploads, np.shape(x))
    return ours(sent(np.array(x, dtype)))


def array(x, dtype=None):
    return x.astype(dtype or x.dtype) if isinstance(x, ndarray) else asarray(x, dtype)


class Add:
    """cupy.add: a ufunc with `at`."""

    __call__ = staticmethod(imitated("add", np.add, ["out"]))

    @staticmethod
    def at(a, index, b):
        asked(np.add.at, bare(a), indexed(index), bare(b))


def modules():
    """{name: module} of the package."""
    names = "cupy cupy.cuda cupy.lib cupy.linalg cupyx cupyx.scipy cupyx.scipy.special".split()
    made = {name: ModuleType(name) for name in names}
    top, special = made["cupy"], made["cupyx.scipy.special"]
    top.stand_in, top.ndarray, top.cuda = sys.modules[__name__], ndarray, made["cupy.cuda"]
    top.asarray, top.array, top.add = asarray, array, Add()
    top.asnumpy = lambda x: x.get()
    for name in UFUNCS:
        if name != "add":
            setattr(top, name, imitated(name, getattr(np, name), ["out"]))
    for name, keywords in FUNCTIONS.items():
        setattr(top, name, imitated(name, getattr(np, name), keywords.split()))
    for f in (np.shape, np.ndim, np.size, np.result_type):            # no arrays come of these
        setattr(top, f.__name__, lambda *args, f=f: f(*bare(args)))
    strided = imitated("as_strided", np.lib.stride_tricks.as_strided, ["shape", "strides"])
    top.lib, top.lib.stride_tricks = made["cupy.lib"], SimpleNamespace(as_strided=strided)
    top.linalg = SimpleNamespace(norm=imitated("linalg.norm", np.linalg.norm, ["axis"]))
    top.split = lambda x, cuts, axis=0: ours(np.split(bare(x), cuts, axis))       # cuts: the host's
    for name in ("Stream", "MemoryPool", "using_allocator", "set_pinned_memory_allocator"):
        setattr(top.cuda, name, getattr(stand_in_graph, name))
    top.cuda.get_current_stream = stand_in_graph.current
    top.get_default_pinned_memory_pool = lambda: stand_in_graph.pinned
    top.cuda.memory, top.cuda.runtime = stand_in_cuda.memory, stand_in_cuda.runtime
    top.cuda.Device = lambda i=0: SimpleNamespace(
        compute_capability=device.capability, mem_info=stand_in_cuda.mem_info(),
        synchronize=lambda: note(synchronisations, ()))
    top.get_default_memory_pool = lambda: stand_in_cuda.pool
    special.erf, special.ndtr = (imitated(name, np.vectorize(f), "") for name, f in (
        ("erf", lambda x: type(x)(erf(x))), ("ndtr", lambda x: type(x)(0.5 * erfc(-x / 2**0.5)))))
    return made
