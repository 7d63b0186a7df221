"""The engine: every logit made once, a chunk of positions at a time, and its gradient with it.

May import `losses`. Three buffers of [n V] serve any number of teachers. `chunked` is the plain loss by autograd
that the rest must agree with: begin there, then read `fused`.
"""
