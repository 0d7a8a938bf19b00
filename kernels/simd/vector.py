"""A small language of vectors, to write kernels in: each word is one or a few machine instructions.

A kernel is a Python function over integers (addresses, sizes), floats and vectors; Numba compiles
it. Numba has no vectors of its own, so each word below says which LLVM IR it becomes. Addresses
count bytes; an index beside an address counts float32s: load(x, i) is x[i], x[i + 1], … .

Nothing here is Numba yet: build.py turns words into intrinsics when a kernel is compiled.
"""

from . import isa


class Word:
    """A word of the language: `emit(builder, *values)` writes the IR that computes it."""

    def __init__(self, emit, result, arguments):
        self.emit, self.result, self.arguments = emit, result, arguments
        self.name = emit.__name__


def word(result, *arguments):
    """Make a Word of the emit function below; types are "int", "float", "vec" or "none"."""
    return lambda emit: Word(emit, result, arguments)


def ir():
    from llvmlite import ir
    return ir


def floats(width=None):
    """The IR type of a vector."""
    return ir().VectorType(ir().FloatType(), width or isa.host().width)


def integer(value, bits=64):
    return ir().Constant(ir().IntType(bits), value)


def pointer(b, address, index, kind):
    """address + 4 · index as a pointer to `kind`."""
    if index is not None:
        address = b.add(address, b.shl(index, integer(2)))
    return b.inttoptr(address, kind.as_pointer())


def call(b, name, result, *values):
    """Call the LLVM intrinsic `name`."""
    kind = ir().FunctionType(result, [value.type for value in values])
    function = b.module.globals.get(name) or ir().Function(b.module, kind, name)
    return b.call(function, values)


def v(name):
    """llvm.fma -> llvm.fma.v16f32"""
    return f"llvm.{name}.v{isa.host().width}f32"


# memory

@word("vec", "int", "int")
def load(b, address, index):
    return b.load(pointer(b, address, index, floats()), align=4)


@word("none", "int", "int", "vec")
def store(b, address, index, x):
    b.store(x, pointer(b, address, index, floats()), align=4)


@word("vec", "int", "int", "int")
def load_part(b, address, index, n):
    """The first n floats, zeros behind them; memory behind them is not touched."""
    zero = ir().Constant(floats(), [0.0] * isa.host().width)
    return call(b, v("masked.load") + ".p0", floats(), pointer(b, address, index, floats()),
                integer(4, 32), mask(b, n), zero)


@word("none", "int", "int", "vec", "int")
def store_part(b, address, index, x, n):
    """Only the first n floats of x."""
    call(b, v("masked.store") + ".p0", ir().VoidType(), x, pointer(b, address, index, floats()),
         integer(4, 32), mask(b, n))


@word("float", "int", "int")
def load1(b, address, index):
    return b.load(pointer(b, address, index, ir().FloatType()), align=4)


@word("none", "int", "int", "float")
def store1(b, address, index, x):
    b.store(x, pointer(b, address, index, ir().FloatType()), align=4)


@word("none", "int", "int")
def prefetch(b, address, index):
    """Send for a line of the cache and go on; any address will do."""
    how = [integer(kind, 32) for kind in (0, 3, 1)]       # to read, to be kept, of data
    call(b, "llvm.prefetch.p0", ir().VoidType(), pointer(b, address, index, ir().FloatType()), *how)


def mask(b, n):
    """Lane i is on where i < n."""
    width = isa.host().width
    lanes = ir().VectorType(ir().IntType(32), width)
    return b.icmp_signed("<", ir().Constant(lanes, list(range(width))),
                         spread(b, b.trunc(n, ir().IntType(32)), width))


def spread(b, x, width):
    """A vector with x in every lane."""
    kind = ir().VectorType(x.type, width)
    empty = ir().Constant(kind, ir().Undefined)
    lanes = ir().Constant(ir().VectorType(ir().IntType(32), width), [0] * width)
    return b.shuffle_vector(b.insert_element(empty, x, integer(0, 32)), empty, lanes)


# arithmetic; x + y, x − y and x · y are written so

@word("vec", "float")
def splat(b, x):
    return spread(b, x, isa.host().width)


@word("vec", "vec", "vec", "vec")
def fma(b, x, y, z):
    """x · y + z, rounded once."""
    return call(b, v("fma"), floats(), x, y, z)


@word("vec", "vec", "vec")
def divide(b, x, y):
    """x / y for 0 < |y| < ∞. AVX-512 guesses 1/y to 14 bits, and one Newton step doubles them."""
    if isa.host() is not isa.AVX512:
        return b.fdiv(x, y)
    zero = ir().Constant(floats(), [0.0] * 16)
    guess = call(b, "llvm.x86.avx512.rcp14.ps.512", floats(), y, zero, integer(-1, 16))
    two = ir().Constant(floats(), [2.0] * 16)
    left = call(b, v("fma"), floats(), b.fneg(y), guess, two)         # 2 − y·guess
    return b.fmul(x, b.fmul(guess, left))


@word("vec", "vec")
def sqrt(b, x):
    return call(b, v("sqrt"), floats(), x)


@word("vec", "vec", "vec")
def lower(b, x, y):
    """The smaller of each pair; y where x is no number."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@word("vec", "vec", "vec")
def higher(b, x, y):
    """The larger of each pair; y where x is no number."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@word("vec", "vec")
def nearest(b, x):
    """Rounded to whole numbers."""
    return call(b, v("rint"), floats(), x)


@word("vec", "vec")
def power_of_two(b, n):
    """2ⁿ for whole n from −126 to 127, made by writing n into the exponent's bits."""
    ints = ir().VectorType(ir().IntType(32), isa.host().width)
    constant = lambda k: ir().Constant(ints, [k] * isa.host().width)
    bits = b.shl(b.add(b.fptosi(n, ints), constant(127)), constant(23))
    return b.bitcast(bits, floats())


@word("float", "vec")
def total(b, x):
    """The sum of all lanes."""
    kind = ir().FunctionType(ir().FloatType(), [ir().FloatType(), floats()])
    name = v("vector.reduce.fadd")
    function = b.module.globals.get(name) or ir().Function(b.module, kind, name)
    return b.call(function, [ir().Constant(ir().FloatType(), -0.0), x], fastmath=("reassoc",))


@word("float", "vec")
def highest(b, x):
    """The largest of all lanes."""
    return call(b, v("vector.reduce.fmax"), ir().FloatType(), x)


@word("int", "vec", "vec")
def same(b, x, y):
    """1 if all lanes hold the same bits, else 0."""
    width = isa.host().width
    ints = ir().VectorType(ir().IntType(32), width)
    other = call(b, f"llvm.vector.reduce.or.v{width}i32", ir().IntType(32),
                 b.xor(b.bitcast(x, ints), b.bitcast(y, ints)))
    return b.zext(b.icmp_signed("==", other, integer(0, 32)), ir().IntType(64))


# integers shared between threads, and functions found at run time; an index counts int64s

@word("int", "int", "int")
def read(b, address, index):
    """The int64 there now, whoever wrote it."""
    return b.load_atomic(shared(b, address, index), ordering="acquire", align=8)


@word("none", "int", "int", "int")
def write(b, address, index, value):
    b.store_atomic(value, shared(b, address, index), ordering="release", align=8)


@word("int", "int", "int", "int")
def fetch_add(b, address, index, n):
    """Add n to the int64 there, in one indivisible step; what it was before."""
    return b.atomic_rmw("add", shared(b, address, index), n, ordering="seq_cst")


def shared(b, address, index):
    return b.inttoptr(b.add(address, b.shl(index, integer(3))), ir().IntType(64).as_pointer())


@word("none", "int", "int", "int", "int")
def invoke(b, function, arguments, item, worker):
    """function(arguments, item, worker) of a compiled task, given its address."""
    long, byte = ir().IntType(64), ir().IntType(8).as_pointer()
    kind = ir().FunctionType(ir().IntType(32), [byte, byte, byte, long, long])
    with b.goto_entry_block():
        spare = b.bitcast(b.alloca(long, 4), byte)        # where Numba reports results and errors
    b.call(b.inttoptr(function, kind.as_pointer()),
           [spare, spare, b.inttoptr(arguments, byte), item, worker])


def external(name, arguments):
    """A function of the C library on integers."""
    def emit(b, *values):
        long = ir().IntType(64)
        kind = ir().FunctionType(ir().IntType(32), [long] * arguments)
        function = b.module.globals.get(name) or ir().Function(b.module, kind, name)
        return b.sext(b.call(function, values), long)
    emit.__name__ = name
    return Word(emit, "int", ["int"] * arguments)
