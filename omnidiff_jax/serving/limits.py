"""What one server takes on, in bytes, pixels, seconds and requests."""

import dataclasses

from omnidiff_jax.sampling.ranges import within


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a server; what is beyond them is refused by name, never cut.

    Attributes:
        body: bytes of a request.
        pixels: of a picture.
        seconds: of a recording.
        characters: of a text that is to be spoken, drawn or asked.
        media: pictures and recordings in one request.
        turns: messages of a conversation.
        answers: `n`, answers to one request.
        queue: requests that wait; more are told to come back (429).
        lanes: shapes and samplers whose programs are kept at once.
        patience: seconds until a request that is not answered is given up (504).
        upload: seconds that a request may take to arrive: its body (408), and its headers (the connection is closed).
    """

    body: int = 32 * 2**20
    pixels: int = 16_000_000
    seconds: float = 60.0
    characters: int = 32_768
    media: int = 16
    turns: int = 128
    answers: int = 10
    queue: int = 256
    lanes: int = 48
    patience: float = 600.0
    upload: float = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            within(self, field.name, 1, 2**40)
