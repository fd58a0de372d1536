from collections import Counter

from course_utils.worlds import sentences


def test_fifty_different_sentences_of_each_topic() -> None:
    texts, topics = sentences.load()
    assert Counter(topics) == dict.fromkeys(sentences.TOPICS, 50)
    assert len({text.lower() for text in texts}) == len(texts)
    for text in texts:
        assert text == text.strip()
        assert text.isascii()
        assert 3 <= len(text.split()) <= 12, text
