"""The heart of every product: a block of C stays in registers while k runs.

    C[i, j] (+)= Σ_k A[i, k] · B[k, j]        i < rows, j < width · vectors

For each k: load one row of B (2 registers), and for each row of A one number, spread over a
register; then rows · vectors fused multiply-adds, none of which waits for another. With 8 × 2
registers of 16 floats that is 512 FLOPs for 10 loads, so the multipliers, not the memory, set the
pace. Written as IR because a compiler must not be left to guess which numbers stay in registers.
"""

from . import isa
from .vector import Word, call, floats, integer, ir, pointer, spread, v


def microkernel(accumulate, rows=None, vectors=None, onto=False, ahead=False):
    """The word  f(a, a_row, a_k, b, b_k, c, c_row, k):  strides and k ≥ 1 count floats.

    A[i, k] stands at a + i·a_row + k·a_k, so a transposed A costs nothing; B[k, :] at b + k·b_k,
    C[i, :] at c + i·c_row. rows and vectors are the machine's own unless given.

    onto: f has two arguments more, s and s_row, and C = S + A B; S may be C, or one row with
    stride 0. ahead: for an A that comes from memory, each step fetches a line of what comes next
    into L2, the rows below, or, where A is transposed, the k's behind.
    """
    def emit(b, A, a_row, a_k, B, b_k, C, c_row, K, S=None, s_row=None):
        here = isa.host()
        I, J, step = range(rows or here.rows), range(vectors or here.vectors), 4 * here.width
        four = integer(2)
        a_row, a_k, b_k, c_row = (b.shl(stride, four) for stride in (a_row, a_k, b_k, c_row))
        before, loop, after = b.block, *(b.append_basic_block(name) for name in ("k", "after"))
        row = [b.mul(a_row, integer(i)) for i in I]
        below = b.icmp_signed("==", a_k, integer(4))
        following_a = b.add(A, b.select(below, b.mul(a_row, integer(len(I))), b.mul(a_k, K)))
        line = b.select(below, integer(64), a_k)
        b.branch(loop)

        b.position_at_end(loop)
        k, at_a, at_b = (b.phi(ir().IntType(64)) for _ in range(3))
        sums = [[b.phi(floats()) for _ in J] for _ in I]
        b_row = [b.load(pointer(b, b.add(at_b, integer(step * j)), None, floats()), align=4)
                 for j in J]
        if ahead:
            prefetch(b, b.add(following_a, b.mul(k, line)))
        new = []
        for i in I:
            number = b.load(pointer(b, b.add(at_a, row[i]), None, ir().FloatType()), align=4)
            a = spread(b, number, here.width)
            new.append([call(b, v("fma"), floats(), a, b_row[j], sums[i][j]) for j in J])
        following = b.add(k, integer(1)), b.add(at_a, a_k), b.add(at_b, b_k)
        for phi, first, then in zip((k, at_a, at_b), (integer(0), A, B), following):
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        zero = ir().Constant(floats(), [0.0] * here.width)
        for i in I:
            for j in J:
                sums[i][j].add_incoming(zero, before)
                sums[i][j].add_incoming(new[i][j], loop)
        b.cbranch(b.icmp_signed("<", following[0], K), loop, after)

        b.position_at_end(after)
        for i in I:
            for j in J:
                there = pointer(b, b.add(C, integer(step * j)), None, floats())
                y = new[i][j]
                if accumulate or onto:
                    before_it = b.add(S if onto else C, integer(step * j))
                    y = b.fadd(b.load(pointer(b, before_it, None, floats()), align=4), y)
                b.store(y, there, align=4)
            C = b.add(C, c_row)
            S = b.add(S, b.shl(s_row, four)) if onto else None

    emit.__name__ = "multiply" + accumulate * "_add" + onto * "_onto" + ahead * "_ahead"
    return Word(emit, "none", ["int"] * (10 if onto else 8))


def prefetch(b, address):
    """Ask for the line of the cache at `address`, to be in L2 soon; no address is wrong."""
    how = [integer(kind, 32) for kind in (0, 2, 1)]       # to read, not in L1, of data
    call(b, "llvm.prefetch.p0", ir().VoidType(), pointer(b, address, None, ir().FloatType()), *how)


multiply            = microkernel(accumulate=False)
multiply_add        = microkernel(accumulate=True)
multiply_narrow     = microkernel(accumulate=False, vectors=1)       # a panel's first vector alone
multiply_narrow_add = microkernel(accumulate=True, vectors=1)
multiply_onto       = microkernel(accumulate=False, onto=True)
multiply_onto_ahead = microkernel(accumulate=False, onto=True, ahead=True)
