"""How good an answer is, by judges that are not the model: scene parser, caption grammar, pocketsphinx, exact match.

A score takes responses and the cases they answer, and gives two arrays [n]: hits and ones, or word errors and words.
"""

from collections.abc import Mapping, Sequence

from data_pipelines.scenes.language import parse_caption
from data_pipelines.scenes.listener import listen
from data_pipelines.scenes.scene import Scene
from data_pipelines.scenes.scene_parser import parse_scene
from data_pipelines.scenes.wording import is_wanted, meets
from omnidiff_jax.answering.queries import Response
from omnidiff_jax.evaluation.exam import Case, Measure
from omnidiff_jax.evaluation.measures import EXACT, TRANSCRIBED, Counts, share
from omnidiff_jax.words import word_errors


def _true_scene(case: Case) -> Scene:
    scene = parse_caption(case.meta["caption"])
    if scene is None:
        raise ValueError(f"{case.meta['caption']!r} is not a caption of a scene")
    return scene


def _described(response: Response) -> Scene:
    return parse_caption(response.text) or Scene((), "")


def _drawn(response: Response) -> Scene:
    return parse_scene(response.image) if response.image is not None else Scene((), "")


def _same_objects(found: Scene, case: Case) -> bool:
    return found.content() == _true_scene(case).content()


def _same_scene(found: Scene, case: Case) -> bool:
    return _same_objects(found, case) and found.background == _true_scene(case).background


def objects_described(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Captions that name exactly the scene's objects."""
    return share(lambda r, case: _same_objects(_described(r), case), responses, cases)


def scene_described(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Captions with the objects and the background right."""
    return share(lambda r, case: _same_scene(_described(r), case), responses, cases)


def objects_drawn(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Pictures that show exactly the objects asked for."""
    return share(lambda r, case: meets(_drawn(r), case.meta["wanted"], ""), responses, cases)


def scene_drawn(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Pictures with the objects and the background as asked for."""
    return share(lambda r, case: meets(_drawn(r), case.meta["wanted"], case.meta["background"]), responses, cases)


def _hidden_right(response: Response, case: Case) -> bool:
    thing = _drawn(response).at(case.meta["hidden"])
    return thing is not None and is_wanted(thing, case.meta["wanted"][case.meta["hidden_number"]])


def _known_untouched(response: Response, case: Case) -> bool:
    given, hole = case.request.image, case.request.hole
    if given is None or hole is None or response.image is None or response.image.shape != given.shape:
        return False
    return bool((given[~hole] == response.image[~hole]).all())


def inpainted(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Pictures with the hidden object as asked for, whatever else became of them."""
    return share(_hidden_right, responses, cases)


def known_pixels(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Pictures with every known pixel as given."""
    return share(_known_untouched, responses, cases)


def spoken(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Word errors of the speech, as pocketsphinx hears it; no speech is as wrong as silence."""
    heard = [listen(response.audio) if response.audio is not None else "" for response in responses]
    return word_errors([case.meta["spoken"] for case in cases], heard)


_DRAWN = (
    Measure("all objects right", "scene parser", True, objects_drawn),
    Measure("objects and background right", "scene parser", True, scene_drawn),
)
_SPOKEN = Measure("word error rate", "pocketsphinx", False, spoken)
_SPOKEN_ANSWER = (EXACT, Measure("word error rate of the speech", "pocketsphinx", False, spoken))

# The first measure of a task is its value in the scorecard.
MEASURES: Mapping[str, tuple[Measure, ...]] = {
    "text_qa": (EXACT,),
    "captioning": (
        Measure("all objects right", "caption grammar", True, objects_described),
        Measure("objects and background right", "caption grammar", True, scene_described),
    ),
    "vqa": (EXACT,),
    "t2i": _DRAWN,
    "asr": (TRANSCRIBED,),
    "tts": (_SPOKEN,),
    "spoken_qa": _SPOKEN_ANSWER,
    "s2i": _DRAWN,
    "spoken_vqa": _SPOKEN_ANSWER,
    "inpainting": (
        Measure("hidden object right", "scene parser", True, inpainted),
        Measure("known pixels untouched", "pixel equality", True, known_pixels),
    ),
}
