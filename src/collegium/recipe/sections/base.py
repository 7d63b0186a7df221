"""Common to all sections of a recipe: strictness, names and lists. No torch here."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from collegium.base.secrets import holds_credentials, redacted


T = TypeVar("T")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Many = Annotated[tuple[T, ...], Field(strict=False)]  # YAML has lists
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Licence = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
Language = Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")]

DESCRIBING = {"licence", "language"}
"""Keys that say what a model or text is, for whoever reads the model card; no result depends on them."""


def names_differ(items: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    """Refuse a name that is there twice."""
    names = [item.name for item in items]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{info.field_name} must have different names, but {', '.join(repeated)} is there twice")
    return items


def domains_differ(items: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    """Refuse a name of a domain that is there twice, or that every table has already beside the domains."""
    if taken := sorted({"all", "common", "mean"} & {item.name for item in items}):
        raise ValueError(f"{info.field_name} may not be named {taken[0]!r}, which is a column of every table")
    return names_differ(items, info)


def can_be_trained(dtype: str) -> str:
    """Refuse a type in which weights cannot be trained."""
    if dtype == "float16":
        raise ValueError(
            "trained weights need float32 or bfloat16; for float16 products set training.precision (autocast)"
        )
    return dtype


class Section(BaseModel):
    """A part of a recipe: frozen, without unknown keys; `true`, NaN and infinity are not numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _without_credentials(self) -> Self:
        """Refuse credentials, as recipes are kept with runs, shown in reports and sent to trackers."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and holds_credentials(value):
                raise ValueError(
                    f"`{name}` holds credentials ({redacted(value)}), and a recipe is kept with its run; leave "
                    "them out and give them in the environment, as fsspec reads them: FSSPEC_S3_KEY and "
                    "FSSPEC_S3_SECRET for s3://"
                )
        return self
