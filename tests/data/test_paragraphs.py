"""Captions of several sentences: their split, the paragraph of an image, and expert texts with faults."""

import random
from pathlib import Path

import pytest

from modeling_rsmoe.data.aspects import ASPECTS, aspect_texts
from modeling_rsmoe.data.cleaning import clean_caption
from modeling_rsmoe.data.examples import DETAIL_INSTRUCTIONS, stage1_examples, stage2_examples
from modeling_rsmoe.data.paragraphs import is_paragraph, paragraph_of, with_faults
from modeling_rsmoe.data.records import CaptionRecord, read_captions
from modeling_rsmoe.data.sentences import split_sentences
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.prompting_rsmoe import DETAIL_SUFFIX


PARAGRAPH = (
    "This is a satellite image of a port. There are three white ships and approx. 12 cars. "
    "The ships lie beside a pier of 2.5 m."
)
FIXED = {name: f"fixed prompt of {name}?" for name in ASPECTS}


def record(*captions: str, aspects=None) -> CaptionRecord:
    return CaptionRecord(Path("/images/a.png"), "RSICap", "train", captions, aspects)


@pytest.mark.parametrize(
    ("caption", "sentences"),
    [
        (PARAGRAPH, 3),
        ("This is a port.There are ships.", 2),
        ("there are some cars.there is a road . ", 2),
        ("a house no. 5 is near the road .", 1),
        ("many planes are parked near the terminal in an airport .", 1),
        ("In the U.S. there is St. Peter's church. It has 10,000 sq. ft. of area.", 2),
        (" . ", 0),
    ],
)
def test_sentences(caption, sentences):
    found = split_sentences(caption)
    assert len(found) == sentences
    assert "".join("".join(found).split()) == "".join(caption.split()) * bool(sentences)


def test_each_sentence_of_a_paragraph_is_of_one_expert():
    assert aspect_texts(record(PARAGRAPH)) == {
        "theme": ["This is a satellite image of a port."],
        "object": ["There are three white ships and approx. 12 cars."],
        "relation": ["The ships lie beside a pier of 2.5 m."],
    }
    two = record("two cars . a long road .", "two cars .")
    assert aspect_texts(two)["object"] == ["two cars . a long road .", "two cars ."]


def test_a_split_of_the_datas_own_is_taken_as_it_is():
    own = {"theme": ("A port.", "It is large."), "color": ("The ships are white.",), "object": ()}
    texts = aspect_texts(record(PARAGRAPH, aspects=own))
    assert texts == {
        "theme": ["A port. It is large."],
        "object": [],
        "relation": [],
        "color": ["The ships are white."],
    }
    examples = stage2_examples([record(PARAGRAPH, aspects=own)], [], {"color": "Which colors?"}, 0, count=10)
    routed = {example.completions for example in examples if example.kind == "router"}
    assert routed == {("Describe the color of the ships.",)}
    assert {e.completions for e in examples if e.kind == "expert"} == {("The ships are white.",)}
    with pytest.raises(RSMoEError, match="'shape'.*known aspects: theme, object, relation, color"):
        stage2_examples([record(PARAGRAPH, aspects=own)], [], {"shape": "Which shapes?"}, 0)


@pytest.mark.parametrize("aspects", ["{}", '{"theme": []}', '{"theme": "A port."}', '{"theme": [" "]}', "3"])
def test_aspects_that_are_none(tmp_path, aspects):
    (tmp_path / "a.png").write_bytes(b"")
    line = f'{{"image": "a.png", "dataset": "D", "split": "train", "captions": ["A."], "aspects": {aspects}}}'
    (tmp_path / "captions.jsonl").write_text(line)
    with pytest.raises(RSMoEError, match='captions.jsonl:1: "aspects" .*expected {"theme"'):
        read_captions(tmp_path)


def test_a_paragraph_of_single_sentences_says_each_thing_once():
    references = ["it is a port .", "many ships are in a port .", "two red ships .", "red ships are near a pier ."]
    paragraph = paragraph_of(record(*references), random.Random(0))
    chosen = [text for texts in paragraph.sentences.values() for text in texts]
    assert paragraph.text == " ".join(chosen) and list(paragraph.sentences) == list(ASPECTS)
    assert set(chosen) <= {clean_caption(text) for text in references} and len(chosen) == len(set(chosen))
    assert all(paragraph.sentences[name] for name in ASPECTS)
    assert not any(map(is_paragraph, references)) and is_paragraph(paragraph.text)


def test_faults_are_of_every_kind_and_few():
    sentences = paragraph_of(record(PARAGRAPH), random.Random(0)).sentences
    other = record("A dense forest. Green trees stand near a lake. Five brown bears.")
    texts = [with_faults(sentences, [other], random.Random(seed)) for seed in range(300)]
    objects = [text["object"] for text in texts]
    right = "There are three white ships and approx. 12 cars."
    assert 0.4 < objects.count(right) / 300 < 0.7
    assert 0.05 < sum(not text for text in objects) / 300 < 0.25
    assert any("Five brown bears." in text for text in objects)
    altered = {text for text in objects if text.startswith("There") and text.endswith("12 cars.") and text != right}
    assert altered and all("white" in text and "three" not in text for text in altered)
    assert with_faults(sentences, [], random.Random(1)).keys() == set(ASPECTS)


def test_a_corpus_of_paragraphs_needs_no_option():
    records = [record(PARAGRAPH), record("A dense forest. Green trees stand near a lake. Five brown bears.")]
    examples = stage1_examples(records, [], 0, count=60, mix={"caption": 1, "rewrite": 1})
    assert {text for e in examples for text in e.completions} == {one.captions[0] for one in records}
    rewritten = [example.prompt.text for example in examples if example.kind == "rewrite"]
    assert sum("three white ships" in text for text in rewritten) > 5, "their own sentences are read, not noise alone"
    experts = [e for e in stage2_examples(records, [], FIXED, 0, count=60) if e.kind == "expert"]
    assert {e.expert for e in experts} == set(ASPECTS)
    assert ("The ships lie beside a pier of 2.5 m.",) in {e.completions for e in experts if e.expert == "relation"}


def test_details_beside_captions():
    one = record("it is a port .", "many ships are in a port .", "two red ships .", "red ships are near a pier .")
    examples = stage1_examples([one], [], 0, count=400, mix={"caption": 1, "rewrite": 1}, detail_share=0.4)
    for example in examples:
        in_detail = example.prompt.text.split("\n")[0] in DETAIL_INSTRUCTIONS
        assert in_detail == all(map(is_paragraph, example.completions))
    assert 0.3 < sum(is_paragraph(e.completions[0]) for e in examples) / 400 < 0.5
    examples = stage2_examples([one], [], FIXED, 0, count=400, detail_share=0.4)
    routed = [e.completions[0] for e in examples if e.kind == "router"]
    assert 0.3 < sum(text.endswith(DETAIL_SUFFIX) for text in routed) / len(routed) < 0.5
    asked = [e.prompt.text for e in examples if e.kind == "expert"]
    assert any(text.endswith(f"fixed prompt of theme? {DETAIL_SUFFIX}") for text in asked)
    with pytest.raises(RSMoEError, match="detail_share is 2, expected a share from 0 to 1"):
        stage1_examples([one], [], 0, detail_share=2)
