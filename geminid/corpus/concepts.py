"""Which concepts a data set has and what they are called."""

from __future__ import annotations

import itertools
import re
from collections import Counter

from geminid.config import DataConfig
from geminid.corpus.splits import fraction

_MIN_STYLES_OF_EXTRAS = 5
# Not single things: flags, key caps, groups, clock times, and the two or three variants of each person.
_NOT_EXTRA = re.compile(r"^(flag|keycap|family|couple|kiss)\b|^(man|men|woman|women|person|people)\b|thirty$|o’clock$")


def core_concepts(
    config: DataConfig, icons: dict[str, dict[str, str]], stamped: set[str], moving: set[str]
) -> list[str]:
    """Stamped concepts that are emoji of the held-out style and of another, sorted; at most `config.num_concepts`.

    `icons` maps concept -> style -> icon. A cap keeps those with the most styles, of these the ones that have an
    animation (`moving`), drawn by hash among equals: a small data set too has every modality.
    Raises ValueError if there are fewer than the cap asks for.
    """
    known = [
        concept
        for concept in sorted(stamped)
        if config.held_out_style in icons.get(concept, {}) and len(icons[concept]) >= 2
    ]
    if config.num_concepts is None:
        return known
    if not 2 <= config.num_concepts <= len(known):
        raise ValueError(f"data.num_concepts is {config.num_concepts}; use 2 to {len(known)}, or None for all")
    ranked = sorted(known, key=lambda c: (-len(icons[c]), c not in moving, fraction(config.seed, "concept", c)))
    return sorted(ranked[: config.num_concepts])


def extra_concepts(config: DataConfig, icons: dict[str, dict[str, str]], core: list[str]) -> list[str]:
    """Other emoji that most styles draw, sorted; none unless `config.extra_concepts`."""
    if not config.extra_concepts:
        return []
    needed = min(_MIN_STYLES_OF_EXTRAS, len(config.styles))
    others = {concept for concept, styles in icons.items() if len(styles) >= needed} - set(core)
    return sorted(concept for concept in others if not _NOT_EXTRA.search(concept))


def unique_names(
    core: list[str], names: dict[str, str], descriptions: dict[str, list[str]], keywords: dict[str, list[str]]
) -> dict[str, str]:
    """One language's names of the core concepts, no two alike.

    A concept without a name takes its stamps' description. Of concepts of one name the first keeps it; the others take
    their description, or add a keyword in brackets, or as a last resort their id.
    """
    taken: set[str] = set()
    unique: dict[str, str] = {}
    counts = Counter(names.get(concept) for concept in core)
    for concept in sorted(core, key=lambda c: counts[names.get(c)] > 1):  # names without a twin first
        name = names.get(concept)
        choices = [name] if name else []
        choices += [text.lower() for text in descriptions.get(concept, ())]
        choices += [f"{name} ({word.lower()})" for word in keywords.get(concept, ()) if name and word.lower() != name]
        choices += [f"{name} ({concept})" if name else concept]
        last_resort = (f"{concept} {n}" for n in itertools.count(2))
        unique[concept] = next(c for c in itertools.chain(choices, last_resort) if c not in taken)
        taken.add(unique[concept])
    return {concept: unique[concept] for concept in core}
