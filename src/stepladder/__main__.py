"""``python -m stepladder``."""

import sys

from stepladder.cli import main

sys.exit(main())
