"""Whether a task is attack detection, by the names of its classes: decides what tables show, not what is measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# Names of a presentation by a living person, or of a picture that nobody forged; without case, spaces and signs.
BONA_FIDE = frozenset({"live", "alive", "living", "bonafide", "genuine", "authentic", "real", "pristine", "original"})
# Names of attacks in general and of their common instruments, a part of the name being enough.
ATTACKS = (
    *("attack", "spoof", "fake", "synthetic", "generated", "forged", "forgery", "manipulated", "morph", "impostor"),
    *("print", "replay", "mask", "textured", "contactlens", "silicone", "deepfake", "tampered", "counterfeit"),
)
MODES = ("auto", "always", "never")


class AttackDetection(NamedTuple):
    """Whether tables show the errors of attack detection, and why in a sentence."""

    shown: bool
    reason: str


def decide_attack_detection(mode: str, class_names: Sequence[str]) -> AttackDetection:
    """What `evaluation.attack_detection` says of these classes.

    `auto` shows it where class 1 is named as an attack, or class 0 as bona fide and class 1 as nothing of the two: live
    and cosmetic, normal and spoof. `real` and `original` alone are not enough, as many things are. Class 1 counts as
    the attack in every metric: where the names say it the other way round, that is the reason to leave it out.
    """
    key = "evaluation.attack_detection"
    if len(class_names) != 2:
        return AttackDetection(False, f"attack detection needs two classes; there are {len(class_names)}.")
    negative, positive = class_names
    if mode != "auto":
        return AttackDetection(mode == "always", f"{key} is {mode!r}.")
    if is_attack(negative) or (is_bona_fide(positive) and not is_bona_fide(negative)):
        order = f"--config.data.labels=\"('{positive}','{negative}')\""
        reason = f"class 0, {negative!r}, is the attack by its name, and class 1 is taken for it: train with {order}."
        return AttackDetection(False, reason) if not is_attack(positive) else _unnamed(key)
    certain = is_attack(positive) or (is_bona_fide(negative) and _squeezed(negative) not in ("real", "original"))
    return AttackDetection(True, f"{positive!r} against {negative!r}, by their names.") if certain else _unnamed(key)


def _unnamed(key: str) -> AttackDetection:
    return AttackDetection(False, f"no class is named as an attack ({key}='always' shows it all the same).")


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_bona_fide(name: str) -> bool:
    """Whether a class is named as a bona fide presentation, by `BONA_FIDE`."""
    return _squeezed(name) in BONA_FIDE


def is_attack(name: str) -> bool:
    """Whether a class is named as an attack, by `ATTACKS`."""
    return any(word in _squeezed(name) for word in ATTACKS)
