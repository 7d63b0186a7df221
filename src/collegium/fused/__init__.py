"""The engine: every logit made once, a chunk of positions at a time, and its gradient with it.

May import `losses` and what is below. Three buffers of [n V] serve any number of teachers. Begin with `chunked`,
the plain loss by autograd that the rest must agree with, then read `fused`.
"""
