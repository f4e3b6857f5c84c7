"""Questions that are answered by calling a tool: what tools there are, how they are asked for.

Owns the tools' names and parameters, of which each kind has several, so that a call is copied from
what the prompt shows and not remembered. Results are the tools' own: the answer repeats them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

from demo.chat import Call, Tool
from demo.fact import Fact, make_fact, sum_step
from demo.stories import NAMES
from demo.tables import FACT_TABLES, WORDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Tools that do one thing.

    ``names`` and ``parameters`` are the forms in which it comes, ``ask`` draws a question for one
    of them, ``covers`` are tasks whose questions it would answer.
    """

    names: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    types: tuple[str, ...]
    ask: Callable[[Random, Tool], Fact]
    covers: frozenset[str] = frozenset()

    def draw(self, rng: Random) -> Tool:
        """One form of it."""
        parameters = zip(rng.choice(self.parameters), self.types, strict=True)
        return Tool(rng.choice(self.names), tuple(parameters))


def _number(rng: Random) -> int:
    return rng.randrange(10 ** rng.randint(1, 4))


def _fact(tool: Tool, values: tuple[str | int, ...], result: str, *phrasings: str) -> Fact:
    key = "|".join(map(str, values))
    rounds = ((_call(tool, values, result),),)
    return dataclasses.replace(make_fact(key, result, *phrasings), rounds=rounds)


def _call(tool: Tool, values: tuple[str | int, ...], result: str) -> Call:
    names = [name for name, _ in tool.parameters]
    return Call(tool.name, dict(zip(names, values, strict=True)), result)


_SIGNS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _result(a: int, sign: str, b: int) -> str:
    if sign == "/":
        return f"{a / b:.6g}" if b else "division by zero"
    return str({"+": a + b, "-": a - b, "*": a * b}[sign])


def _steps(a: int, sign: str, b: int) -> tuple[tuple[str, str], ...]:
    return (sum_step(a, sign, b),) if sign in "+-" else ()


def _calculate(rng: Random, tool: Tool) -> Fact:
    a, b, c = (_number(rng) for _ in range(3))
    sign, other = rng.choice("+-*/"), rng.choice("+-")
    terms, words, result = f"{a} {sign} {b}", f"{a} {_SIGNS[sign]} {b}", _result(a, sign, b)
    if rng.random() < 0.2 and sign in "+-":
        terms, words = f"{terms} {other} {c}", f"{words} {_SIGNS[other]} {c}"
        result = _result(int(result), other, c)
    fact = _fact(
        tool,
        (terms,),
        result,
        f"What is {terms}?",
        f"Calculate {terms}.",
        f"How much is {words}?",
        f"What is {words}?",
        f"{terms} =",
    )
    return dataclasses.replace(fact, steps=_steps(a, sign, b))


def _of_two(sign: str, *verbs: str) -> Callable[[Random, Tool], Fact]:
    """Asks a tool of two numbers."""

    def ask(rng: Random, tool: Tool) -> Fact:
        a, b = _number(rng), _number(rng)
        fact = _fact(
            tool,
            (a, b),
            _result(a, sign, b),
            f"What is {a} {sign} {b}?",
            f"How much is {a} {_SIGNS[sign]} {b}?",
            *(verb.format(a=a, b=b) for verb in verbs),
        )
        return dataclasses.replace(fact, steps=_steps(a, sign, b))

    return ask


def _look_up(rng: Random, tool: Tool) -> Fact:
    """The tool gives anything: what it says counts, not what was learnt."""
    table = rng.choice(FACT_TABLES)
    is_known = rng.random() < 0.6
    subject = rng.choice(list(table.rows) if is_known else WORDS)
    answer = rng.choice(list(table.rows.values()) if rng.random() < 0.6 else WORDS)
    phrasings = (phrasing.format(x=subject) for phrasing in table.phrasings)
    return _fact(tool, (table.name, subject), answer, *phrasings)


_CITIES = tuple(next(table for table in FACT_TABLES if table.name == "capital").rows.values())
_SKIES = ("sunny", "cloudy", "rainy", "windy", "cold", "hot", "foggy", "snow", "storm", "clear")


def _city(rng: Random) -> str:
    return rng.choice(_CITIES) if rng.random() < 0.6 else rng.choice(WORDS).capitalize()


def _weather(rng: Random, tool: Tool) -> Fact:
    city, sky = _city(rng), rng.choice(_SKIES)
    degrees = rng.randint(-10, 40)
    forms = (sky, f"{sky}, {degrees} degrees", str(degrees), f"{degrees} C")
    return _fact(
        tool,
        (city,),
        rng.choice(forms),
        f"What is the weather in {city}?",
        f"How is the weather in {city}?",
        f"Tell me the weather in {city}.",
        f"What's the weather in {city}?",
        f"What is the weather like in {city}?",
    )


def _time(rng: Random, tool: Tool) -> Fact:
    city = _city(rng)
    return _fact(
        tool,
        (city,),
        f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
        f"What time is it in {city}?",
        f"Tell me the time in {city}.",
        f"What is the time in {city}?",
    )


def _send(rng: Random, tool: Tool) -> Fact:
    name, text = rng.choice(NAMES), " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
    return _fact(
        tool,
        (name, text),
        rng.choice(("sent", "ok", "done")),
        f'Send "{text}" to {name}.',
        f'Write "{text}" to {name}.',
        f'Tell {name} "{text}".',
    )


_SUMS = frozenset({"addition", "subtraction", "multiplication", "chain", "sum_parity"})
_NUMBERS = ("integer", "integer")
_PAIRS = (("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"))
KINDS: dict[str, Kind] = {
    "calculator": Kind(
        names=("calculator", "calculate", "calc", "compute", "evaluate", "math"),
        parameters=(("expression",), ("expr",), ("formula",), ("input",), ("query",)),
        types=("string",),
        ask=_calculate,
        covers=_SUMS,
    ),
    "add": Kind(
        names=("add", "plus", "sum", "add_numbers"),
        parameters=_PAIRS,
        types=_NUMBERS,
        ask=_of_two("+", "Add {a} and {b}.", "What is the sum of {a} and {b}?"),
        covers=_SUMS,
    ),
    "multiply": Kind(
        names=("multiply", "times", "product", "multiply_numbers", "mul"),
        parameters=_PAIRS,
        types=_NUMBERS,
        ask=_of_two("*", "Multiply {a} by {b}.", "What is the product of {a} and {b}?"),
        covers=_SUMS,
    ),
    "lookup": Kind(
        names=("lookup", "look_up", "find_fact", "search_facts", "get_fact"),
        parameters=(("table", "key"), ("topic", "item"), ("relation", "subject"), ("of", "name")),
        types=("string", "string"),
        ask=_look_up,
        covers=frozenset({"facts", "json_fact"}),
    ),
    "weather": Kind(
        names=("get_weather", "weather", "get_current_weather", "fetch_weather", "forecast"),
        parameters=(("city",), ("location",), ("place",), ("town",)),
        types=("string",),
        ask=_weather,
    ),
    "time": Kind(
        names=("get_time", "time", "clock", "current_time", "what_time"),
        parameters=(("city",), ("zone",), ("place",), ("location",)),
        types=("string",),
        ask=_time,
    ),
    "send": Kind(
        names=("send_message", "send", "send_mail", "tell", "message"),
        parameters=(("to", "text"), ("name", "message"), ("recipient", "body"), ("who", "what")),
        types=("string", "string"),
        ask=_send,
    ),
}
# Of which one conversation has one at most.
_EXCLUSIVE = ({"calculator", "add"}, {"calculator", "multiply"})


def toolbox(rng: Random, *kinds: str, count: int = 3) -> dict[str, Tool]:
    """Tools of ``kinds``, and of others up to ``count`` at most, in any order, by kind."""
    chosen = list(kinds)
    wanted = rng.randint(len(kinds), max(count, len(kinds)))
    for kind in rng.sample(list(KINDS), len(KINDS)):
        fits = kind not in chosen and not any(
            kind in pair and pair & set(chosen) for pair in _EXCLUSIVE
        )
        if len(chosen) < wanted and fits:
            chosen.append(kind)
    rng.shuffle(chosen)
    return {kind: KINDS[kind].draw(rng) for kind in chosen}


def unhelpful(rng: Random, task: str, *, least: int) -> dict[str, Tool]:
    """At least so many tools, none of which would answer a question of ``task``."""
    while True:
        tools = toolbox(rng)
        if len(tools) >= least and task not in covered(set(tools)):
            return tools


def covered(kinds: set[str]) -> frozenset[str]:
    """Tasks whose questions tools of these kinds would answer."""
    return frozenset().union(*(KINDS[kind].covers for kind in kinds))


def _calls(*kinds: str) -> Callable[[Random], Fact]:
    """Draws a question for a tool of one of ``kinds``, among others."""

    def draw(rng: Random) -> Fact:
        kind = rng.choice(kinds)
        tools = toolbox(rng, kind)
        return dataclasses.replace(KINDS[kind].ask(rng, tools[kind]), tools=tools)

    return draw


calculation = _calls("calculator")
of_two_numbers = _calls("add", "multiply")
look_up = _calls("lookup")
errand = _calls("weather", "time", "send")


def two_calls(rng: Random) -> Fact:
    """Two questions to one tool in a sentence: two calls at once."""
    tools = toolbox(rng, "calculator", count=2)
    tool = tools["calculator"]
    pair = [_calculate(rng, tool) for _ in range(2)]
    calls = tuple(fact.rounds[0][0] for fact in pair)
    first, second = (str(call.arguments[tool.parameters[0][0]]) for call in calls)
    results = " and ".join(call.result for call in calls)
    fact = make_fact(
        f"{first}|{second}",
        results,
        f"What is {first} and {second}?",
        f"Calculate {first} and {second}.",
        f"How much is {first}, and how much is {second}?",
    )
    steps = tuple(step for each in pair for step in each.steps)
    return dataclasses.replace(fact, rounds=(calls,), tools=tools, steps=steps)


def two_rounds(rng: Random) -> Fact:
    """A sum that is multiplied, or a product that is added to: the second call takes what the first
    gave."""
    tools = toolbox(rng, "add", "multiply")
    first, second = rng.sample(("add", "multiply"), 2)
    a, b, c = rng.randrange(100), rng.randrange(100), rng.randrange(100)
    middle, last = (a + b, (a + b) * c) if first == "add" else (a * b, a * b + c)
    calls = (
        _call(tools[first], (a, b), str(middle)),
        _call(tools[second], (middle, c), str(last)),
    )
    verbs = {"add": f"add {c}", "multiply": f"multiply by {c}"}
    start = f"Add {a} and {b}" if first == "add" else f"Multiply {a} by {b}"
    sign, other = ("+", "*") if first == "add" else ("*", "+")
    fact = make_fact(
        f"{a}{sign}{b}{other}{c}",
        last,
        f"{start}, then {verbs[second]}.",
        f"{start} and {verbs[second]}.",
        f"What is ({a} {sign} {b}) {other} {c}?",
        f"Calculate ({a} {sign} {b}) {other} {c}.",
    )
    steps = (sum_step(a, "+", b),) if first == "add" else ()
    return dataclasses.replace(
        fact, rounds=tuple((call,) for call in calls), tools=tools, steps=steps
    )
