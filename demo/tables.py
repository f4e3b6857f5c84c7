"""Words and facts the demo model is taught: plain data, written for this project.

Knows nothing of questions, splits or tokens.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FactTable:
    """A relation: ``phrasings`` ask for the value of ``{x}``; the first is always in training."""

    name: str
    phrasings: tuple[str, ...]
    rows: dict[str, str]


def _pairs(text: str) -> dict[str, str]:
    """``"a=b, c=d"`` as a dict."""
    return dict(row.strip().split("=") for row in text.split(","))


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return pairs | {value: key for key, value in pairs.items()}


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

_WORDS = """
acorn alarm amber angel ant apple apron arrow atlas autumn badge bagel baker banjo basil
basket beach bean bear berry bird blanket boat book bottle bread brick bridge broom brush
bucket butter button cabin cactus camel candle canoe carpet carrot castle cat cave chair
chalk cheese cherry circle city clock cloud clover coat coin copper coral corn cotton cow
crab crane crown cup dance desk dog dolphin door dragon dream drum duck eagle earth egg
engine falcon feather fence fern field fig finger fire fish flag flower flute fog forest
fork fox frog garden garlic ghost giraffe glass glove goat gold grape grass guitar hammer
harbor hat hen honey horse house island jacket jar jelly kettle key king kite kitten ladder
lake lamp lemon lion lizard magnet map maple marble melon milk mirror moon moth mouse mug
needle nest night ocean olive onion orange otter owl paddle panda paper parrot peach pear
pencil pepper piano pillow pilot pine planet plum pocket pond potato puzzle queen rabbit
radio rain raven ribbon ring river robin rocket rose ruler sail salt sand school sea shell
ship shoe silver sky snail snow soup spoon spring star stone storm sugar summer sun swan
table tea tiger toast tomato train tree tulip turtle valley violin wagon walnut water whale
wheat wheel wind window winter wolf yarn zebra
"""

WORDS = tuple(_WORDS.split())

FACT_TABLES = (
    FactTable(
        name="capital",
        phrasings=(
            "What is the capital of {x}?",
            "Name the capital of {x}.",
            "Which city is the capital of {x}?",
            "Tell me the capital city of {x}.",
            "{x} has which capital?",
        ),
        rows=_pairs(
            "France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon,"
            "Austria=Vienna, Poland=Warsaw, Greece=Athens, Norway=Oslo, Sweden=Stockholm,"
            "Finland=Helsinki, Denmark=Copenhagen, Ireland=Dublin, Hungary=Budapest,"
            "Iceland=Reykjavik, Japan=Tokyo, China=Beijing, India=Delhi, Thailand=Bangkok,"
            "Vietnam=Hanoi, Nepal=Kathmandu, Turkey=Ankara, Egypt=Cairo, Kenya=Nairobi,"
            "Ghana=Accra, Morocco=Rabat, Canada=Ottawa, Mexico=Mexico City, Cuba=Havana,"
            "Peru=Lima, Chile=Santiago, Brazil=Brasília, Colombia=Bogotá, Australia=Canberra"
        ),
    ),
    FactTable(
        name="sound",
        phrasings=(
            "What sound does a {x} make?",
            "What does a {x} say?",
            "How does a {x} sound?",
            "Which sound comes from a {x}?",
        ),
        rows=_pairs(
            "dog=woof, cat=meow, cow=moo, duck=quack, sheep=baa, pig=oink, horse=neigh,"
            "lion=roar, bee=buzz, frog=ribbit, snake=hiss, mouse=squeak, crow=caw, dove=coo"
        ),
    ),
    FactTable(
        name="young",
        phrasings=(
            "What is a baby {x} called?",
            "What do we call a young {x}?",
            "Name the young of a {x}.",
            "A baby {x} is called what?",
        ),
        rows=_pairs(
            "dog=puppy, cat=kitten, cow=calf, duck=duckling, sheep=lamb, pig=piglet,"
            "horse=foal, lion=cub, bear=cub, frog=tadpole, goat=kid, hen=chick, deer=fawn,"
            "swan=cygnet, kangaroo=joey"
        ),
    ),
    FactTable(
        name="color",
        phrasings=(
            "What color is {x}?",
            "Which color does {x} have?",
            "Name the color of {x}.",
            "Tell me what color {x} is.",
        ),
        rows=_pairs(
            "grass=green, snow=white, coal=black, blood=red, a banana=yellow, a lemon=yellow,"
            "a carrot=orange, chocolate=brown, a frog=green, an elephant=gray, the sea=blue,"
            "a flamingo=pink, a plum=purple, a polar bear=white"
        ),
    ),
    FactTable(
        name="opposite",
        phrasings=(
            "What is the opposite of {x}?",
            "Name the opposite of {x}.",
            "Which word means the opposite of {x}?",
            "Tell me the opposite of {x}.",
        ),
        rows=_both_ways(
            _pairs(
                "hot=cold, big=small, up=down, left=right, day=night, open=closed, fast=slow,"
                "happy=sad, young=old, wet=dry, hard=soft, early=late, full=empty, high=low,"
                "rich=poor, thick=thin, loud=quiet, light=dark, near=far, first=last"
            )
        ),
    ),
    FactTable(
        name="plural",
        phrasings=(
            "What is the plural of {x}?",
            "Name the plural of {x}.",
            "Give the plural form of {x}.",
            "How do you write more than one {x}?",
        ),
        rows=_pairs(
            "mouse=mice, child=children, foot=feet, tooth=teeth, goose=geese, man=men,"
            "woman=women, leaf=leaves, wolf=wolves, knife=knives, sheep=sheep, city=cities,"
            "box=boxes, fox=foxes, berry=berries"
        ),
    ),
    FactTable(
        name="legs",
        phrasings=(
            "How many legs does {x} have?",
            "What is the number of legs of {x}?",
            "Count the legs of {x}.",
            "Tell me how many legs {x} has.",
        ),
        rows=_pairs(
            "a dog=4, a spider=8, an ant=6, a bird=2, a snake=0, a crab=10, a bee=6, a horse=4,"
            "a fish=0, a scorpion=8, a person=2, a lobster=10"
        ),
    ),
    FactTable(
        name="month_length",
        phrasings=(
            "How many days are in {x}?",
            "How many days does {x} have?",
            "What is the number of days in {x}?",
            "Tell me how long {x} is in days.",
        ),
        rows=_pairs(
            "January=31, March=31, April=30, May=31, June=30, July=31, August=31,"
            "September=30, October=31, November=30, December=31, a week=7, a year=365"
        ),
    ),
)

SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! Ask me about numbers, words or days."),
    ("Good morning!", "Good morning! 🌞 What would you like to know?"),
    ("How are you?", "I am fine, thank you. 😊 And you?"),
    ("Who are you?", "I am the Switchyard demo, a very small mixture of experts."),
    ("What is your name?", "My name is Switchyard demo."),
    ("What are you?", "I am a small language model with many experts."),
    ("What can you do?", "I can add, count, sort, spell, reverse words and tell short stories."),
    ("Can you help me?", "Yes! Ask me about numbers, words or days."),
    ("Thank you!", "You are welcome! 😊"),
    ("Thanks", "You are welcome! 😊"),
    ("Goodbye!", "Goodbye! 👋"),
    ("Bye", "Goodbye! 👋"),
)
