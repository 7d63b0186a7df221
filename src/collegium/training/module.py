"""A module whose properties say their own errors."""

import inspect
from typing import Any

from torch import nn


class TrainedModule(nn.Module):
    """A `torch.nn.Module` that does not hide an AttributeError in one of its properties.

    Python asks `__getattr__` after any AttributeError, and torch's then says that the module has no attribute of
    the property's name. Here the property is read once more, and what is missing inside of it is said.
    """

    def __getattr__(self, name: str) -> Any:
        member = inspect.getattr_static(type(self), name, None)
        if isinstance(member, property) and member.fget is not None:
            return member.fget(self)
        return super().__getattr__(name)
