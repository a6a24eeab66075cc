"""Well-known facts and everyday words from which the demo corpus is made.

The facts are general knowledge, chosen where they are settled: countries with one capital and one
official currency for decades, works with one undisputed author. Nothing is copied from a data set.
"""

from __future__ import annotations

COUNTRIES: tuple[tuple[str, str, str], ...] = (
    # country, capital, currency
    ("Argentina", "Buenos Aires", "the peso"),
    ("Australia", "Canberra", "the dollar"),
    ("Austria", "Vienna", "the euro"),
    ("Bangladesh", "Dhaka", "the taka"),
    ("Brazil", "Brasília", "the real"),
    ("Canada", "Ottawa", "the dollar"),
    ("Chile", "Santiago", "the peso"),
    ("China", "Beijing", "the yuan"),
    ("Colombia", "Bogotá", "the peso"),
    ("Cuba", "Havana", "the peso"),
    ("Denmark", "Copenhagen", "the krone"),
    ("Egypt", "Cairo", "the pound"),
    ("Ethiopia", "Addis Ababa", "the birr"),
    ("Finland", "Helsinki", "the euro"),
    ("France", "Paris", "the euro"),
    ("Germany", "Berlin", "the euro"),
    ("Greece", "Athens", "the euro"),
    ("Hungary", "Budapest", "the forint"),
    ("Iceland", "Reykjavík", "the króna"),
    ("India", "New Delhi", "the rupee"),
    ("Iran", "Tehran", "the rial"),
    ("Iraq", "Baghdad", "the dinar"),
    ("Ireland", "Dublin", "the euro"),
    ("Italy", "Rome", "the euro"),
    ("Japan", "Tokyo", "the yen"),
    ("Jordan", "Amman", "the dinar"),
    ("Kenya", "Nairobi", "the shilling"),
    ("Mexico", "Mexico City", "the peso"),
    ("Morocco", "Rabat", "the dirham"),
    ("Nepal", "Kathmandu", "the rupee"),
    ("New Zealand", "Wellington", "the dollar"),
    ("Nigeria", "Abuja", "the naira"),
    ("Norway", "Oslo", "the krone"),
    ("Pakistan", "Islamabad", "the rupee"),
    ("Peru", "Lima", "the sol"),
    ("Poland", "Warsaw", "the zloty"),
    ("Portugal", "Lisbon", "the euro"),
    ("Romania", "Bucharest", "the leu"),
    ("Russia", "Moscow", "the ruble"),
    ("Saudi Arabia", "Riyadh", "the riyal"),
    ("South Korea", "Seoul", "the won"),
    ("Spain", "Madrid", "the euro"),
    ("Sweden", "Stockholm", "the krona"),
    ("Thailand", "Bangkok", "the baht"),
    ("Turkey", "Ankara", "the lira"),
    ("Ukraine", "Kyiv", "the hryvnia"),
    ("the United Kingdom", "London", "the pound"),
    ("the United States", "Washington", "the dollar"),
    ("Vietnam", "Hanoi", "the dong"),
)

LANDMARKS: tuple[tuple[str, str], ...] = (
    # landmark, country where it stands
    ("the Acropolis", "Greece"),
    ("the Alhambra", "Spain"),
    ("the Blue Mosque", "Turkey"),
    ("the Brandenburg Gate", "Germany"),
    ("the ancient city of Petra", "Jordan"),
    ("Chichen Itza", "Mexico"),
    ("the Colosseum", "Italy"),
    ("the Eiffel Tower", "France"),
    ("the Forbidden City", "China"),
    ("the Golden Gate Bridge", "the United States"),
    ("the Great Sphinx", "Egypt"),
    ("Machu Picchu", "Peru"),
    ("Mount Fuji", "Japan"),
    ("the statue of Christ the Redeemer", "Brazil"),
    ("the Sydney Opera House", "Australia"),
    ("the Taj Mahal", "India"),
    ("the Tower of London", "the United Kingdom"),
)

WORKS: tuple[tuple[str, str], ...] = (
    # what the person did, country of birth
    ("the author of Hamlet", "England"),
    ("the author of Don Quixote", "Spain"),
    ("the author of War and Peace", "Russia"),
    ("the author of Pride and Prejudice", "England"),
    ("the author of One Hundred Years of Solitude", "Colombia"),
    ("the author of Les Misérables", "France"),
    ("the author of Faust", "Germany"),
    ("the author of Pippi Longstocking", "Sweden"),
    ("the author of The Little Mermaid", "Denmark"),
    ("the author of Moby-Dick", "the United States"),
    ("the author of A Doll's House", "Norway"),
    ("the painter of Guernica", "Spain"),
    ("the painter of The Scream", "Norway"),
    ("the painter of The Starry Night", "the Netherlands"),
    ("the painter of the Mona Lisa", "Italy"),
    ("the composer of The Magic Flute", "Austria"),
    ("the composer of Swan Lake", "Russia"),
    ("the composer of the Moonlight Sonata", "Germany"),
    ("the composer of The Four Seasons", "Italy"),
    ("the physicist who proposed general relativity", "Germany"),
    ("the chemist who discovered radium", "Poland"),
    ("the biologist who wrote On the Origin of Species", "England"),
    ("the doctor who discovered penicillin", "Scotland"),
)

NAMES = (
    "Ada", "Ben", "Clara", "Dev", "Elif", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena",
    "Mina", "Nils", "Olga", "Paolo", "Rosa", "Sami", "Tara", "Yusuf",
)  # fmt: skip
THINGS = (
    "apples", "books", "buttons", "coins", "cards", "eggs", "marbles", "pencils", "pebbles",
    "shells", "stamps", "stickers", "tickets", "walnuts",
)  # fmt: skip
GAINS = (
    "{name} buys {n} more.", "{name} finds {n} more on the way home.",
    "A neighbour gives {name} {n} more.", "{name} receives {n} more in the post.",
)  # fmt: skip
LOSSES = (
    "{name} gives {n} to a friend.", "{name} sells {n} at the market.",
    "{name} loses {n} on the bus.", "{name} puts {n} aside for a cousin.",
)  # fmt: skip
PLACES = (
    "the old harbour", "a narrow valley", "the station square", "a quiet village",
    "the city library", "a windy hill", "the river bank", "the school garden", "a small bakery",
    "the night train",
)  # fmt: skip
TIMES = (
    "Early in the morning", "Late in the evening", "On the first day of spring",
    "After the long rain", "Before the shops open", "In the middle of winter",
    "During the summer holidays", "Shortly after noon",
)  # fmt: skip
SUBJECTS = (
    "the gardener", "an old fisherman", "the young teacher", "a group of children",
    "the postwoman", "two painters", "the carpenter", "a tired traveller", "the baker's daughter",
    "the night watchman",
)  # fmt: skip
ACTIONS = (
    "walked slowly past", "stopped for a moment beside", "looked back at", "waited quietly near",
    "drew a small picture of", "told a long story about", "found a warm seat close to",
    "heard music coming from",
)  # fmt: skip
DETAILS = (
    "The air smelled of bread and wet stone.", "Nobody seemed to be in a hurry.",
    "A dog slept under the table and did not move.", "The light changed from grey to gold.",
    "Somewhere a door closed, and then it was quiet again.",
    "The clock on the tower was wrong, as it always was.",
    "Snow lay on the roofs and softened every sound.", "Two boats turned slowly with the tide.",
    "A letter lay unopened on the chair.", "The last leaves hung on the branches like coins.",
)  # fmt: skip
ENDINGS = (
    "Later they remembered it as the best part of the week.",
    "It was a small thing, but it stayed in the mind for years.",
    "By the time the lamps were lit, everybody had gone home.",
    "Nothing else happened that day, and nothing else was needed.",
    "The next morning the place looked as if no one had ever been there.",
    "There was still time for a cup of tea before the journey back.",
)  # fmt: skip
