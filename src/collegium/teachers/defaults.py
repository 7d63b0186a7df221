"""Answers that most kinds of teachers give to what `collegium.signals.contracts.Teacher` asks.

They fit a teacher that reads the student's own tokens, speaks about all text, and does nothing beforehand. A kind
says only where it differs; one that wraps another teacher passes each question on by itself.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from collegium.base.errors import TeacherError
from collegium.signals.contracts import Capability, NextTokens, Teacher
from collegium.signals.inner_states import InnerLayers, UnderlyingModel
from collegium.signals.own_vocabulary import OwnVocabulary


class TeacherDefaults:
    """Gives a teacher everything but `name`, `provides`, `fingerprint` and `score`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """None: nothing but its fingerprint decides what it says."""
        return {}

    @property
    def is_cached(self) -> bool:
        """False: it answers for any text."""
        return False

    @property
    def domains(self) -> tuple[int, ...] | None:
        """None: it speaks about all of them."""
        return None

    @property
    def own_vocabulary(self) -> OwnVocabulary | None:
        """None: it reads the student's own tokens."""
        return None

    @property
    def native(self: Teacher) -> Teacher:
        """The teacher itself."""
        return self

    @property
    def underlying_model(self) -> UnderlyingModel | None:
        """None: no inner state is given."""
        return None

    @property
    def reads_ahead(self) -> bool:
        """False: it does everything when it is asked."""
        return False

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read nothing."""
        return {}

    def limit_inner_states(self, layers: InnerLayers) -> None:
        """Do nothing: no inner state is given."""

    def next_tokens(self: Teacher, max_new_tokens: int) -> NextTokens:
        """Refuse, as it does not provide `Capability.GENERATE`."""
        raise cannot_write(self)


def require_provided(teacher: Teacher, need: frozenset[Capability]) -> None:
    """Refuse what a teacher does not provide.

    Raises:
        TeacherError: something that is needed is not provided.
    """
    missing = need - teacher.provides
    if missing:
        raise TeacherError(
            f"teacher {teacher.name!r} is asked for {_listed(missing)}, "
            f"but provides {_listed(teacher.provides)} only"
        )


def cannot_write(teacher: Teacher) -> TeacherError:
    """The error of a teacher that does not provide `Capability.GENERATE`."""
    return TeacherError(
        f"teacher {teacher.name!r} does not write text: it provides {_listed(teacher.provides)} only"
    )


def _listed(capabilities: frozenset[Capability]) -> str:
    return ", ".join(sorted(capabilities)) or "nothing"
