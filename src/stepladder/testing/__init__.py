"""For authors of plug-ins and tests: what every part promises, as checks to run on one's own."""

from stepladder.testing.engines import check_engine as check_engine
