"""What clients may ask for: fields, types and ranges of requests, checked before anything is computed."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from pipelines.serve.refusal import refuse, refuse_invalid
from pipelines.serve.settings import Limits
from presto_core.config.sampling import (
    MAX_SEED,
    MAX_TEMPO_BPM,
    MIN_TEMPO_BPM,
    Rho,
    ScheduleConfig,
    Sigma,
    check_restraints,
)

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[A-Za-z0-9][A-Za-z0-9_-]{0,63})?$"
Request = TypeVar("Request", bound=BaseModel)


def _check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
Number = Annotated[float, Field(allow_inf_nan=False)]


Section = tuple[Number, Text]


class Sampling(BaseModel):
    """Fields that all requests share."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)

    prompt: Text = Field(description="What to play; may name tempo and key: 'techno in D minor, 128 bpm'.")
    negative_prompt: Text = Field("", description="What to avoid; for models that take guidance.")
    guidance_scale: Number = Field(
        1.0, ge=0, le=30, description="Weight of the prompt; 1 is none. Not for few-step models."
    )
    guidance_interval: tuple[Number, Number] | None = Field(
        None, description="Noise levels between which guidance acts: [0.3, 80]; default: all."
    )
    guidance_rescale: Number = Field(
        0.0, ge=0, le=1, description="How much of the loudness that guidance adds is taken back; 0 none, 1 all."
    )
    model: str = Field("", pattern=f"{MODEL_NAME}|^$", description="A name of GET /v1/models; empty is the default.")
    steps: StrictInt | None = Field(None, ge=1, description="Steps of sampling; default 4, or 40 for many-step models.")
    seed: StrictInt = Field(0, ge=0, le=MAX_SEED)
    tempo_bpm: Number | None = Field(None, ge=MIN_TEMPO_BPM, le=MAX_TEMPO_BPM)
    key: Text | None = Field(None, max_length=40, description="Such as Dm, 'C# minor' or 'B♭ major'.")
    sigma_min: Sigma | None = Field(
        None, description="Noise levels: all three of sigma_min, sigma_max and rho, or none."
    )
    sigma_max: Sigma | None = None
    rho: Rho | None = None

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        levels = (self.sigma_min, self.sigma_max, self.rho)
        if any(levels) and None in levels:
            raise ValueError("sigma_min, sigma_max and rho belong together; give all three or none")
        self.schedule  # noqa: B018  raises if the order is wrong
        check_restraints(self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        return self

    @property
    def schedule(self) -> ScheduleConfig | None:
        if self.sigma_min is None or self.sigma_max is None or self.rho is None:
            return None
        return ScheduleConfig(sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)


class GenerateRequest(Sampling):
    """`POST /v1/generate`: clips from a prompt, the first from `seed`, the next from the seeds after it."""

    seconds: Number | None = Field(None, gt=0, description="Length; default: the length the model was trained on.")
    clips: StrictInt = Field(1, ge=1, description="Number of clips.")
    loop: StrictBool = Field(False, description="Make the end flow into the start.")
    sections: tuple[Section, ...] = Field(
        (), max_length=32, description="Prompts from given seconds on, for longer pieces: [[8.0, 'with drums']]."
    )

    stream: StrictBool = Field(
        False, description="Send the WAV of a piece while it is decoded; needs seconds, and makes one clip, no loop."
    )

    @property
    def is_piece(self) -> bool:
        """Whether it is made in windows, and so in no batch."""
        return self.loop or bool(self.sections) or self.stream

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        if self.sections and (self.loop or self.seconds is None):
            raise ValueError("sections need seconds, the length of the whole, and make no loop")
        if self.stream and (self.loop or self.seconds is None or self.clips > 1):
            raise ValueError("stream needs seconds, the length of the piece, and makes one clip and no loop")
        starts = [start for start, _ in self.sections]
        if starts != sorted(set(starts)) or any(not 0 < start < (self.seconds or 0) for start in starts):
            raise ValueError("sections start after 0, one after another, and before the end")
        return self


class EditRequest(Sampling):
    """`POST /v1/edit`, field `settings`: what to do with the sound in field `audio`."""

    operation: Literal["vary", "repaint", "extend"]
    strength: Number | None = Field(None, ge=0, le=1, description="0 keeps all, 1 is free; default: the operation's.")
    regions: tuple[tuple[Number, Number], ...] = Field(
        (), max_length=16, description="repaint: [start, end] in seconds."
    )
    seconds: Number | None = Field(None, gt=0, description="extend: seconds to add.")
    at: Literal["start", "end"] = Field("end", description="extend: where.")

    @model_validator(mode="after")
    def _check_operation(self) -> Self:
        if self.operation == "repaint" and not self.regions:
            raise ValueError("repaint needs regions, such as [[1.0, 2.5]]")
        if self.operation != "repaint" and self.regions:
            raise ValueError(f"{self.operation} takes no regions; repaint does")
        if self.operation == "extend" and self.seconds is None:
            raise ValueError("extend needs seconds, the length to add")
        if self.operation != "extend" and self.seconds is not None:
            raise ValueError(f"{self.operation} takes no seconds; extend does")
        for start, end in self.regions:
            if not 0 <= start < end:
                raise ValueError(f"region [{start:g}, {end:g}] must start at 0 or later, and end after its start")
        return self


def parse_request(kind: type[Request], body: bytes | str) -> Request:
    """Parse and check a JSON body; RefusedError names the field, its value and the fix.

    NaN and infinity, which JSON does not have, are refused like any other text that is no JSON.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refuse_invalid(error) from None


def check_limits(request: GenerateRequest | EditRequest, limits: Limits) -> None:
    """Refuse what is larger than the service allows; RefusedError names the field, its value and the limit."""
    if not request.prompt.strip():
        raise refuse(422, "prompt is empty", "say what to play, such as: slow piano in A minor", value=request.prompt)
    amounts: dict[str, tuple[float, float]] = {
        "prompt": (len(request.prompt), limits.max_prompt_letters),
        "negative_prompt": (len(request.negative_prompt), limits.max_prompt_letters),
        "steps": (request.steps or 1, limits.max_steps),
        "seconds": (request.seconds or 0.0, limits.max_seconds),
    }
    if isinstance(request, GenerateRequest):
        amounts |= {
            f"prompt of section {number}": (len(prompt), limits.max_prompt_letters)
            for number, (_, prompt) in enumerate(request.sections, 1)
        }
        amounts["clips"] = (request.clips, limits.max_clips)
        amounts["seed"] = (request.seed + request.clips - 1, MAX_SEED)
    for name, (value, limit) in amounts.items():
        if value > limit:
            unit = " characters" if "prompt" in name else ""
            raise refuse(
                422,
                f"{name} is {value:g}{unit}, above this service's limit",
                f"{name}: at most {limit:g}{unit}",
                value=f"{value:g}",
            )
