"""Measure the processor time that rules add to a call, and the slowest decision that an attacker can cause.

The first table has the time that N conditions add to a call. For the column `one by one`, each condition is evaluated
by itself. For the column `together`, all conditions are evaluated at once, as in the gateway.

For the second table, slow conditions are evaluated with arguments that an attacker could send. Before the gateway
evaluates a condition, it estimates the longest time (proxy.access.expression_cost). The table compares the measured
time of each decision with this estimate.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from proxy.access.expression_cost import MOST_SECONDS
from proxy.access.expressions import activation, compiled, size_of
from proxy.access.rules import DecidingRule, RuledCall, decide_by_rules

FIELDS: dict[str, Any] = {
    **dict.fromkeys(("tool.server", "tool.title", "agent.name", "agent.kind", "person.email", "person.role"), "x"),
    **dict.fromkeys(("gateway.name", "gateway.slug", "client.name", "client.address", "now.date"), "x"),
    **dict.fromkeys(("now.hour", "now.minute", "now.weekday"), 1),
    **dict.fromkeys(("tool.read_only", "tool.destructive", "tool.open_world"), True),
    "tool.name": "a__echo",
    "person.teams": ["Operations"],
}
TEXT = 1 << 18
PATTERNS = (
    "(?i)(^|[^a-z])(prod|production|live)([^a-z]|$)",
    "[ab]*a[ab]{7}c",
    "[ab]*a[ab]{30}c",
    "[ab]*a[ab]{60}c",
    "(a|b)*a(a|b)(a|b)(a|b)(a|b)(a|b)c",
    "(a|b)*a(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)c",
    "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{12}",
    "a?" * 8 + "b",
    "a?" * 60 + "b",
    "(.*)" * 18 + "b",
    ".{50}x",
    "[^x]{60}x",
    r"\w*a\W{30}x",
)
CONDITIONS = (
    *(f"args.a.matches(r'{pattern}')" for pattern in PATTERNS),
    *(f"args.list.exists(each, each.matches(r'{pattern}'))" for pattern in PATTERNS[:2]),
    f"args.a.contains('{'a' * 1_500}b')",
    f"args.a.contains('{'a' * 150}b') || args.a.contains('{'a' * 90}b{'a' * 60}')",
    "['aaab', 'aab', 'aabaab', 'bbbbba', 'ababababc', 'x'].exists(word, args.a.contains(word))",
    "['aaab', 'aab', 'x'].exists(word, args.list.exists(each, each.contains(word)))",
    "args == {} || args.list == [] || size(args.a) == 3",
    "args.list.filter(each, each != 'x').size() == 3",
    "args.list.exists(each, args.a == 'x' || each == 'y')".replace("args.a", "'x'"),
    "args.list.all(a, ['x', 'y', 'z'].exists(b, a != b))",
    "duration(args.a) == duration('1s')",
    "double(args.a) == 1.0 || int(args.a) == 1 || string(args.a) == 'x'",
)


def hostile() -> Iterator[dict[str, Any]]:
    """Yield arguments, from small ones to the largest ones allowed."""
    draw = random.Random(1)
    for size in (1_000, 4_000, 16_000, 64_000, TEXT - 100):
        for letters in ("a", "ab", "1s", "0123456789abcdef", "\N{EURO SIGN}a", "prod-live"):
            length = size if letters.isascii() else size // 3
            text = "".join(draw.choices(letters, k=length)) if len(letters) > 1 else letters * length
            yield {"a": text, "list": []}
            for parts in (30, 300, 990):
                step = max(length // parts, 1)
                yield {"a": "", "list": [text[at : at + step] for at in range(0, step * parts, step)]}


def taken(act: Callable[[], Any], times: int = 1) -> float:
    """Return the seconds of processor time that `act` takes: the shortest of three measurements."""
    found = []
    for _ in range(3):
        began = time.thread_time()
        for _ in range(times):
            act()
        found.append((time.thread_time() - began) / times)
    return min(found)


def rule(when: str) -> DecidingRule:
    return DecidingRule("1", when, 1, "on", "refuse", "", when, (), "", ())


def compare(number: int) -> str:
    """Return a line about calls with this number of conditions."""
    whens = [f"args.text == 'rule {each}' && !('Operations' in person.teams)" for each in range(number)]
    chosen, call = [rule(when) for when in whens], RuledCall("s", FIELDS, {"text": "hello", "amount": 5})
    together = taken(lambda: decide_by_rules(chosen, call), 1_000)
    values = activation({**FIELDS, "args": call.arguments})
    alone = taken(lambda: [compiled(when).matches(values) for when in whens], 1_000)
    return f"{number:10}  {alone * 1e6:12.1f} us  {together * 1e6:12.1f} us"


def slowest() -> Iterator[tuple[float, float, str, str]]:
    """Yield each decision's time and estimated time in seconds, its condition, and a description of its arguments."""
    for arguments in hostile():
        call, size = RuledCall("s", FIELDS, arguments), size_of(arguments)
        for when in CONDITIONS:
            seconds = taken(lambda when=when, call=call: decide_by_rules([rule(when)], call))  # type: ignore[misc]
            yield seconds, compiled(when).cost.seconds(*size), when, f"{size} {arguments['a'][:9]}"


def main() -> None:
    print("conditions   one by one       together")
    for number in (1, 5, 20, 100):
        print(compare(number))
    found = sorted(slowest(), reverse=True)
    evaluated = [each for each in found if each[1] <= MOST_SECONDS]
    print(f"\n{len(found)} decisions, {len(found) - len(evaluated)} refused because of their estimate; the slowest:")
    for seconds, estimate, when, about in found[:8]:
        print(f"{seconds * 1e3:8.2f} ms, estimate {estimate * 1e3:9.2f} ms  {when[:60]}  {about}")
    print("the least pessimistic estimates:")
    for seconds, estimate, when, about in sorted(evaluated, key=lambda each: each[1] / each[0])[:8]:
        print(f"{seconds * 1e3:8.2f} ms, estimate {estimate * 1e3:9.2f} ms  {when[:60]}  {about}")


if __name__ == "__main__":
    main()
