"""``python -m depthup`` is the command ``depthup``."""

import sys

from .cli import main

sys.exit(main())
