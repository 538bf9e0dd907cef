"""For authors of plug-ins and tests: what every part promises, as checks to run on one's own."""

from stepladder.testing.engines import check_engine as check_engine
from stepladder.testing.fakes import FakeCosts as FakeCosts
from stepladder.testing.fakes import FakeFeaturizer as FakeFeaturizer
from stepladder.testing.fakes import FakePredictor as FakePredictor
from stepladder.testing.fakes import MemoryTraceStore as MemoryTraceStore
from stepladder.testing.fakes import make_attempt as make_attempt
from stepladder.testing.fakes import make_fault as make_fault
from stepladder.testing.fakes import make_ladder as make_ladder
from stepladder.testing.fakes import make_request as make_request
from stepladder.testing.fakes import make_view as make_view
from stepladder.testing.fakes import no_forecast as no_forecast
from stepladder.testing.policies import check_policy as check_policy
from stepladder.testing.predictors import check_predictor as check_predictor
from stepladder.testing.stores import check_store as check_store
from stepladder.testing.stores import make_trace as make_trace
