"""What is asked of the unconditional canvas under guidance: less than the request."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnidiff_jax.answering.queries import Query
from omnidiff_jax.records import AUDIO_TAG, Message
from omnidiff_jax.sampling.canvas import Prompt
from omnidiff_jax.sampling.guidance import random_text_prompt
from omnidiff_jax.tasks.chat import ChatLayout, media_roles


def unconditional_prompts(layout: ChatLayout, prompts: Sequence[Prompt], queries: Sequence[Query]) -> list[Prompt]:
    """Unconditional prompts of queries that are decoded alike; none without guidance.

    Args:
        layout: of the turns.
        prompts: of the queries.
        queries: one or more.
    """
    decoding = queries[0].decoding
    if decoding.sampler.guidance.scale == 0:
        return []
    if decoding.unconditional == "empty":
        return [Prompt(layout.prompt([*_systems(query.messages), Message("user", "")])) for query in queries]
    return [_random(layout, prompt, query) for prompt, query in zip(prompts, queries, strict=True)]


def _random(layout: ChatLayout, prompt: Prompt, query: Query) -> Prompt:
    """`prompt` with random text for its request, words and media alike; what was said before stays."""
    start = layout.vocabulary.im_start
    *before, _ = query.messages
    # Where special strings are ids, a turn may hold more than its own start.
    turns = sum(1 + layout.encode_text(message.content).count(start) for message in before)
    said = prompt.tokens[: np.flatnonzero(prompt.tokens == start)[turns]]
    head, tail = _template(layout, query)
    around = np.concatenate([said, head]), tail
    other = random_text_prompt(*around, len(prompt.tokens), layout.vocabulary.text, query.seed, query.request_id)
    roles = media_roles(before, AUDIO_TAG)
    heard = prompt.frame_counts[: len(roles) - roles.count("assistant")]
    if not heard or prompt.frames is None:
        return other
    return dataclasses.replace(other, frames=prompt.frames[: sum(heard)], frame_counts=heard)


def _template(layout: ChatLayout, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the last turn around the request, whatever its words."""
    one, two = (layout.prompt([Message("user", query.worded(text))]) for text in ("red", "no"))
    shared = min(len(one), len(two))
    head = int(np.cumprod(one[:shared] == two[:shared]).sum())
    tail = int(np.cumprod((one[::-1][:shared] == two[::-1][:shared])[: shared - head]).sum())
    return one[:head], one[len(one) - tail :]


def _systems(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message.role == "system"]
