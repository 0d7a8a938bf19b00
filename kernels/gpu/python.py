"""A kernel in Python: Numba-CUDA on a GPU, the simulator on NumPy arrays.

    from ..gpu.python import cuda, kernel

    @kernel("float32[:,::1], float32[:,::1]")
    def double(x, y):
        i, j = cuda.grid(2)
        if i < x.shape[0] and j < x.shape[1]:
            y[i, j] = 2 * x[i, j]

    double[(4, 4), (16, 16)](x, y)                        # blocks, threads of a block

`cuda` stands for numba.cuda's vocabulary. Inside a running kernel it is that, or the simulator's;
outside it is nothing, so no kernel's file needs a GPU, or Numba, to be imported.
"""

from functools import cached_property, partial
from types import FunctionType

from .arrays import as_numpy, for_gpu
from .order import turns


class Vocabulary:
    """What `cuda` is until a kernel runs."""

    def __getattr__(self, word):
        raise AttributeError(f"cuda.{word} has a meaning only inside a kernel that runs")


cuda = Vocabulary()


def kernel(signature):
    """Make a kernel of a function.

    signature: the types of its arguments, as Numba writes them, for machine code made without a GPU
    (machine_code.py); at a launch on a GPU Numba looks at the arguments themselves.
    """
    return lambda function: Kernel(function, signature)


def device(function):
    """Mark a function that kernels call, and that uses `cuda` itself."""
    return Device(function)


class Device:
    def __init__(self, function):
        self.function = function
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, *args):
        return self.function(*args)


class Kernel:
    """A function of arrays and numbers that every thread of a grid runs."""

    def __init__(self, function, signature):
        self.function, self.signature = function, signature
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __getitem__(self, launch):
        grid, block = launch
        return partial(self.launch, grid, block)

    def launch(self, grid, block, *args):
        if for_gpu(args):
            self.on_gpu(grid, block, *args)
            return
        from .simulator import launch
        chosen = turns()
        launch(self, grid, block, *(as_numpy(a) if hasattr(a, "dtype") and a.ndim else a
                                    for a in args),
               order=chosen.order, races=chosen.races, trace=chosen.trace)

    def on_gpu(self, grid, block, *args):
        """Launch on CuPy's stream, without waiting for anyone."""
        import cupy
        from numba import cuda as real
        stream = real.external_stream(cupy.cuda.get_current_stream().ptr)
        self.compiled[grid, block, stream](*(
            real.as_cuda_array(a, sync=False) if isinstance(a, cupy.ndarray) else a for a in args))

    @cached_property
    def compiled(self):
        try:
            from numba import cuda as real
            from numba.core import config
        except ImportError:
            raise ModuleNotFoundError("kernels in Python need numba-cuda on a GPU; "
                                      "pip install 'tinydiff[cuda13]'") from None
        config.CUDA_LOW_OCCUPANCY_WARNINGS = 0            # a small picture has few blocks
        return real.jit(self.bound(real))

    def bound(self, vocabulary):
        """The function with `cuda` being numba.cuda itself."""
        return bind(self.function, vocabulary,
                    lambda helper: vocabulary.jit(device=True, inline="always")(helper))


def bind(function, vocabulary, finish=lambda helper: helper):
    """A copy of a kernel's function in which `cuda`, also that of its helpers, is `vocabulary`."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        value = names.get(name)
        if value is cuda:
            names[name] = vocabulary
        elif isinstance(value, Device):
            names[name] = finish(bind(value.function, vocabulary, finish))
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__,
                        function.__closure__)
    copy.__module__ = function.__module__
    return copy
