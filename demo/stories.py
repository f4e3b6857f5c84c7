"""Short stories from a small grammar: free text, with accents and emoji, for variety.

Owns the grammar. Knows nothing of tasks or splits.
"""

from __future__ import annotations

from random import Random

HEROES = {
    "fox": "🦊",
    "frog": "🐸",
    "cat": "🐱",
    "dog": "🐶",
    "bear": "🐻",
    "owl": "🦉",
    "rabbit": "🐰",
    "mouse": "🐭",
    "horse": "🐴",
    "turtle": "🐢",
    "whale": "🐳",
    "dragon": "🐉",
}
NAMES = ("Zoë", "René", "Mia", "Max", "Lily", "Søren", "Anna", "Toño", "Ruby", "Jürgen", "Sam")
PLACES = (
    "in a green forest",
    "by the sea",
    "on a high hill",
    "in a small café",
    "near a quiet lake",
    "in an old castle",
    "under a big tree",
    "at the end of a long road",
)
MOODS = ("little", "brave", "happy", "sleepy", "clever", "shy", "hungry", "kind")
FINDS = (
    ("a golden key", "opened an old door"),
    ("a red balloon", "flew over the town"),
    ("a lost puppy", "took it home"),
    ("a map of stars", "found the way north"),
    ("a piece of crème brûlée", "shared it with everyone"),
    ("a broken kite", "fixed it with a ribbon"),
    ("a small boat", "sailed to an island"),
    ("a warm coat", "gave it to a friend"),
)
WEATHERS = ("One sunny morning", "One rainy day", "On a cold night", "After the storm")
ENDINGS = (
    "Everyone was happy.",
    "It was a very good day.",
    "Then it was time to sleep. 🌙",
    "They laughed and danced until dark. 🎉",
    "From then on they were best friends. 💛",
)


def story(rng: Random, hero: str) -> str:
    """A story of four or five sentences about ``hero``, one of HEROES."""
    name, find = rng.choice(NAMES), rng.choice(FINDS)
    sentences = [
        f"Once there was a {rng.choice(MOODS)} {hero} called {name}. {HEROES[hero]}",
        f"{name} lived {rng.choice(PLACES)}.",
        f"{rng.choice(WEATHERS)}, {name} found {find[0]} and {find[1]}.",
        rng.choice(ENDINGS),
    ]
    return " ".join(sentences)
