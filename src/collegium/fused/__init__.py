"""The engine: every logit made once, a chunk of positions at a time, and its gradient with it.

May import `losses` and what is below. Three buffers of [n V] serve any number of teachers. Begin with `fused`,
which walks through the chunks, and `chunk_gradient`, the loss of one. `chunked` is the plain loss by autograd
that both must agree with.
"""
