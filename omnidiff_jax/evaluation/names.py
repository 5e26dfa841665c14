"""Names of things, compared as people write them: a right answer is one of a case's names by the rules of `spelt`."""

from collections.abc import Sequence

from omnidiff_jax.answering.queries import Response
from omnidiff_jax.evaluation.exam import Case, Measure
from omnidiff_jax.evaluation.measures import Counts, share
from omnidiff_jax.words import normalize

_ARTICLES = ("a", "an", "the")
_HISSING = ("s", "x", "z", "ch", "sh")


def spelt(name: str) -> str:
    """What all spellings of one name have in common.

    1. Case, accents' form and punctuation as `words.normalize` has them; hyphens and underscores stand for spaces.
    2. Articles before it are left out.
    3. Of each word longer than three letters the plural's ending is taken off: "ies" is "y", "es" after s, x, z, ch
       and sh is nothing, nor is another "s", but after s, u and i.
    4. Spaces are left out: "hot dog" is "hotdog".
    """
    words = normalize(name.replace("_", " ").replace("-", " ")).split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return "".join(map(_single, words))


def _single(word: str) -> str:
    if len(word) <= 3:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(_HISSING):
        return word[:-2]
    return word[:-1] if word.endswith("s") and word[-2] not in "sui" else word


def names_it(text: str, names: Sequence[str]) -> bool:
    """Whether the text is one of the names."""
    found = spelt(text)
    return bool(found) and any(found == spelt(name) for name in names)


def named(responses: Sequence[Response], cases: Sequence[Case]) -> Counts:
    """Answers that are one of `meta["accepted"]`: the thing's name and its synonyms."""
    return share(lambda response, case: names_it(response.text, case.meta["accepted"]), responses, cases)


NAMED = Measure("right, synonyms accepted", "names as they are spelt", True, named)
