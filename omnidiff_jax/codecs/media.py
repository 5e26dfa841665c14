"""What turns media into codes and codes into media again, as the rest of the library sees it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from omnidiff_jax.records import Waveform
from omnidiff_jax.tasks.chat import ChatLayout


@dataclasses.dataclass(frozen=True)
class Codecs:
    """Both directions of every medium; each callable is a tokenizer's method, or a stand-in.

    Attributes:
        layout: messages to ids.
        images: uint8 [B, H, W, 3] of any B -> int [B, k] codes.
        speech: waveforms -> speech codes int [k] of each.
        features: waveform -> float32 [n, W] frames that the speech encoder hears, as wide as `layout.speech` says.
        draw: int [B, k] codes of drawn images -> uint8 [B, H, W, 3].
        speak: speech codes of each answer -> waveforms.
        image_grid: codes of a drawn image, (rows, columns).
        user_image_size: side in pixels of an image that is looked at.
        assistant_image_size: side in pixels of an image that is drawn.
    """

    layout: ChatLayout
    images: Callable[[np.ndarray], np.ndarray]
    speech: Callable[[list[Waveform]], Sequence[np.ndarray]]
    features: Callable[[Waveform], np.ndarray]
    draw: Callable[[np.ndarray], np.ndarray]
    speak: Callable[[list[np.ndarray]], list[Waveform]]
    image_grid: tuple[int, int]
    user_image_size: int = 512
    assistant_image_size: int = 256
