"""Whether a sample can be used, and what is wrong with it: one judgment for checking, building, training and asking."""

from omnidiff_jax.errors import UserError
from omnidiff_jax.media.speech import check_heard, check_length
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, Record, RejectedRecord
from omnidiff_jax.tasks.chat import media_roles
from omnidiff_jax.tasks.registry import TASKS, Task
from omnidiff_jax.words import is_blank

# Hundreds of times a row; more would only take memory.
_MOST_CHARACTERS = 1 << 20


def check_tags(record: Record) -> None:
    """Refuses media that do not stand for the tags of the messages, one each.

    Raises:
        RejectedRecord: another number of images or audios than of their tags.
    """
    for kind, tag, media in (("image", IMAGE_TAG, record.images), ("audio", AUDIO_TAG, record.audios)):
        tags = len(media_roles(record.messages, tag))
        if tags != len(media):
            raise RejectedRecord(f"{kind}s do not match the tags", f"{tags} {tag} tags, {len(media)} {kind}s")


def check_audios(record: Record) -> None:
    """Refuses audio that nothing can be learnt from or answered: silence that is heard, less than a window of either.

    Args:
        record: with its media in memory.

    Raises:
        RejectedRecord: naming what is wrong.
    """
    for wave, role in zip(record.audios, media_roles(record.messages, AUDIO_TAG), strict=True):
        try:
            (check_length if role == "assistant" else check_heard)(wave)
        except UserError as error:
            raise RejectedRecord("unusable audio", str(error)) from error


def check_trainable(record: Record) -> None:
    """Refuses what cannot train its task; whatever passes is encoded, unless a file or a tokenizer fails.

    Args:
        record: with its media in memory.

    Raises:
        RejectedRecord: no answer or a blank one, media that are not the task's, or unusable audio.
    """
    if (length := sum(len(message.content) for message in record.messages)) > _MOST_CHARACTERS:
        raise RejectedRecord("too much text", f"{length} characters, over the limit of {_MOST_CHARACTERS}")
    check_tags(record)
    answers = [message.content for message in record.messages if message.role == "assistant"]
    if not answers:
        raise RejectedRecord("messages cannot be laid out", "no message is the assistant's, so nothing to learn")
    if any(map(is_blank, answers)):
        raise RejectedRecord(
            "blank assistant message", f"answer {[*map(is_blank, answers)].index(True) + 1} says nothing"
        )
    if record.messages[-1].role != "assistant":
        raise RejectedRecord("last message is not the assistant's", "nothing answers it, the answer before sees it")
    if record.task not in TASKS:
        raise RejectedRecord("unknown task", f"{record.task!r} is none of {', '.join(TASKS)}")
    _check_task(record, TASKS[record.task])
    check_audios(record)


def _check_task(record: Record, task: Task) -> None:
    """What a task hears, sees, draws and speaks must be there; no answer may hold what it does not give.

    More may stand in the user's turns: conversations wander. An answer in text and speech may leave the speech out,
    and a drawing may be spoken to: samples that name no task are called so by what they hold.
    """
    draws, speaks = task.answer in ("image", "hole"), task.answer in ("speech", "text_and_speech")
    for tag, asked, given, optional in (
        (IMAGE_TAG, IMAGE_TAG in task.user, draws, False),
        (AUDIO_TAG, AUDIO_TAG in task.user, speaks, task.answer == "text_and_speech"),
    ):
        roles = media_roles(record.messages, tag)
        answered = "assistant" in roles
        if asked and not any(role != "assistant" for role in roles):
            raise RejectedRecord("not a sample of its task", f"{task.name} needs {tag} in the user's turn")
        if given and not answered and not optional:
            raise RejectedRecord("not a sample of its task", f"{task.name} answers with {tag}, the assistant has none")
        if answered and not given and not draws:
            raise RejectedRecord("not a sample of its task", f"the assistant answers with {tag}, {task.name} does not")
    if (record.hole is not None) != (task.answer == "hole"):
        fault = "needs a hole" if record.hole is None else "paints all of its picture, the sample has a hole"
        raise RejectedRecord("not a sample of its task", f"{task.name} {fault}")
