"""Tensors here are tiny: threads that wait for each other take ten times as long on a busy machine."""

from tests.support.threads import one_thread as one_thread
