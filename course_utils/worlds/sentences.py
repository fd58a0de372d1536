"""Short sentences about animals, food and weather, written for the course."""

import csv

from course_utils.files import DATA

FILE = DATA / "sentences.csv"
TOPICS = ("animals", "food", "weather")


def load() -> tuple[list[str], list[str]]:
    """The 150 sentences and their topics, 50 of each of `TOPICS`."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["sentence"] for row in rows], [row["topic"] for row in rows]
