"""From requests to answers in their media, with a random model and stand-in codecs."""

import dataclasses
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omni_toys import CODECS, GRID, RATE, SIZE, VOCABULARY, generator, left_half, picture, quick, request, tone

from omnidiff_jax.answering import generator as answering
from omnidiff_jax.answering.conversation import conversation_query, read_turns
from omnidiff_jax.answering.media import to_audio
from omnidiff_jax.answering.queries import Query, Request, task_query
from omnidiff_jax.codecs.encode import encode_prompts, fit_image
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.records import Message, Record, Waveform
from omnidiff_jax.sampling import Guidance
from omnidiff_jax.tasks.registry import TASKS, task


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one, other):
    assert one.text == other.text
    for name in ("image", "speech"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_answers_the_same_in_any_company(name):
    """Ragged requests of other sizes and lengths, in batches of three and two."""
    chosen, make = task(name), generator()
    requests = [request(chosen, number) for number in range(5)]
    responses = make(chosen, requests)
    assert len(responses) == 5 and make(chosen, []) == []
    for one, other in zip(make(chosen, [requests[4], requests[1]]), (responses[4], responses[1]), strict=True):
        same(one, other)
    for response in responses:
        assert response.text == response.text.strip()
        assert not response.text or chosen.answer in ("text", "text_and_speech")
        assert (response.image is not None) == (chosen.answer in ("image", "hole"))
        if response.image is not None:
            assert response.image.shape == (SIZE, SIZE, 3) and response.image.dtype == np.uint8
        assert (response.speech is not None) == (chosen.answer in ("speech", "text_and_speech"))
        assert (response.audio is not None) == (response.speech is not None and len(response.speech) > 0)
        if response.audio is not None:
            assert response.audio.seconds == pytest.approx(len(response.speech) / 12.5)


@pytest.mark.parametrize("name", ["text_qa", "spoken_vqa"])
def test_a_request_alone_is_answered_as_in_a_batch(name):
    chosen, make = task(name), generator()
    requests = [request(chosen, number) for number in range(3)]
    together = make(chosen, requests)
    for number in (0, 2):
        same(make(chosen, [requests[number]])[0], together[number])


def test_inpainting_leaves_known_pixels_as_they_are():
    given = picture(3, 100, 80)
    chosen = task("inpainting")
    (answer,) = generator()(chosen, [Request("a cross", given, hole=left_half(), request_id=7)])
    seen = fit_image(given, SIZE)
    assert (answer.image[:, SIZE // 2 :] == seen[:, SIZE // 2 :]).all()
    assert (answer.image[:, : SIZE // 2] != seen[:, : SIZE // 2]).any()
    # A hole need not follow the codes' patches.
    speck = np.zeros((SIZE, SIZE), bool)
    speck[10:13, 20:40] = True
    (answer,) = generator()(chosen, [Request("a cross", given, hole=speck, request_id=7)])
    assert (answer.image[~speck] == seen[~speck]).all()


@pytest.mark.parametrize(("name", "unconditional"), [("s2i", "empty"), ("t2i", "random")])
def test_guidance_against_both_unconditional_prompts(name, unconditional):
    chosen = task(name)
    assert chosen.decoding.unconditional == unconditional
    requests = [request(chosen, number) for number in range(3)]
    guided = generator(**{name: quick(chosen.decoding, guidance=Guidance(3.0))})
    answers = guided(chosen, requests)
    assert any((a.image != b.image).any() for a, b in zip(answers, generator()(chosen, requests), strict=True))
    for one, other in zip(guided(chosen, requests[::-1]), answers[::-1], strict=True):
        same(one, other)


@pytest.mark.parametrize("name", ["captioning", "vqa", "asr", "s2i", "spoken_vqa", "tts", "inpainting"])
def test_random_text_stands_for_the_whole_request(name):
    """Words and media: guidance against it draws to all that was asked, whatever the task."""
    chosen = task(name)
    settings = quick(dataclasses.replace(chosen.decoding, unconditional="random"), guidance=Guidance(3.0))
    requests = [request(chosen, number) for number in range(2)]
    answers, plain = generator(**{name: settings})(chosen, requests), generator()(chosen, requests)
    assert any(
        a.text != b.text
        or (a.image is not None and (a.image != b.image).any())
        or not np.array_equal(a.speech, b.speech)
        for a, b in zip(answers, plain, strict=True)
    )


def test_random_text_leaves_what_was_said_before(monkeypatch):
    others = []
    canvas = answering.unconditional_canvas
    monkeypatch.setattr(
        answering,
        "unconditional_canvas",
        lambda c, prompts, *a, **k: (others.extend(prompts), canvas(c, prompts, *a, **k))[1],
    )
    turns = read_turns(
        [
            {"role": "user", "content": ["draw", {"audio": tone(0.5)}]},
            {"role": "assistant", "content": [{"image": picture(1)}, {"audio": tone(0.4)}]},
            {"role": "user", "text": "red circle"},
        ]
    )
    make, settings = generator(limit=320), quick(task("t2i").decoding, guidance=Guidance(1.5))
    query = conversation_query(turns, "image", {"t2i": settings})
    (example,) = encode_prompts([Record(0, "t2i", query.messages, query.images, query.audios)], CODECS)
    assert make.decode([query])[0].image is not None
    (other,) = others
    same = other.tokens == example.tokens
    head, text = CODECS.layout.encode_text(task("t2i").user.format(text="")), len("red circle")
    request = len(same) - len(CODECS.layout.prompt([Message("user", "")])) + len("<user\n")
    assert len(other.tokens) == len(example.tokens) and same[: request - text].all() and not same.all()
    assert list(other.tokens[request - text - len(head) : request - text]) == head
    np.testing.assert_array_equal(other.frames, example.frames)
    assert tuple(other.frame_counts) == tuple(example.frame_counts)


def test_strips_end_with_the_answer():
    chosen = task("t2i")
    (answer,) = generator()(chosen, [request(chosen)], strips=True)
    strip = answer.strip
    masks = (strip == VOCABULARY.mask).sum(axis=1)
    assert (np.diff(masks) < 0).all() and masks[-1] == 0
    codes = VOCABULARY.image.decode(strip[-1][1 : 1 + GRID[0] * GRID[1]])
    assert (CODECS.images(answer.image[None])[0] == codes).all()


def test_a_request_over_the_canvas_is_refused_with_the_numbers():
    text = "x" * 500
    said = message(generator(limit=96), task("text_qa"), [Request(text)])
    assert "answer of 12" in said and "the canvas has 96" in said
    assert str(len(CODECS.layout.prompt(task("text_qa").prompt(text)))) in said
    said = message(generator(limit=96), task("asr"), [Request(audio=tone(30.0))])
    (tokens,) = re.findall(r"prompt of (\d+) tokens", said)
    over = (int(tokens) + 12 - 96) * 0.06
    assert "the canvas has 96" in said and f"tokens (30.0 s of speech, {over:.1f} s too long)" in said
    assert "of speech" not in message(generator(limit=96), task("text_qa"), [Request(text)])
    # What is said to be too long is: without it the request fits.
    assert generator(limit=96)(task("asr"), [Request(audio=tone(29.9 - over))])


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_input_is_named(name):
    chosen = task(name)
    for missing in set(chosen.inputs) - ({"text"} if chosen.default_text else set()):
        given = dataclasses.replace(request(chosen), **{missing: "" if missing == "text" else None})
        assert f"needs {missing};" in message(generator(), chosen, [given])


def test_unusable_media_are_named():
    make = generator()
    assert "hole has shape (3, 3)" in message(
        make, task("inpainting"), [Request("a", picture(0), hole=np.ones((3, 3), bool))]
    )

    def deaf(wave: Waveform) -> np.ndarray:
        raise UserError("audio of 1 samples has no spectrum")

    make.codecs = dataclasses.replace(CODECS, features=deaf)
    assert "unusable audio: audio of 1 samples" in message(make, task("asr"), [Request(audio=tone(1.0))])


@pytest.mark.parametrize("name", [name for name in TASKS if "text" in TASKS[name].inputs])
@pytest.mark.parametrize("blank", [" ", "\n", "\u200b\ufeff", "\u3000\t\0"])
def test_blank_text_is_missing(name, blank):
    chosen = task(name)
    asked = dataclasses.replace(request(chosen), text=blank)
    if chosen.default_text:
        assert task_query(chosen, asked, chosen.decoding).messages == chosen.prompt()
        return
    assert f"task {name} needs text;" in message(generator(), chosen, [asked])
    with pytest.raises(UserError, match="message 1 is empty"):
        read_turns([{"role": "user", "content": blank}])


@given(st.text(min_size=1))
def test_requests_that_look_alike_are_one_query(text):
    chosen = task("text_qa")
    spellings = [text.replace("\n", "\r\n")] + [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    asked = [Query("a", (Message("user", one),), "text", chosen.decoding, str, text=one) for one in spellings]
    assert len({(query.messages, query.text) for query in asked}) == 1
    turns = [read_turns([{"role": "user", "content": "x" + one.replace("<", "")}]) for one in spellings]
    assert len({conversation_query(turn, "text", {"text_qa": chosen.decoding}).messages for turn in turns}) == 1


@pytest.mark.parametrize("name", ["text_qa", "tts", "t2i", "vqa"])
def test_what_was_never_taught_is_said(name, capfd):
    chosen, make = task(name), generator()
    asked = dataclasses.replace(request(chosen), text="赤い 円\u200b")
    said = message(make, chosen, [asked])
    assert f"task {name}: the model was never taught: '赤' 'い' '円' U+200B" in said
    notice.cache_clear()
    for _ in range(2):
        make(chosen, [dataclasses.replace(asked, text="red 円")])
    assert capfd.readouterr().err.count("the model was never taught '円';") == 1
    make(chosen, [dataclasses.replace(asked, text="red")])
    assert not capfd.readouterr().err


def test_silence_is_not_answered():
    for samples in (np.zeros(RATE, np.float32), np.full(RATE, 0.3, np.float32), np.zeros(2, np.float32)):
        said = message(generator(), task("asr"), [Request(audio=Waveform(samples, RATE))])
        assert "no speech heard (peak" in said or "audio of 2 samples" in said
    with pytest.raises(UserError, match="2 channels cancel each other out"):
        to_audio((np.stack([tone(0.5).samples, -tone(0.5).samples]), RATE))
