"""The language of a text, by py3langid (Lui and Baldwin 2012): its model is part of the package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from llmlab.errors import LabError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

READ = 500  # characters of a text
UNKNOWN = "unknown"
CONFIDENT = 0.5  # probability below which a language is not told
FEWEST = 3  # words below which none is told


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """Returns the language of a text as its ISO 639-1 code; "unknown" where it cannot be told."""
    text = text[:READ]
    if len(text.split()) < FEWEST and text.isascii():
        return UNKNOWN
    language, probability = _identifier().classify(text)
    return str(language) if probability >= CONFIDENT else UNKNOWN


def known_languages() -> list[str]:
    """Returns the codes of the languages that can be told, sorted."""
    return sorted(_identifier().labels)


def check_language(code: str) -> str:
    """Returns the code of a language.

    Raises:
        LabError: when it is not known.
    """
    if code not in (known := known_languages()):
        raise LabError(f"`--language` {code!r} is not known", remedy=f"known are {' '.join(known)}")
    return code
