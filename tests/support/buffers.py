"""How many [n V] buffers are alive at once."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


CHUNK_SIZE, WIDTH, VOCAB_SIZE = 32, 8, 2000
BUFFER = CHUNK_SIZE * VOCAB_SIZE * 4  # bytes, float32


class BufferCounter(TorchDispatchMode):
    """Follows every storage of at least half a buffer that an operation returns."""

    def __init__(self):
        super().__init__()
        self.live = {}
        self.peak = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes() >= BUFFER // 2:
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: live for key, live in self.live.items() if not live[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()) / BUFFER)
        return result
