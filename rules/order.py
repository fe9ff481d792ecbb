"""The order of rules: a new order for some of them, and the fewest that move."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher


def arranged[One: Hashable](now: Sequence[One], chosen: Sequence[One]) -> list[One]:
    """Return `now` with the chosen in their order, in the places that they have between them; new ones come last."""
    ours, queue = {*chosen}, iter(chosen)
    return [next(queue) if one in ours else one for one in now] + [*queue]


def moved[One: Hashable](before: Sequence[One], after: Sequence[One]) -> dict[One, tuple[int, int]]:
    """Return the place before and after, from 1, of each that moves; those that only make room are left out."""
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    stay = {one for block in blocks for one in after[block.b : block.b + block.size]}
    return {one: (before.index(one) + 1, place) for place, one in enumerate(after, 1) if one not in stay}
