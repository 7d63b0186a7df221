"""Foundations of every room: errors, files that are whole or absent, the terminal. No torch.

Imports nothing of ours. Begin with `errors`, which says how a command ends, and `durable`, which says how a file
is written.
"""
