"""Causal language models: loaded by reference, read by hooks, cut smaller, and written from.

May import `fused` and what is below. Begin with `pretrained`, the only place that reads weights, and `head`, which
makes logits from hidden states a chunk at a time.
"""
