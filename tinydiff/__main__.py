"""python -m tinydiff is the command `tinydiff`."""

import sys

from tinydiff.cli import main

sys.exit(main())
