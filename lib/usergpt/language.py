"""Is a text English? Told by script and by the commonest words of seven European languages; short texts pass."""

import re

COMMON = {
    "en": "the of and to a in is for that you with on this are i my it be as what how can me from write please",
    "es": "de la que el en y los del las un por con una para es como se lo su al más pero",
    "fr": "de la le les des et en un une du pour que est dans qui sur pas avec ce vous je",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine ich wie",
    "pt": "de que e o da em um para é com não uma os no se na por mais as dos como eu",
    "it": "di e il la che in un per è una sono con non del si da come le dei nel mi",
    "nl": "de van een het en in is dat op te zijn met voor niet aan er om ook ik",
}
WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
FEWEST_WORDS = 8
FOREIGN_LETTERS = 0.3  # share of letters outside the Latin script


def looks_english(text: str) -> bool:
    """Whether a text is English, as far as script and common words tell; code and texts of a few words pass."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return True
    if sum(ord(c) > 0x24F for c in letters) > FOREIGN_LETTERS * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < FEWEST_WORDS:
        return True
    hits = {language: sum(word in common for word in words) for language, common in WORDS.items()}
    best = max(hits, key=lambda language: hits[language])
    return best == "en" or hits[best] <= hits["en"] or hits[best] < 0.1 * len(words)
