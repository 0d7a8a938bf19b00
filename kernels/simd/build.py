"""From Python to machine code: Numba compiles a task; this file teaches it the vector language.

It runs in a process of its own, started by cache.py, so that neither Numba nor the memory it takes
ever enter the process that trains.
"""

import operator
from types import CellType, FunctionType

from . import isa
from .vector import Word, floats

OPTIONS = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"},
               no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compile_task(task):
    """(symbol, bytes of the object file) of a Task."""
    result = compiled(task)
    return result.fndesc.llvm_func_name, result.library.serialize_using_object_code()[2][0]


def compiled(task):
    """What Numba makes of a Task: its library holds IR and machine code."""
    from numba import njit, types
    register_vectors()
    entry = entry_point(task.function, types)
    dispatcher = njit(**OPTIONS)(entry)
    dispatcher.compile(types.void(types.CPointer(types.int64), types.int64, types.int64))
    [result] = dispatcher.overloads.values()
    return result


def entry_point(function, types):
    """f(arguments, item, worker), which unpacks the arguments for `function`."""
    code = function.__code__
    names = code.co_varnames[2:code.co_argcount]
    body = "".join(f", arguments[{i}]" for i in range(len(names)))
    space = {"kernel": numba_form(function)}
    exec(f"def {function.__name__}(arguments, item, worker):\n"
         f"    kernel(item, worker{body})", space)
    return space[function.__name__]


_forms = {}


def numba_form(value):
    """What Numba knows `value` as: a Word becomes an intrinsic, a function a compiled one."""
    if isinstance(value, Word):
        if value not in _forms:
            _forms[value] = intrinsic(value)
        return _forms[value]
    if isinstance(value, FunctionType) and value.__module__.split(".")[0] == __name__.split(".")[0]:
        if value not in _forms:
            _forms[value] = helper(translated(value))
        return _forms[value]
    return value


def helper(function):
    """The function for use in kernels, compiled once for ints, not once for every constant."""
    from numba import njit, types
    form = njit(**OPTIONS)(function)
    resolve = form.get_call_template
    form.get_call_template = lambda args, kws: resolve([*map(types.unliteral, args)], kws)
    return form


def translated(function):
    """The function with every name it uses in Numba's form."""
    names = {name: numba_form(function.__globals__[name])
             for name in function.__code__.co_names if name in function.__globals__}
    closure = function.__closure__ and tuple(CellType(numba_form(cell.cell_contents))
                                             for cell in function.__closure__)
    return FunctionType(function.__code__, names | {"__builtins__": __builtins__},
                        function.__name__, function.__defaults__, closure)


def intrinsic(word):
    from numba import extending, types
    kinds = {"int": types.int64, "float": types.float32, "vec": vector_type(), "none": types.void}
    signature = kinds[word.result](*(kinds[kind] for kind in word.arguments))

    def codegen(context, builder, signature, args):
        value = word.emit(builder, *args)
        return context.get_dummy_value() if word.result == "none" else value

    names = ", ".join(f"x{i}" for i in range(len(word.arguments)))
    space = {"signature": signature, "codegen": codegen}
    exec(f"def {word.name}(typing, {names}): return signature, codegen", space)
    return extending.intrinsic(space[word.name])


_vector = []


def vector_type():
    from numba import types
    if not _vector:
        class VectorType(types.Type):
            def __init__(self):
                super().__init__(name=f"vec{isa.host().width}")
        _vector.append(VectorType())
    return _vector[0]


def register_vectors():
    """Teach Numba the type of a vector and x + y, x − y, x · y, −x."""
    from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
    from numba.extending import lower_builtin, models, register_model
    if _vector:
        return
    vec = vector_type()

    @register_model(type(vec))
    class Model(models.PrimitiveModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, floats())

    for operation, emit in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
        infer_global(operation)(type(emit, (ConcreteTemplate,),
                                     {"key": operation, "cases": [signature(vec, vec, vec)]}))

        def lower(context, builder, sig, args, emit=emit):
            return getattr(builder, emit)(*args, flags=("contract", "nsz"))
        lower_builtin(operation, vec, vec)(lower)


def main():
    """Compile each task named on the command line into a folder; say its name, or why not."""
    import signal
    import sys
    from pathlib import Path

    from .cache import import_kernels, write
    from .tasks import TASKS
    signal.signal(signal.SIGINT, signal.SIG_IGN)          # Ctrl-C is for who started us: it ends us
    import_kernels()
    for name in sys.argv[2:]:
        try:
            write(Path(sys.argv[1]) / f"{name}.o", *compile_task(TASKS[name]))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            name += " " + " ".join(why.split())[:1000]    # on one line, written at once
        print(name, flush=True)
