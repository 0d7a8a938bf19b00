"""The stages of tools/gpu_check.py, and what they share.  Start with cases.py.

Importing this package makes the checkout importable as an installation would be, so nothing has to
be installed: the kernels' folder is kernels/ here, and tinydiff_kernels where it is installed.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
ROOT = TOOLS.parent
KERNELS = ROOT / "kernels"

if "tinydiff_kernels" not in sys.modules:
    sys.path.insert(0, str(ROOT))
    spec = spec_from_file_location("tinydiff_kernels", KERNELS / "__init__.py",
                                   submodule_search_locations=[str(KERNELS)])
    sys.modules["tinydiff_kernels"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["tinydiff_kernels"])
