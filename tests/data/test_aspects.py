"""The split of captions into aspects, the router's target prompts, and the table that measures them."""

import json
from collections import Counter
from pathlib import Path
from runpy import run_path

import pytest

from modeling_rsmoe.data.aspects import ASPECTS, aspect_of, distinct, router_prompt, split_aspects
from modeling_rsmoe.data.cleaning import SPELLING, clean_caption, words
from modeling_rsmoe.data.lexicon import NOUNS
from modeling_rsmoe.data.nouns import mentions
from modeling_rsmoe.data.records import read_captions


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("sentence", "aspect"),
    [
        ("many planes are parked near the terminal in an airport .", "relation"),
        ("a playground is surrounded by some green trees .", "relation"),
        ("on either side of the white church are red buildings .", "relation"),
        ("many mobile homes are closed to each other in the mobile home park .", "relation"),
        ("many cars are parked in a parking lot .", "theme"),
        ("it is a piece of farmland .", "theme"),
        ("it is a straight runway with some mark lines on it .", "theme"),
        ("there are some mark lines on the straight runway .", "object"),
        ("the roof is white and there are two cars .", "object"),
        ("trees surround .", "object"),  # a spatial word, but one noun
        ("square houses with red roofs .", "object"),  # "square" is no place here
        ("look is green .", "object"),
        # What part of the image: "where", with one noun or none.
        ("In the upper left corner of the image, there is a pond.", "relation"),
        ("A pond can be seen in the bottom-right portion.", "relation"),
        ("Some of them are at the top of the picture.", "relation"),
        ("On the left, there is a pond.", "relation"),
        ("The top of the tower is red.", "object"),  # a part of a thing, not of the image
        # What kind of image.
        ("This is a grayscale remote sensing image.", "theme"),
        ("This is a high-resolution aerial image showing two cars.", "theme"),
        ("The image does not specify its resolution.", "theme"),
        ("There are two cars in the image.", "object"),
        # Counted areas are things; so is what stands in a scene that was named before.
        ("There are 4 tennis courts.", "object"),
        ("Both harbors have many ships.", "object"),
        ("A forest with some ponds.", "theme"),
        ("In the parking lot, there are many cars.", "object"),
        ("On the river, there are two boats.", "object"),
    ],
)
def test_aspect_of_one_sentence(sentence, aspect):
    assert aspect_of(sentence) == aspect


def test_every_distinct_sentence_stands_exactly_once():
    captions = [
        "It is a pond .",
        "it is  a pond",
        "a house is near a pond .",
        "two red cars .",
        "a house is near a pond .",
    ]
    split = split_aspects(captions)
    assert split == {
        "theme": ["It is a pond ."],
        "object": ["two red cars ."],
        "relation": ["a house is near a pond ."],
    }
    assert distinct(captions) == [captions[0], captions[2], captions[3]]
    split["theme"].append("changing the answer must not change the next one")
    assert split_aspects(captions)["theme"] == ["It is a pond ."]


@pytest.mark.parametrize(
    ("caption", "sentences", "prompt"),
    [
        (
            "It is. It was very so.",
            ["It is.", "It was very so."],
            "Which objects are there, and what do they look like?",
        ),
        ("word " * 1999 + "word.", ["word " * 1999 + "word."], "What does the word word word word look like?"),
        ("机场有很多飞机。", ["机场有很多飞机。"], None),
        ("", [], None),
    ],
)
def test_odd_texts_are_sentences_of_object(caption, sentences, prompt):
    assert split_aspects([caption]) == {"theme": [], "object": sentences, "relation": []}
    if prompt is not None:
        assert router_prompt("object", sentences) == prompt


def test_an_empty_aspect_takes_the_sentence_that_fits_best():
    split = split_aspects(
        ["a pond is near a house .", "many cars are near a house .", "this is a pond beside a road ."]
    )
    assert split == {
        "theme": ["a pond is near a house ."],
        "object": ["many cars are near a house ."],
        "relation": ["this is a pond beside a road ."],
    }


def test_counted_areas_are_the_theme_where_nothing_else_is():
    split = split_aspects(["there are two tennis courts .", "a car .", "a car is near a tree ."])
    assert split["theme"] == ["there are two tennis courts ."] and split["object"] == ["a car ."]


def test_an_aspect_is_never_emptied_for_another():
    assert split_aspects(["many cars are parked in a parking lot ."])["object"] == []
    two = split_aspects(["this is a forest .", "this is a dense forest ."])
    assert two == {"theme": ["this is a forest .", "this is a dense forest ."], "object": [], "relation": []}


@pytest.mark.parametrize(
    ("aspect", "sentences", "prompt"),
    [
        ("theme", ["planes are in an airport ."], "What kind of airport is this?"),
        ("theme", ["residential buildings ."], "What kind of residential area is this?"),
        ("theme", ["a river in a forest ."], "What kind of forest is this, and what is the river like?"),
        ("theme", ["look is green ."], "What kind of scene is this?"),
        ("object", ["two planes and a car ."], "What do the planes and the car look like, and how many are there?"),
        ("object", ["a church in a park ."], "What does the church look like?"),
        ("object", ["white snows ."], "What does the snow look like?"),
        ("object", ["a pond ."], "What does the pond look like?"),
        ("object", ["look is green ."], "Which objects are there, and what do they look like?"),
        ("relation", ["cars are beside cars ."], "Where are the cars relative to each other?"),
        ("relation", ["a bridge over it ."], "Where is the bridge in this image?"),
        (
            "relation",
            ["a plane near the airport terminal .", "a terminal, a plane, some cars and a road ."],
            "Where are the plane, the terminal and the cars relative to each other?",
        ),
        ("relation", ["look is green ."], "Where do the objects lie relative to each other?"),
    ],
)
def test_router_prompt(aspect, sentences, prompt):
    assert router_prompt(aspect, sentences) == prompt


def test_router_prompt_of_an_aspect_of_the_data():
    assert router_prompt("color", ["a red car ."]) == "Describe the color of the car."
    assert router_prompt("color", ["look is green ."]) == "Describe the color of this image."


def test_the_longest_noun_wins_and_every_spelling_is_one_noun():
    found = mentions(words("many storage tanks near the tanks of a baseball diamond"))
    assert [mention.text for mention in found] == ["storage tanks", "storage tanks", "baseball field"]
    assert len({noun.singular for noun, _ in NOUNS.values()}) > 150
    for form in NOUNS:
        assert words(" ".join(form)) == list(form), "a spelling that the word splitter changes is never found"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("many  trees ,and a raod . .", "Many trees, and a road."),
        ("the wide] .", "The wide."),
        ("a bareland(2 .", "A bareland."),
        ("two_tone land", "Two-tone land."),
        ("many color`s cars", "Many color's cars."),
        ("a few villa! .", "A few villa!"),
        ("10,000 cars .", "10,000 cars."),
        (" . ", ""),
    ],
)
def test_clean_caption(raw, clean):
    assert clean_caption(raw) == clean
    assert clean_caption(clean) == clean


def test_spelling_is_settled_in_one_step():
    assert not {word for right in SPELLING.values() for word in right.split()} & set(SPELLING)
    assert words("Semi_surounded TREES.") == ["semi", "surrounded", "trees"]


def test_the_table_counts(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    common = {"image": "a.png", "dataset": "RSICD", "split": "train"}
    several = ["it is a pond .", "a car .", "a house near a pond .", "a house beside a pond ."]
    with (tmp_path / "captions.jsonl").open("w") as file:
        for captions in (several, ["it is a pond ."] * 5):
            file.write(json.dumps({**common, "captions": captions}) + "\n")
    main = run_path(str((EXAMPLES / "measure_aspects").with_suffix(".py")))["main"]
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| RSICD | 2 | 5 | 40 / 20 / 40 | 100 / 50 / 50 | 50 | 1 / 1 / 1 | 100 |"
    assert lines[3].startswith("| RSICD, 3 or more distinct captions | 1 | 4 | 25 / 25 / 50 |")
    assert len(lines[0].split("|")) == len(lines[2].split("|"))
    assert main([str(tmp_path), "--split", "val"]) == 2
    assert "known: train" in capsys.readouterr().err


def test_agreement_counts_what_is_found(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    captions = ["It is a pond. A car near a pond.", "it is a pond .", "two cars ."]
    row = {"image": "a.png", "dataset": "RSICD", "split": "train", "captions": captions}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n")
    example = run_path(str((EXAMPLES / "aspect_agreement").with_suffix(".py")))
    shipped = example["read_labels"]()
    assert Counter(label.half for label in shipped) == {"tuning": 75, "held out": 75}
    assert {label.aspect for label in shipped} == set(ASPECTS) and len({label.dataset for label in shipped}) == 6
    rows = [
        ("tuning", "It is a pond", "theme"),
        ("tuning", "A car near a pond", "object"),
        ("held out", "Lost", "theme"),
    ]
    labels = [example["Label"]("RSICD", half, example["digest"](text), aspect) for half, text, aspect in rows]
    sentences = example["find_sentences"](labels, read_captions(tmp_path))
    lines = example["agreement_tables"](labels, sentences).splitlines()
    assert lines[2] == "| RSICD | 1 of 2 (50 %) |  | 1 of 2 (50 %) |"
    assert lines[8] == "| object | 0 | 0 | 1 |"
    assert lines[-1] == "2 of 3 labelled sentences found."
    assert example["main"]([str(tmp_path)]) == 2
    assert "none of the labelled sentences" in capsys.readouterr().err


def test_aspects_are_the_experts():
    assert ASPECTS == ("theme", "object", "relation")
