"""What every configuration section shares: a frozen base that is closed to unknown keys, and the ranges of numbers."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _check_local(value: str) -> str:
    """Refuse a URI: as a path it would be a folder of that name below the current one."""
    if "://" in value:
        raise ValueError(f"{value!r} is no folder of this machine, which is all that this setting takes")
    return value


Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
LocalFolder = Annotated[str, AfterValidator(_check_local)]


class Section(BaseModel):
    """A frozen group of settings; field docstrings are the help texts. No number is infinite or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
