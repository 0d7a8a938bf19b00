"""Winograd's transforms, generated from his matrices: Y = M X Mᵀ for a small constant M.

F(m × m) computes m × m results of a 3 × 3 convolution at once from m + 2 × m + 2 inputs d:

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

with (m + 2)² multiplications in place of 9 m²: 2.25 times fewer for m = 2, 4 times for m = 4.
Every entry is a vector of channels. Zeros of M cost nothing, ones no multiplication.

A convolution is a product of polynomials, found from its values at m + 2 points: 0, ±1 and ∞ for
m = 2; 0, ±a, ±b and ∞ for m = 4. With a, b = 1, 2, as in the paper, rounding errors are four times
as large as with 5/8, 3/2; all numbers but those of G are exact in float32.
Lavin & Gray 2015 (1509.09308) §4; docs/derivations/convolution.md
"""

from . import isa
from .vector import Word, call, floats, integer, ir, pointer, v

a, b = 5/8, 3/2
f, g = 2*a**2 * (a**2 - b**2), 2*b**2 * (b**2 - a**2)

BT = {2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
      4: [[a**2 * b**2, 0, -a**2 - b**2, 0, 1, 0],
          [0, -a * b**2, -b**2,  a, 1, 0], [0, a * b**2, -b**2, -a, 1, 0],
          [0, -a**2 * b, -a**2,  b, 1, 0], [0, a**2 * b, -a**2, -b, 1, 0],
          [0, a**2 * b**2, 0, -a**2 - b**2, 0, 1]]}
G  = {2: [[1, 0, 0], [1/2, 1/2, 1/2], [1/2, -1/2, 1/2], [0, 0, 1]],
      4: [[1 / (a**2 * b**2), 0, 0], [1/f, a/f, a**2/f], [1/f, -a/f, a**2/f],
          [1/g, b/g, b**2/g], [1/g, -b/g, b**2/g], [0, 0, 1]]}
AT = {2: [[1, 1, 1, 0], [0, 1, -1, -1]],
      4: [[1, 1, 1, 1, 1, 0], [0, a, -a, b, -b, 0], [0, a**2, a**2, b**2, b**2, 0],
          [0, a**3, -a**3, b**3, -b**3, 1]]}


def transposed(M):
    return [list(row) for row in zip(*M)]


def transform(M, name, plus=()):
    """The word  f(x, x_row, x_col, y, y_row, y_col, …):  Y = M X Mᵀ, one vector of channels each.

    X[i, j] stands at x + i·x_row + j·x_col, in floats; Y likewise. plus names what else is added to
    each Y[i, j]: "vec", one more argument, and "int", the address of something that lies as Y does.
    """
    R, C = range(len(M)), range(len(M[0]))

    def emit(b, x, x_row, x_col, y, y_row, y_col, *more):
        def place(address, row, col, i, j):
            index = b.add(b.mul(row, integer(i)), b.mul(col, integer(j)))
            return pointer(b, address, index, floats())

        half = []                                         # M X, column by column
        for j in C:
            column = [b.load(place(x, x_row, x_col, i, j), align=4) for i in C]
            half.append([combine(b, M[r], column) for r in R])
        for r in R:
            row = [half[j][r] for j in C]
            for c in R:
                total = combine(b, M[c], row)
                for kind, value in zip(plus, more):
                    if kind == "int":
                        value = b.load(place(value, y_row, y_col, r, c), align=4)
                    total = b.fadd(total, value)
                b.store(total, place(y, y_row, y_col, r, c), align=4)

    emit.__name__ = name
    return Word(emit, "none", ["int"] * 6 + list(plus))


def combine(b, coefficients, vectors):
    """Σ coefficient · vector, the ones first: they start the sum without a multiplication."""
    terms = [(c, x) for c, x in zip(coefficients, vectors) if c]
    terms.sort(key=lambda term: term[0] != 1)
    c, total = terms[0]
    if c != 1:
        total = b.fmul(total, constant(c))
    for c, x in terms[1:]:
        if abs(c) == 1:
            total = b.fadd(total, x) if c == 1 else b.fsub(total, x)
        else:
            total = call(b, v("fma"), floats(), x, constant(c), total)
    return total


def constant(c):
    return ir().Constant(floats(), [float(c)] * isa.host().width)


TRANSFORMS = {m: {"input":    transform(BT[m], f"input{m}"),              # d -> Bᵀ d B
                  "output":   transform(AT[m], f"output{m}", ["vec"]),    # M -> Aᵀ M A + bias
                  "residual": transform(AT[m], f"residual{m}", ["vec", "int"]),     # … + residual
                  "weight":   transform(G[m], f"weight{m}"),              # g -> G g Gᵀ
                  "gradient": transform(transposed(AT[m]), f"gradient{m}"),     # dy -> A dy Aᵀ
                  "dweight":  transform(transposed(G[m]), f"dweight{m}")}       # dU -> Gᵀ dU G
              for m in (2, 4)}
