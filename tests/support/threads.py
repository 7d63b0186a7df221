"""A fixture for tests on tiny tensors."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors are tiny: threads that wait for each other take ten times as long on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
