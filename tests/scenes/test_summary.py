"""What is typical of many texts, and what they mention."""

from modeling_rsmoe.scenes.summary import mentioned_nouns, most_typical


def test_the_typical_text_shares_the_most_words() -> None:
    texts = ["a river", "many green trees in a forest", "green trees in a forest", "a plane on the runway"]
    assert most_typical(texts) == "green trees in a forest"
    assert most_typical(["", ""]) == "" and most_typical(["one"]) == "one"


def test_nouns_and_the_share_of_captions_with_them() -> None:
    captions = ["Many trees are in a forest.", "A forest and a river.", "Forests, forests!", "Nothing of note."]
    found = mentioned_nouns(captions)
    assert list(found.items()) == [("forest", 0.75), ("tree", 0.25), ("river", 0.25)]
