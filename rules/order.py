"""The order of rules: put some rules into a new order, and find the rules that moved."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher


def arranged[One: Hashable](now: Sequence[One], chosen: Sequence[One]) -> list[One]:
    """Return `now` with the items of `chosen` in the order of `chosen`: "abc" becomes "cba" if `chosen` is "ca".

    The items of `chosen` fill, in order, the positions at which `now` has items of `chosen`. All other items keep
    their positions. Items of `chosen` that are left over come at the end.
    """
    ours, queue = {*chosen}, iter(chosen)
    return [next(queue) if one in ours else one for one in now] + [*queue]


def moved[One: Hashable](before: Sequence[One], after: Sequence[One]) -> dict[One, tuple[int, int]]:
    """Return the items that move, each with its positions before and after. The first position is 1.

    Items that only make room for others are not returned.
    """
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    stay = {one for block in blocks for one in after[block.b : block.b + block.size]}
    return {one: (before.index(one) + 1, place) for place, one in enumerate(after, 1) if one not in stay}
