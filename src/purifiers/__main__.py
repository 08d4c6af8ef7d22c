"""``python -m purifiers`` is the command ``purifiers``."""

import sys

from purifiers.cli import main

sys.exit(main())
