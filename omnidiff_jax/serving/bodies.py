"""What clients send, field by field: OpenAI's names, and the settings of a request's sampler.

A field that is not here is refused by its name; one that is here is heeded, or asks for nothing in the only value that
it takes. The models are also what `/openapi.json` is made of.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from omnidiff_jax.answering.asked import SEEDS

Nothing = Annotated[float, Field(ge=0, le=0)]
PictureFormat = Literal["png", "jpeg", "webp"]
SpeechFormat = Literal["wav", "flac", "mp3", "opus", "pcm"]


class Body(BaseModel):
    """A mapping that holds nothing but its fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Sampling(Body):
    """How this request is decoded; what is left out is as the model's config says."""

    model: str = Field(max_length=256)
    seed: int | None = Field(None, ge=0, le=SEEDS, description="Of the sampling noise; drawn where it is left out.")
    steps: int | None = Field(None, ge=1, le=1 << 16)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    guidance: float | None = Field(None, ge=0, le=100)
    repetition: float | None = Field(None, gt=0, le=100)
    block: int | None = Field(None, ge=0, le=1 << 16)
    settings: dict[str, Any] | None = Field(
        None, description="Any setting of the sampler by its dotted name, as in sampler.confidence.kind."
    )
    user: str | None = Field(None, max_length=1024, description="Nothing is kept of it.")


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    url: str = Field(min_length=1, description="A data: URL; http(s) only of hosts that the server was told to trust.")
    detail: Literal["auto"] | None = None


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Body):
    data: str = Field(min_length=1, description="Base64.")
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "webm"]


class AudioPart(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class SpokenBefore(Body):
    """Speech of an earlier answer, as it was given."""

    id: str | None = None
    data: str = Field(min_length=1)
    transcript: str | None = None
    expires_at: int | None = None


class Given(Body):
    """A system's or a user's turn."""

    role: Literal["system", "developer", "user"]
    content: str | list[Part]


class Said(Body):
    """An earlier answer; as a client holds the `message` of one."""

    role: Literal["assistant"]
    content: str | list[Part] | None = None
    audio: SpokenBefore | None = None
    images: list[ImagePart] | None = None
    refusal: None = None


Turn = Annotated[Given | Said, Field(discriminator="role")]


class Spoken(Body):
    voice: Literal["default"] = "default"
    format: Literal["wav", "flac", "mp3", "opus", "pcm16"] = "wav"


class StreamOptions(Body):
    include_usage: bool = False
    include_canvas: bool = Field(False, description="Also send the canvas after every step, as events named canvas.")


class PlainText(Body):
    type: Literal["text"]


class ChatRequest(Sampling):
    messages: list[Turn] = Field(min_length=1)
    modalities: list[Literal["text", "audio", "image"]] | None = Field(None, min_length=1, max_length=2)
    audio: Spoken | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="Positions of the answer's canvas.")
    max_completion_tokens: int | None = Field(None, ge=1, description="Likewise.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: PlainText | None = None
    stop: None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    store: Literal[False] | None = None


class Drawing(Sampling):
    """What both ways to a picture take."""

    prompt: str = Field(min_length=1)
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, max_length=32)
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: PictureFormat | None = None
    response_format: Literal["b64_json"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    include_canvas: bool | None = Field(None, description="Also send the canvas after every step, as in chats.")


class ImageRequest(Drawing):
    moderation: Literal["auto"] | None = None


class EditRequest(Drawing):
    pass


class SpeechRequest(Sampling):
    input: str = Field(min_length=1)
    voice: Literal["default"]
    response_format: SpeechFormat | None = None
    speed: Annotated[float, Field(ge=1, le=1)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    length: int | None = Field(None, ge=1, description="Positions of the answer.")


class TranscriptionRequest(Sampling):
    response_format: Literal["json", "text", "verbose_json"] | None = None
    stream: bool | None = None
    include_canvas: bool | None = Field(None, description="Also send the canvas after every step, as in chats.")
    length: int | None = Field(None, ge=1, description="Positions of the answer.")
