"""Where the tests of this folder run: on a CUDA device. To work on them without one: STEPLADDER_TEST_DEVICE=cpu."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("STEPLADDER_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here; STEPLADDER_TEST_DEVICE=cpu runs what can run without")
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def gpu(device: torch.device) -> torch.device:
    """The device under test, for what is only there on a GPU."""
    if device.type != "cuda":
        pytest.skip("kernels and graphs need a CUDA device")
    return device
