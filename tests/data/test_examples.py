"""Training examples: their texts, their shares, and that an epoch depends on seed and number only."""

from collections import Counter
from pathlib import Path

import pytest

from modeling_rsmoe.data.aspects import ASPECTS, router_prompt, split_aspects
from modeling_rsmoe.data.cleaning import clean_caption
from modeling_rsmoe.data.examples import (
    ANSWER_REWRITE_SHARE,
    OTHER_INSTRUCTIONS,
    SIMILAR_SHARE,
    Example,
    stage1_examples,
    stage2_examples,
)
from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
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


def of_kind(examples: list[Example], kind: str) -> list[Example]:
    return [example for example in examples if example.kind == kind]


def expert_texts_of(example: Example) -> dict[str, str]:
    """The texts that a fusion's prompt holds, checked against the prompt that generation would make of them."""
    instruction, *lines = example.prompt.text.split("\n")
    texts = {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}
    assert instruction in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS)
    assert example.prompt.text == Prompt.rewrite(instruction, texts).text
    assert list(texts) == list(ASPECTS)
    return {name: text for name, text in texts.items() if text}


def test_answer_prompt():
    assert question_instruction("Is it a river") == f"Is it a river? {ANSWER_SUFFIX}"
    assert question_instruction(" Count the\nroads. ") == f"Count the roads. {ANSWER_SUFFIX}"


@pytest.mark.parametrize(
    "make", [stage1_examples, lambda *args, **kwargs: stage2_examples(*args[:2], FIXED, **kwargs)]
)
def test_an_epoch_depends_on_seed_and_number_only(make):
    first = make(RECORDS, QUESTIONS, seed=3, epoch=1)
    assert first == make(RECORDS, QUESTIONS, seed=3, epoch=1)
    assert first != make(RECORDS, QUESTIONS, seed=3, epoch=2)
    assert first != make(RECORDS, QUESTIONS, seed=4, epoch=1)
    assert [example.kind for example in first] != sorted(example.kind for example in first)


def test_stage1_shares_and_texts():
    examples = stage1_examples(RECORDS, QUESTIONS, seed=0, mix={"caption": 2, "answer": 1, "rewrite": 1})
    assert Counter(example.kind for example in examples) == {"caption": 80, "answer": 40, "rewrite": 40}
    assert all(example.expert is None for example in examples)
    captions = of_kind(examples, "caption")
    assert Counter(example.image for example in captions) == Counter(list(BY_IMAGE))
    assert {example.prompt.text for example in captions} <= {DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS}
    assert 40 < sum(example.prompt.text == DEFAULT_INSTRUCTION for example in captions) < 72
    for example in captions:
        (completion,) = example.completions
        assert completion in [clean_caption(text) for text in BY_IMAGE[example.image].captions]
    assert Counter(example.image for example in of_kind(examples, "answer")) == {
        question.image: 2 for question in QUESTIONS
    }
    assert {example.completions for example in of_kind(examples, "answer")} == {("yes",)}


def test_some_answers_have_expert_texts():
    """Parts of the image's own captions where it has some; the answer stays the question's."""
    asked = QuestionRecord(SEVERAL[0].image, "RSIVQA", "train", "Is there a pond?", "presence", "yes")
    examples = stage1_examples(RECORDS, [asked], seed=0, count=400, mix={"answer": 1})
    with_texts = [example for example in examples if "\n" in example.prompt.text]
    assert len(with_texts) == pytest.approx(400 * ANSWER_REWRITE_SHARE, rel=0.2)
    own = {clean_caption(text) for text in SEVERAL[0].captions}
    said = Counter(
        line.partition(": ")[2] in own for example in with_texts for line in example.prompt.text.split("\n")[1:]
    )
    assert said[True] > 2 * said[False] > 0
    assert {example.completions for example in examples} == {("yes",)}
    bare = stage1_examples([], [asked], seed=0, count=20, mix={"answer": 1})
    assert {example.prompt.text for example in bare} == {question_instruction("Is there a pond?")}


def test_a_rewrite_never_holds_its_target_and_is_not_always_true():
    examples = stage1_examples(RECORDS, [], seed=0, count=400, mix={"rewrite": 1})
    own = strange = missing = 0
    for example in examples:
        texts = expert_texts_of(example)
        references = [clean_caption(text) for text in BY_IMAGE[example.image].captions]
        (completion,) = example.completions
        assert completion in references
        assert completion not in texts.values()
        if example.image.name.startswith("several"):
            own += sum(text in references for text in texts.values())
            strange += sum(text not in references for text in texts.values())
            missing += len(ASPECTS) - len(texts)
    single = [example for example in examples if example.image.name.startswith("single")]
    assert len(single) == round(400 * 0.15 / (0.15 + 0.5))  # no image here has two or three distinct captions
    assert own > 500
    assert 30 < strange < 140
    assert missing > strange


def test_rewrites_prefer_images_with_a_reference_for_every_part():
    some = [caption_record(f"some_{place}", f"pond {place} .", f"two cars {place} .") for place in range(40)]
    examples = stage1_examples(RECORDS + some, [], seed=0, count=400, mix={"rewrite": 1})
    counted = Counter(example.image.name.split("_")[0] for example in examples)
    assert counted == {"single": 60, "some": 140, "several": 200}


def test_a_rewrite_of_one_caption_is_noise_only():
    examples = stage1_examples(SINGLE[:1], [], seed=0, count=20, mix={"rewrite": 1})
    assert [expert_texts_of(example) for example in examples] == [{}] * 20


def test_all_references_of_an_image_at_once():
    """As often as they stand there; an example with fewer takes all."""
    examples = stage1_examples(RECORDS, [], seed=0, mix={"caption": 1}, references=9)
    for example in examples:
        assert Counter(example.completions) == Counter(
            clean_caption(text) for text in BY_IMAGE[example.image].captions
        )
    examples = stage2_examples(RECORDS, [], FIXED, seed=0, mix={"expert": 1}, references=2)
    for example in examples:
        sentences = split_aspects(BY_IMAGE[example.image].captions)[str(example.expert)]
        assert len(example.completions) == min(2, len(sentences))


def test_expert_texts_of_similar_images():
    similar = {record.image: [other for other in SEVERAL if other != record][:3] for record in RECORDS}
    examples = stage1_examples(RECORDS, [], seed=0, count=200, mix={"rewrite": 1}, references=2, similar=similar)
    from_similar = [example for example in examples if len(example.completions) > 1]
    assert len(from_similar) == round(200 * SIMILAR_SHARE)
    for example in from_similar:
        theirs = {clean_caption(text) for other in similar[example.image] for text in other.captions}
        assert len(expert_texts_of(example)) == len(ASPECTS) and set(expert_texts_of(example).values()) <= theirs


def test_epochs_go_through_the_records_evenly():
    seen: Counter[Path] = Counter()
    for epoch in range(4):
        seen.update(example.image for example in stage1_examples(SINGLE, [], 0, epoch, count=30, mix={"caption": 1}))
    assert set(seen.values()) == {3}
    assert len(seen) == len(SINGLE)


def test_stage2_examples():
    examples = stage2_examples(RECORDS, QUESTIONS, FIXED, seed=0, count=1200, mix={"router": 1, "expert": 1})
    assert Counter((example.kind, example.expert) for example in examples) == {
        (kind, name): 200 for kind in ("router", "expert") for name in ASPECTS
    }
    questions = {question.image: question for question in QUESTIONS}
    asked = [example for example in examples if example.image in questions]
    assert len(asked) == 90  # 15 percent of 600
    for example in examples:
        assert example.expert is not None
        if example.image in questions:
            question = questions[example.image].question
            assert example.prompt.text == f"<router> {example.expert}: {question_instruction(question)}"
            assert example.completions == (router_prompt(example.expert, [question]),)
            continue
        sentences = split_aspects(BY_IMAGE[example.image].captions)[example.expert]
        assert sentences, "an image without an aspect has no example for it"
        if example.kind == "router":
            start, instruction = example.prompt.text.split(": ", 1)
            assert start == f"<router> {example.expert}"
            assert instruction in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS)
            assert example.completions == (router_prompt(example.expert, sentences),)
        else:
            (completion,) = example.completions
            assert completion in [clean_caption(text) for text in sentences]
    experts = of_kind(examples, "expert")
    fixed = sum(example.prompt.text == f"<{example.expert}> {FIXED[str(example.expert)]}" for example in experts)
    instructed = sum(
        example.prompt.text.split("> ", 1)[1] in (DEFAULT_INSTRUCTION, *OTHER_INSTRUCTIONS) for example in experts
    )
    assert 100 < fixed < 200
    assert 30 < instructed < 100


def test_stage2_of_one_expert_without_questions():
    examples = stage2_examples(RECORDS, [], {"theme": "?"}, seed=0)
    assert {example.expert for example in examples} == {"theme"}
    assert len(of_kind(examples, "expert")) == len(RECORDS)  # each image here has a theme


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage1_examples(RECORDS, [], 0), 'no record for "answer" examples'),
        (
            lambda: stage1_examples(RECORDS, [], 0, mix={"router": 1}),
            'unknown kind of example "router"; known: caption',
        ),
        (lambda: stage1_examples(RECORDS, [], 0, mix={"caption": -1}), 'share of "caption" examples is -1'),
        (lambda: stage1_examples(RECORDS, [], 0, mix={"caption": float("nan")}), 'share of "caption" examples is nan'),
        (lambda: stage1_examples(RECORDS, [], 0, mix={"caption": 0}), "no kind of example has a share"),
        (lambda: stage2_examples(RECORDS, [], {"color": "?"}, 0), r"experts \['color'\] have no training sentences"),
        (lambda: stage2_examples(RECORDS, [], {}, 0), "experts none have no training sentences"),
        (lambda: stage2_examples(RECORDS, QUESTIONS, FIXED, 0, question_share=2), "question_share is 2"),
        (lambda: stage2_examples(SINGLE, [], FIXED, 0, count=30), 'no record for "router object" examples'),
    ],
)
def test_what_cannot_be_drawn_is_named(make, message):
    with pytest.raises(RSMoEError, match=message):
        make()
