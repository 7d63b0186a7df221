"""What goes wrong for users, each with the exit code of the command line. No torch here.

0 ok, 2 usage or recipe, 65 bad data or checkpoint, 69 teacher unavailable, 70 numeric, 74 disk,
130 and 143 for the signals.
"""


class UserError(Exception):
    """A mistake or a mishap that a user can mend; its text says how."""

    exit_code = 1


class RecipeError(UserError, ValueError):
    """A recipe or command line that cannot be used as it stands."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Text, data set, model or checkpoint on disk that cannot be used."""

    exit_code = 65


class TeacherError(UserError, RuntimeError):
    """A teacher that cannot be used, or is no longer usable."""

    exit_code = 69


class NumericError(UserError, ArithmeticError):
    """A loss or gradient that is not finite."""

    exit_code = 70
