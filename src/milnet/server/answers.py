"""What the API takes and gives, for OpenAPI and for readers. Answers are made without these classes, for speed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Without None: FastAPI leaves that out of examples.
_SCORE: dict[str, Any] = {
    "index": 0, "photo": "a.jpg", "id": "0" * 64, "score": 4.21, "low": 3.4, "high": 5.0, "spread": 1.4,
    "percentile": 63.2, "stars": 3, "unlike": 0.41, "outside": False,
    "distribution": [0.03, 0.08, 0.18, 0.27, 0.24, 0.14, 0.06],
    "signals": {"width": 4000, "height": 3000, "sharpness": 71.3, "highlights": 0.001, "shadows": 0.02, "noise": 1.2},
    "group": 1, "rank": 1, "keep": True, "folder_percentile": 50.0,
}  # fmt: skip


class Technical(BaseModel):
    """Measured from the pixels; no part of the score."""

    width: int
    height: int
    sharpness: float = Field(description="0 to 100, of the sharpest part")
    highlights: float = Field(description="share of pixels that are clipped to white")
    shadows: float = Field(description="share of pixels that are clipped to black")
    noise: float = Field(description="standard deviation, of 255")


class Score(BaseModel):
    """What is said about one photo, in units of the model's values."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SCORE]})

    index: int = Field(description="place among the photos of the call, from 0")
    photo: str = Field(description="the name it was sent with")
    id: str = Field(description="sha256 of the file: names it in later calls")
    score: float = Field(description="mean of the predicted distribution")
    low: float | None = Field(description="90 % interval of the mean vote of a large panel")
    high: float | None
    spread: float | None = Field(description="standard deviation that the votes are expected to have")
    percentile: float | None = Field(description="100 x share of the pool's photos that score lower")
    stars: int | None
    unlike: float | None = Field(description="how far it is from all photos of the pool, 0 to 1")
    outside: bool = Field(description="too far: trust neither score nor interval")
    distribution: list[float] = Field(description="share of votes at each value")
    signals: Technical | None
    group: int | None = Field(description="number of its burst among the photos of the call")
    rank: int | None = Field(description="place in its burst, 1 is the best")
    keep: bool | None = Field(description="advice: worth keeping of its burst")
    folder_percentile: float | None = Field(description="100 x share of the other photos of the call that score lower")


class Reference(BaseModel):
    """A rated photo that was consulted."""

    id: str
    number: int = Field(description="its row in the pool")
    photo: str | None = Field(description="of a taste taught here: the id of the file that was sent")
    similarity: float
    votes: list[float] = Field(description="how many people chose each value")
    influence: float = Field(description="what it added to the score")


class Explanation(Score):
    """A score and what moved it: score = base + own + the influences of all references + rest."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {**_SCORE, "base": 4.1, "own": 0.09, "rest": 0.01,
                 "references": [{"id": "I12", "number": 11, "photo": "0" * 64, "similarity": 0.83,
                                 "votes": [1, 3, 8, 20, 25, 11, 4], "influence": 0.01}]}
            ]
        }
    )  # fmt: skip

    base: float = Field(description="mean vote of the photos the model learned from")
    own: float = Field(description="what the photo itself adds")
    rest: float = Field(description="what all other references add")
    references: list[Reference] = Field(
        description="at most 8; of more, those that moved the score most, the most first; else nearest first"
    )


class Failure(BaseModel):
    """A photo that could not be scored."""

    index: int
    photo: str
    id: str | None = None
    reason: str
    unknown: bool | None = Field(default=None, description="an id that is not remembered: send the photo itself")


class Scores(BaseModel):
    """The answer of a call, in the order of its photos."""

    model: str
    scores: list[Score]
    failures: list[Failure]


class Explanations(BaseModel):
    """The answer of a call, in the order of its photos."""

    model: str
    scores: list[Explanation]
    failures: list[Failure]


class Checked(BaseModel):
    """How well a taste predicts ratings it has not seen: rank correlations by cross-validation."""

    photos: int
    bursts: int
    folds: int
    seen: int
    general: float | None = Field(description="of the general model")
    alone: float | None = Field(description="of the ratings alone")
    both: float | None = Field(description="of the taste")
    low: float | None = Field(description="95 % interval of the difference")
    high: float | None
    difference: float | None
    beats: bool
    worse: bool
    verdict: str


class Quality(BaseModel):
    """Of photos it has not seen."""

    srcc: float


class Model(BaseModel):
    """A model that can be asked for."""

    name: str
    kind: Literal["model", "taste"]
    digest: str
    introduction: str
    values: list[float]
    stars: list[float]
    stars_of: Literal["percentile", "folder_percentile", "score"]
    pool: int
    table: str
    whole: bool
    exact: bool
    coverage: float
    unlike_limit: float
    quality: Quality | None
    removable: bool
    checked: Checked | None = None


class Most(BaseModel):
    """What a call may send."""

    bytes: int
    pixels: int
    photos: int


class Models(BaseModel):
    """All models."""

    models: list[Model]
    default: str
    limits: Most


_ID = Field(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")


class Ids(BaseModel):
    """Photos that were sent before."""

    ids: list[str] = Field(min_length=1, max_length=20_000)


class Place(BaseModel):
    """A photo in its burst."""

    id: str
    group: int
    rank: int | None
    keep: bool | None


class Bursts(BaseModel):
    """The photos that are in a burst."""

    bursts: list[Place]


class Rating(BaseModel):
    """One person's rating of a photo that was sent before."""

    id: str = _ID
    rating: int = Field(ge=1, le=5)

    @field_validator("rating", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        if isinstance(value, bool | str):  # which would be taken for one
            raise ValueError("expected a number from 1 to 5")
        return value


class Lesson(BaseModel):
    """Ratings to learn a taste from."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "pocket", "ratings": [{"id": "0" * 64, "rating": 4}]}]}
    )

    name: str | None = Field(default=None, max_length=60)
    model: str | None = Field(default=None, description="the general model to begin with")
    ratings: list[Rating] = Field(min_length=1, max_length=2000)


class Health(BaseModel):
    """The service is there."""

    status: str
    version: str


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    expected: str | None = None
    got: str | None = None
