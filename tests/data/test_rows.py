"""Training rows: their texts, their shares, and that an epoch depends on seed and number only."""

from collections import Counter
from pathlib import Path

import pytest

from modeling_rsmoe.data.aspects import ASPECTS, router_prompt, split_aspects
from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.data.rows import (
    OTHER_INSTRUCTIONS,
    QUESTION_PARTS_SHARE,
    SIMILAR_SHARE,
    Row,
    stage1_rows,
    stage2_rows,
)
from modeling_rsmoe.data.text import clean_caption
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.prompting_rsmoe import ANSWER_SUFFIX, DEFAULT_INSTRUCTION, Prompt, question_instruction


FIXED = {name: f"fixed prompt of {name}?" for name in ASPECTS}


def caption_record(name: str, *captions: str) -> CaptionRecord:
    return CaptionRecord(Path("/images") / name, "RSICD", "train", captions)


SEVERAL = [
    caption_record(
        f"several_{place}",
        f"it is a pond {place} .",
        f"{place} red cars .",
        f"a house is near road {place} .",
        f"a green forest {place} .",
    )
    for place in range(40)
]
SINGLE = [caption_record(f"single_{place}", *[f"it is a desert {place} ."] * 5) for place in range(40)]
RECORDS = SEVERAL + SINGLE
BY_IMAGE = {record.image: record for record in RECORDS}
QUESTIONS = [
    QuestionRecord(Path(f"/images/q_{place}"), "RSVQA-LR", "train", f"Is road {place} near a river", "presence", "yes")
    for place in range(20)
]


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.kind == kind]


def parts_of(row: Row) -> dict[str, str]:
    """The parts that a fusion's prompt holds, checked against the prompt that generation would make of them."""
    instruction, *lines = row.prompt.split("\n")
    parts = {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}
    assert instruction in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS)
    assert row.prompt == Prompt.rewrite(instruction, parts).text
    assert list(parts) == list(ASPECTS)
    return {name: text for name, text in parts.items() if text}


def test_answer_prompt():
    assert question_instruction("Is it a river") == f"Is it a river? {ANSWER_SUFFIX}"
    assert question_instruction(" Count the\nroads. ") == f"Count the roads. {ANSWER_SUFFIX}"


@pytest.mark.parametrize("make", [stage1_rows, lambda *args, **kwargs: stage2_rows(*args[:2], FIXED, **kwargs)])
def test_an_epoch_depends_on_seed_and_number_only(make):
    first = make(RECORDS, QUESTIONS, seed=3, epoch=1)
    assert first == make(RECORDS, QUESTIONS, seed=3, epoch=1)
    assert first != make(RECORDS, QUESTIONS, seed=3, epoch=2)
    assert first != make(RECORDS, QUESTIONS, seed=4, epoch=1)
    assert [row.kind for row in first] != sorted(row.kind for row in first)


def test_stage1_shares_and_texts():
    rows = stage1_rows(RECORDS, QUESTIONS, seed=0, mix={"caption": 2, "answer": 1, "rewrite": 1})
    assert Counter(row.kind for row in rows) == {"caption": 80, "answer": 40, "rewrite": 40}
    assert all(row.expert is None for row in rows)
    captions = of_kind(rows, "caption")
    assert Counter(row.image for row in captions) == Counter(list(BY_IMAGE))
    assert {row.prompt for row in captions} <= {DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS}
    assert 40 < sum(row.prompt == DEFAULT_INSTRUCTION for row in captions) < 72
    for row in captions:
        (completion,) = row.completions
        assert completion in [clean_caption(text) for text in BY_IMAGE[row.image].captions]
    assert Counter(row.image for row in of_kind(rows, "answer")) == {question.image: 2 for question in QUESTIONS}
    assert {row.completions for row in of_kind(rows, "answer")} == {("yes",)}


def test_some_answers_are_asked_with_parts():
    """Parts of the image's own captions where it has some; the answer stays the question's."""
    asked = QuestionRecord(SEVERAL[0].image, "RSIVQA", "train", "Is there a pond?", "presence", "yes")
    rows = stage1_rows(RECORDS, [asked], seed=0, count=400, mix={"answer": 1})
    with_parts = [row for row in rows if "\n" in row.prompt]
    assert len(with_parts) == pytest.approx(400 * QUESTION_PARTS_SHARE, rel=0.2)
    own = {clean_caption(text) for text in SEVERAL[0].captions}
    said = Counter(line.partition(": ")[2] in own for row in with_parts for line in row.prompt.split("\n")[1:])
    assert said[True] > 2 * said[False] > 0
    assert {row.completions for row in rows} == {("yes",)}
    bare = stage1_rows([], [asked], seed=0, count=20, mix={"answer": 1})
    assert {row.prompt for row in bare} == {question_instruction("Is there a pond?")}


def test_a_composition_never_holds_its_target_and_is_not_always_true():
    rows = stage1_rows(RECORDS, [], seed=0, count=400, mix={"rewrite": 1})
    own = strange = missing = 0
    for row in rows:
        parts = parts_of(row)
        references = [clean_caption(text) for text in BY_IMAGE[row.image].captions]
        (completion,) = row.completions
        assert completion in references
        assert completion not in parts.values()
        if row.image.name.startswith("several"):
            own += sum(part in references for part in parts.values())
            strange += sum(part not in references for part in parts.values())
            missing += len(ASPECTS) - len(parts)
    single = [row for row in rows if row.image.name.startswith("single")]
    assert len(single) == round(400 * 0.15 / (0.15 + 0.5))  # no image here has two or three distinct captions
    assert own > 500
    assert 30 < strange < 140
    assert missing > strange


def test_compositions_prefer_images_with_a_reference_for_every_part():
    some = [caption_record(f"some_{place}", f"pond {place} .", f"two cars {place} .") for place in range(40)]
    rows = stage1_rows(RECORDS + some, [], seed=0, count=400, mix={"rewrite": 1})
    counted = Counter(row.image.name.split("_")[0] for row in rows)
    assert counted == {"single": 60, "some": 140, "several": 200}


def test_a_composition_of_one_caption_is_noise_only():
    rows = stage1_rows(SINGLE[:1], [], seed=0, count=20, mix={"rewrite": 1})
    assert [parts_of(row) for row in rows] == [{}] * 20


def test_all_references_of_an_image_at_once():
    """As often as they stand there; a row with fewer takes all."""
    rows = stage1_rows(RECORDS, [], seed=0, mix={"caption": 1}, references=9)
    for row in rows:
        assert Counter(row.completions) == Counter(clean_caption(text) for text in BY_IMAGE[row.image].captions)
    rows = stage2_rows(RECORDS, [], FIXED, seed=0, mix={"expert": 1}, references=2)
    for row in rows:
        sentences = split_aspects(BY_IMAGE[row.image].captions)[str(row.expert)]
        assert len(row.completions) == min(2, len(sentences))


def test_parts_of_similar_images():
    similar = {record.image: [other for other in SEVERAL if other != record][:3] for record in RECORDS}
    rows = stage1_rows(RECORDS, [], seed=0, count=200, mix={"rewrite": 1}, references=2, similar=similar)
    doubted = [row for row in rows if len(row.completions) > 1]
    assert len(doubted) == round(200 * SIMILAR_SHARE)
    for row in doubted:
        theirs = {clean_caption(text) for other in similar[row.image] for text in other.captions}
        assert len(parts_of(row)) == len(ASPECTS) and set(parts_of(row).values()) <= theirs


def test_epochs_go_through_the_records_evenly():
    seen: Counter[Path] = Counter()
    for epoch in range(4):
        seen.update(row.image for row in stage1_rows(SINGLE, [], 0, epoch, count=30, mix={"caption": 1}))
    assert set(seen.values()) == {3}
    assert len(seen) == len(SINGLE)


def test_stage2_rows():
    rows = stage2_rows(RECORDS, QUESTIONS, FIXED, seed=0, count=1200, mix={"router": 1, "expert": 1})
    assert Counter((row.kind, row.expert) for row in rows) == {
        (kind, name): 200 for kind in ("router", "expert") for name in ASPECTS
    }
    questions = {question.image: question for question in QUESTIONS}
    asked = [row for row in rows if row.image in questions]
    assert len(asked) == 90  # 15 percent of 600
    for row in rows:
        assert row.expert is not None
        if row.image in questions:
            question = questions[row.image].question
            assert row.prompt == f"<router> {row.expert}: {question_instruction(question)}"
            assert row.completions == (router_prompt(row.expert, [question]),)
            continue
        sentences = split_aspects(BY_IMAGE[row.image].captions)[row.expert]
        assert sentences, "an image without an aspect has no row for it"
        if row.kind == "router":
            start, instruction = row.prompt.split(": ", 1)
            assert start == f"<router> {row.expert}"
            assert instruction in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS)
            assert row.completions == (router_prompt(row.expert, sentences),)
        else:
            (completion,) = row.completions
            assert completion in [clean_caption(text) for text in sentences]
    experts = of_kind(rows, "expert")
    fixed = sum(row.prompt == f"<{row.expert}> {FIXED[str(row.expert)]}" for row in experts)
    instructed = sum(row.prompt.split("> ", 1)[1] in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS) for row in experts)
    assert 100 < fixed < 200
    assert 30 < instructed < 100


def test_stage2_of_one_expert_without_questions():
    rows = stage2_rows(RECORDS, [], {"theme": "?"}, seed=0)
    assert {row.expert for row in rows} == {"theme"}
    assert len(of_kind(rows, "expert")) == len(RECORDS)  # each image here has a theme


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage1_rows(RECORDS, [], 0), 'no record for "answer" rows'),
        (lambda: stage1_rows(RECORDS, [], 0, mix={"router": 1}), 'unknown kind of row "router"; known: caption'),
        (lambda: stage1_rows(RECORDS, [], 0, mix={"caption": -1}), 'share of "caption" rows is -1'),
        (lambda: stage1_rows(RECORDS, [], 0, mix={"caption": float("nan")}), 'share of "caption" rows is nan'),
        (lambda: stage1_rows(RECORDS, [], 0, mix={"caption": 0}), "no kind of row has a share"),
        (lambda: stage2_rows(RECORDS, [], {"color": "?"}, 0), r"experts \['color'\] have no training sentences"),
        (lambda: stage2_rows(RECORDS, [], {}, 0), "experts none have no training sentences"),
        (lambda: stage2_rows(RECORDS, QUESTIONS, FIXED, 0, question_share=2), "question_share is 2"),
        (lambda: stage2_rows(SINGLE, [], FIXED, 0, count=30), 'no record for "router object" rows'),
    ],
)
def test_what_cannot_be_drawn_is_named(make, message):
    with pytest.raises(RSMoEError, match=message):
        make()
