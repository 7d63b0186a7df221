"""Profiles of hypothesis: 50 fixed examples a test; `COLLEGIUM_HYPOTHESIS=nightly` draws 2000."""

import os

import pytest
import torch
from hypothesis import settings


settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("COLLEGIUM_HYPOTHESIS", "ci"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors here are tiny: on a busy machine threads that wait for each other take ten times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
