"""What is read out of compilers' words, and what a kernel is held to."""

import json
import re

import compile_cuda
import pytest
from tinydiff_kernels.gpu import listing, machine_code

NVRTC_LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'product' for 'sm_90'
ptxas info    : Function properties for product
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 124 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 9.047 ms
ptxas info    : Compiling entry function 'sum' for 'sm_90'
ptxas info    : Function properties for sum
ptxas         .     144 bytes stack frame, 180 bytes spill stores, 272 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 144 bytes cumulative stack size
ptxas info    : Function properties for _Z6helperf
ptxas         .     8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
"""
LINK_LOG = """\
ptxas info    : Compiling entry function 'tile' for 'sm_{0}'
ptxas info    : Function properties for tile
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers
info    : 8 bytes gmem
info    : Function properties for 'tile':
info    : used 14 registers, used 1 barriers, 0 stack, {1} bytes smem, 0 bytes lmem
"""
LISTING = """\
\t.target\tsm_90

//--------------------- .text.product             --------------------------
\t.section\t.text.product,"ax",@progbits
\t.align\t128
        .global         product
product:
.text.product:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HFMA2.MMA R11, -RZ, RZ, 0, 0 ;
.L_x_1:
        /*0020*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   HMMA.16816.F32.BF16 R8, R8, R14, R8 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*fff0*/                   EXIT ;

//--------------------- .text.sum                 --------------------------
\t.section\t.text.sum,"ax",@progbits
\t.align\t128
sum:
.text.sum:
        /*0000*/                   STL.64 [R1], R4 ;
       /*10010*/                   EXIT ;
"""


def fact(**changes):
    clean = {"registers": 32, "spill_stores": 0, "spill_loads": 0, "stack": 0, "shared": 0}
    return {**clean, "instructions": {"LDG.E": 2}, **changes}


def test_the_log_says_registers_spills_and_memory_of_each_kernel_and_not_of_its_helpers():
    assert listing.resources(NVRTC_LOG) == {
        "product": {"registers": 124, "spill_stores": 0, "spill_loads": 0, "stack": 0,
                    "shared": 1024},
        "sum": {"registers": 32, "spill_stores": 180, "spill_loads": 272, "stack": 144,
                "shared": 0}}


@pytest.mark.parametrize(("arch", "said"), [("80", 400), ("90", 1424), ("100", 400)])
def test_the_linker_knows_the_shared_memory_with_what_sm_90_keeps_for_itself(arch, said):
    assert listing.resources(LINK_LOG.format(arch, said))["tile"]["shared"] == 400


def test_a_block_that_shares_nothing_shares_nothing():
    assert listing.resources(LINK_LOG.format("90", 0))["tile"]["shared"] == 0


def test_a_listing_falls_into_kernels_and_these_into_instructions():
    texts = listing.sections(LISTING)
    assert list(texts) == ["product", "sum"]
    assert ".section" not in texts["product"]
    assert ".L_x_1:" in texts["product"]
    assert listing.instructions(texts["product"]) == {
        "LDC": 1, "HFMA2.MMA": 1, "LDG.E.128": 1, "HMMA.16816.F32.BF16": 2, "BRA": 1, "UIADD3": 1,
        "EXIT": 1}
    assert listing.instructions(texts["sum"]) == {"STL.64": 1, "EXIT": 1}


@pytest.mark.parametrize(("source", "wrong"), [
    ("// holds: LDG.E", []),
    ("// holds: LDG.E HMMA", ["forward holds no HMMA", "backward holds no HMMA"]),
    ("// forward holds: HMMA", ["forward holds no HMMA"]),
    ("# f* holds: HMMA", ["forward holds no HMMA"]),
    ("// sideways holds: LDG", ["has no kernel sideways, which should hold LDG"]),
    ("int n;  // holds: HMMA", []),
])
def test_a_kernel_is_held_to_the_instructions_that_its_file_names(source, wrong):
    assert compile_cuda.broken(source, {"forward": fact(), "backward": fact()}) == wrong


@pytest.mark.parametrize("found", [
    {"spill_stores": 8}, {"spill_loads": 4}, {"stack": 16}, {"instructions": {"LDL.LU": 1}},
    {"instructions": {"STL.128": 2}},
])
def test_local_memory_is_wrong_in_every_form_unless_a_reason_is_given(found):
    facts = {"forward": fact(**found)}
    assert "forward uses local memory" in compile_cuda.broken("", facts)[0]
    assert compile_cuda.broken("// forward spills: two blocks on each SM", facts) == []
    assert len(compile_cuda.broken("// forward spills:", facts)) == 1
    assert len(compile_cuda.broken("// backward spills: two blocks on each SM", facts)) == 1


def test_what_feeds_the_tensor_cores_has_to_be_said_so_that_its_loss_is_noticed():
    facts = {"product": fact(instructions={"HMMA.16816.F32.BF16": 8, "LDSM.16.M88.4": 2}),
             "sums": fact()}
    assert compile_cuda.unsaid("", facts) == ["its file does not say: product holds: HMMA LDSM"]
    assert compile_cuda.unsaid("// sums holds: HMMA LDSM", facts) == compile_cuda.unsaid("", facts)
    assert compile_cuda.unsaid("// holds: LDSM", facts) == [
        "its file does not say: product holds: HMMA"]
    assert compile_cuda.unsaid("// product holds: HMMA.16816.F32.BF16 LDSM", facts) == []


@pytest.mark.parametrize(("now", "wrong"), [
    ({"registers": 40}, []),
    ({"registers": 41}, ["forward: registers 41, the table says 32"]),
    ({"registers": 20}, []),
    ({"spill_stores": 4}, ["forward: spill_stores 4, the table says 0"]),
    ({"stack": 8}, ["forward: stack 8, the table says 0"]),
    ({"shared": 1028}, ["forward: shared 1028, the table says 1024"]),
    ({"shared": 1020}, ["forward: shared 1020, the table says 1024"]),
])
def test_what_got_worse_than_the_table_says_is_told(now, wrong):
    then = {"forward": fact(shared=1024)}
    del then["forward"]["instructions"]
    assert compile_cuda.changed({"forward": fact(**{"shared": 1024, **now})}, then) == wrong


def test_a_kernel_that_is_new_and_one_that_is_gone_are_told():
    assert compile_cuda.compare({"sm_90": {"new": fact()}}, {"sm_80": {"old": fact()}}) == [
        "sm_80: old is in the table only", "sm_90: new is not in the table"]


def test_the_table_has_every_kernel_for_each_of_its_architectures():
    """Without a compiler: the names stand in the sources."""
    table = json.loads(compile_cuda.TABLE.read_text())["kernels"]
    assert sorted(table) == compile_cuda.files(), "python tools/compile_cuda.py --write"
    for name, by_arch in table.items():
        path = compile_cuda.KERNELS / name
        text = path.read_text(encoding="utf-8")
        near = [path.with_name(header) for header in re.findall(r'#include "(.*)"', text)]
        text += "".join(p.read_text(encoding="utf-8") for p in near if p.exists())
        names = re.findall(r"(?m)^KERNEL\([^)]*\)\s*(\w+)|^@kernel\([\s\S]*?\ndef (\w+)", text)
        assert tuple(by_arch) == machine_code.architectures(path)
        for kernels in by_arch.values():
            assert sorted(kernels) == sorted(map("".join, names)), name
