"""Do the kernels compile for ARM?  python tools/compile_neon.py [task …]

Every task, or those named, is written as IR for vectors of four floats, and LLVM makes machine code
for 64-bit ARM of it: *compiles, not run*. The table says how many bytes, and how many of its
instructions multiply and add four floats at once.
"""

import os
import sys

TRIPLE = "aarch64-unknown-linux-gnu"


def target_machine():
    """LLVM's code generator for 64-bit ARM; LookupError where this LLVM was built without it."""
    from llvmlite import binding
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(TRIPLE)
    except RuntimeError as error:
        raise LookupError(f"this LLVM makes no code for ARM: {error}") from None
    return target.create_target_machine(cpu="generic", features="+neon", opt=3, reloc="pic")


def module_of(task, machine):
    """The task's IR, optimised for ARM."""
    from llvmlite import binding
    from tinydiff_kernels.simd import build
    module = binding.parse_assembly(build.compiled(task).library.get_llvm_str())
    module.triple = TRIPLE
    module.data_layout = str(machine.target_data)
    assert "llvm.x86" not in str(module), f"{task.name} is written for x86"
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    builder.getModulePassManager().run(module, builder)
    return module


def text_bytes(code):
    """The size of the instructions in an object file."""
    from llvmlite import binding
    assert code[:4] == b"\x7fELF", "no object file"
    assert int.from_bytes(code[18:20], "little") == 183, "not for ARM"           # EM_AARCH64
    sections = binding.ObjectFileRef.from_data(code).sections()
    return sum(section.size() for section in sections if section.is_text())


def main(names):
    from tinydiff_kernels.simd import cache
    from tinydiff_kernels.simd.tasks import TASKS
    cache.import_kernels()
    for name in names:
        if name not in TASKS:
            raise LookupError(f"no task {name!r}; there are {', '.join(sorted(TASKS))}")
    machine = target_machine()
    print("| task | bytes | multiply-adds of 4 floats |\n|---|---|---|")
    for name in names or sorted(TASKS):
        module = module_of(TASKS[name], machine)
        size = text_bytes(machine.emit_object(module))
        fused = machine.emit_assembly(module).count("\tfmla\tv")
        print(f"| {name} | {size:,} | {fused} |", flush=True)
    print(f"\nFor {TRIPLE}: *compiles, not run*.")


if __name__ == "__main__":
    os.environ |= {"TINYDIFF_ISA": "neon", "NUMBA_OPT": "0"}     # left to the passes for ARM
    try:
        main(sys.argv[1:])
    except LookupError as error:
        raise SystemExit(f"compile_neon: {error}") from None
