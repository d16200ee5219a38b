"""Training examples: a prompt and the completions to write after it. Knows nothing about tokenizers, models or pixels.

An epoch of examples is a list that depends only on the records, the seed and the epoch's number, so a run can be
resumed and repeated.

[our decision] All prompt wordings and shares here, except that the four wordings of RSICap and the answer wording of
GeoChat are theirs. The paper's own prompts were not recovered.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, Prompt, detailed, question_instruction, task_of
from .aspects import ASPECTS, aspect_texts, distinct, router_prompt
from .cleaning import clean_caption
from .paragraphs import is_paragraph, paragraph_of, with_faults
from .records import CaptionRecord, QuestionRecord


Kind = Literal["caption", "answer", "rewrite", "router", "expert"]
T = TypeVar("T")

RSICAP_INSTRUCTIONS = (  # RSICap [paper]; its answers are paragraphs
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
    "Describe this image in detail.",
)
SHORT_INSTRUCTIONS = (  # our own
    "What does this image show?",
    "Write a caption for this aerial image.",
    "Describe this satellite image in one sentence.",
)
# Those that `task_of` takes for details ask for a paragraph, where paragraphs are learned beside captions.
DETAIL_INSTRUCTIONS = tuple(text for text in RSICAP_INSTRUCTIONS if task_of(text) == "detail")
OTHER_INSTRUCTIONS = (*RSICAP_INSTRUCTIONS, *SHORT_INSTRUCTIONS)

# Shares of an epoch's examples.
STAGE1_MIX: Mapping[str, float] = {"caption": 0.55, "answer": 0.25, "rewrite": 0.2}
STAGE2_MIX: Mapping[str, float] = {"router": 0.4, "expert": 0.6}

OTHER_INSTRUCTION_SHARE = 0.3  # of instructions are not the default one
EXPERT_TEXT_NOISE = 0.15  # of the expert texts in rewrite examples are left out or belong to another image
# Rewrite examples by the image's distinct captions: one (every expert text is noise), some, or enough for all experts.
# Generation always has all expert texts, so half of the examples should.
REWRITE_GROUP_SHARES: Mapping[str, float] = {"one": 0.15, "some": 0.35, "many": 0.5}
ANSWER_REWRITE_SHARE = 0.2  # of answer examples hold expert texts, so that questions are rewritten too
SIMILAR_SHARE = 0.7  # of rewrite examples have expert texts out of similar images' captions, where those are known
TEMPLATE_SHARE = 0.25  # of expert examples have the expert's instruction as prompt, for router mode "template"
GLOBAL_SHARE = 0.1  # of expert examples have the user's instruction as prompt, for router mode "none"
QUESTION_SHARE = 0.15  # of router examples begin from a question instead of an instruction

# Every random draw has a seed of its own, such as "17/0/compose/3". These words stay as they were when nano was
# trained ("compose" for what is called rewrite now), so that its training can be repeated bit for bit.


@dataclass(frozen=True)
class Example:
    """What is learned from one image and one prompt.

    Several completions are learned in one pass: each follows the prompt, none sees another. A repeated one counts as
    often as it stands here.
    """

    image: Path
    kind: Kind
    prompt: Prompt
    completions: tuple[str, ...]

    @property
    def expert(self) -> str | None:
        """Of a router's and an expert's example."""
        return self.prompt.expert


def stage1_examples(
    captions: Sequence[CaptionRecord],
    questions: Sequence[QuestionRecord],
    seed: int,
    epoch: int = 0,
    count: int | None = None,
    mix: Mapping[str, float] = STAGE1_MIX,
    references: int = 1,
    similar: Mapping[Path, Sequence[CaptionRecord]] | None = None,
    detail_share: float = 0.0,
) -> list[Example]:
    """One epoch of examples for the base LM: captions, answers and rewrites, shuffled.

    Args:
        captions: captioned images; may be empty when only ``answer`` has a share in ``mix``.
        questions: may be empty when ``answer`` has no share in ``mix``.
        seed: of everything random here.
        epoch: another epoch draws other examples; each kind goes on through its records where the last epoch ended.
        count: examples of the epoch; by default so many that each captioned image (or, without caption examples, each
            record) has one caption example.
        mix: share of each kind, ``caption``, ``answer`` and ``rewrite``, of any sum; 0 or absent for none.
        references: so many captions of its image, or all where it has fewer, are the completions of a caption example.
        similar: for each captioned image others that look like it. Their sentences stand in for expert texts, as wrong
            as an expert's: a base LM that only ever read other references of the same image would believe every text.
        detail_share: of caption and rewrite examples ask for details, and have a paragraph as completion. Captions
            that are paragraphs are learned as they are, with any instruction, whatever this share is.

    Raises:
        RSMoEError: for an unknown kind or a negative share in ``mix``, a ``detail_share`` beyond 0 to 1, or a kind
            that has no record to draw from.
    """
    shares = _shares(mix, ("caption", "answer", "rewrite"))
    instructions = _Instructions(detail_share)
    if count is None:
        kind = "caption" if "caption" in shares else max(shares, key=lambda name: shares[name])
        count = round(len(questions if kind == "answer" else captions) / shares[kind])
    numbers = _numbers({"caption": 0, "answer": 0, "rewrite": 0} | shares, count)
    examples = []
    for record, rng in _seeded(_draw(captions, numbers["caption"], "caption", seed, epoch), f"{seed}/{epoch}/caption"):
        examples.append(_caption_example(record, references, instructions, rng))
    captioned = {record.image: record for record in captions}
    for question, rng in _seeded(_draw(questions, numbers["answer"], "answer", seed, epoch), f"{seed}/{epoch}/answer"):
        examples.append(_answer_example(question, captioned, captions, rng))
    from_similar = round(numbers["rewrite"] * SIMILAR_SHARE) if similar else 0
    drawn = _draw(captions, from_similar, "compose similar", seed, epoch)
    for record, rng in _seeded(drawn, f"{seed}/{epoch}/compose similar"):
        alike = (similar or {})[record.image]
        if instructions.wants_detail(record, rng):
            examples.append(_detail_rewrite_example(record, alike, instructions, rng))
        else:
            examples.append(_similar_rewrite_example(record, alike, references, instructions, rng))
    drawn = _draw_for_rewrite(captions, numbers["rewrite"] - from_similar, seed, epoch)
    for record, rng in _seeded(drawn, f"{seed}/{epoch}/compose"):
        if instructions.wants_detail(record, rng):
            examples.append(_detail_rewrite_example(record, captions, instructions, rng))
        else:
            examples.append(_rewrite_example(record, captions, instructions, rng))
    random.Random(f"{seed}/{epoch}/stage1").shuffle(examples)
    return examples


def stage2_examples(
    captions: Sequence[CaptionRecord],
    questions: Sequence[QuestionRecord],
    expert_instructions: Mapping[str, str],
    seed: int,
    epoch: int = 0,
    count: int | None = None,
    mix: Mapping[str, float] = STAGE2_MIX,
    question_share: float = QUESTION_SHARE,
    references: int = 1,
    detail_share: float = 0.0,
) -> list[Example]:
    """One epoch of examples for the router and the experts, shuffled; every expert has the same number.

    An image has examples only for the aspects its captions speak of. A question has router examples: the completion
    names what the question speaks of, in the wording of each expert ("Where are the buildings and the river relative
    to each other?").

    Args:
        captions: captioned images.
        questions: may be empty.
        expert_instructions: the experts' names, each one of ``ASPECTS`` or an aspect of the records' own, with their
            instructions.
        seed: of everything random here.
        epoch: another epoch draws other examples; each kind goes on through its records where the last epoch ended.
        count: examples of the epoch; by default one expert example for each image and aspect that it has.
        mix: share of each kind, ``router`` and ``expert``, of any sum; 0 or absent for none.
        question_share: share of router examples that begin from a question; 0 without questions.
        references: so many texts of its aspect, or all where there are fewer, are the completions of an expert
            example.
        detail_share: of the examples ask for details: the router's prompt says so, and the expert writes all sentences
            of its aspect in a paragraph.

    Raises:
        RSMoEError: as for :func:`stage1_examples`, and for an expert that is no aspect.
    """
    known = dict.fromkeys([*ASPECTS, *(name for record in captions for name in record.aspects or ())])
    unknown = [name for name in expert_instructions if name not in known]
    if unknown or not expert_instructions:
        raise RSMoEError(f"experts {unknown or 'none'} have no training sentences; known aspects: {', '.join(known)}")
    if not 0 <= question_share <= 1:
        raise RSMoEError(f"question_share is {question_share}, expected a share from 0 to 1")
    instructions = _Instructions(detail_share)
    by_expert = {name: [r for r in captions if aspect_texts(r).get(name)] for name in expert_instructions}
    shares = _shares(mix, ("router", "expert"))
    if count is None:
        count = round(sum(map(len, by_expert.values())) / shares.get("expert", 1))
    examples = []
    for kind, of_kind in _numbers(shares, count).items():
        for name, of_expert in _numbers(dict.fromkeys(by_expert, 1 / len(by_expert)), of_kind).items():
            from_questions = round(of_expert * question_share) if kind == "router" and questions else 0
            drawn = _draw(by_expert[name], of_expert - from_questions, f"{kind} {name}", seed, epoch)
            for record, rng in _seeded(drawn, f"{seed}/{epoch}/{kind}/{name}"):
                if kind == "router":
                    in_detail = instructions.wants_detail_share(rng)
                    instruction, texts = instructions.draw(rng, in_detail), aspect_texts(record)[name]
                    examples.append(_router_example(record.image, name, instruction, texts, in_detail))
                else:
                    sub_task = expert_instructions[name]
                    examples.append(_expert_example(record, name, sub_task, references, instructions, rng))
            for question in _draw(questions, from_questions, f"question {name}", seed, epoch):
                instruction = question_instruction(question.question)
                examples.append(_router_example(question.image, name, instruction, [question.question]))
    random.Random(f"{seed}/{epoch}/stage2").shuffle(examples)
    return examples


def _answer_example(
    question: QuestionRecord,
    captioned: Mapping[Path, CaptionRecord],
    others: Sequence[CaptionRecord],
    rng: random.Random,
) -> Example:
    """Some with expert texts: out of the image's captions, or noise where it has none."""
    instruction = question_instruction(question.question)
    prompt = Prompt.base(instruction)
    if others and rng.random() < ANSWER_REWRITE_SHARE:
        record = captioned.get(question.image)
        prompt = Prompt.rewrite(instruction, _expert_texts(record.captions if record else (), others, rng))
    return Example(question.image, "answer", prompt, (question.answer.strip(),))


def _caption_example(
    record: CaptionRecord, references: int, instructions: "_Instructions", rng: random.Random
) -> Example:
    in_detail = instructions.wants_detail_share(rng)
    prompt = Prompt.base(instructions.draw(rng, in_detail))
    if in_detail:
        return Example(record.image, "caption", prompt, (paragraph_of(record, rng).text,))
    return Example(record.image, "caption", prompt, _completions(record.captions, references, rng))


def _rewrite_example(
    record: CaptionRecord, others: Sequence[CaptionRecord], instructions: "_Instructions", rng: random.Random
) -> Example:
    """The completion is one reference; the expert texts come from the others, so that copying one is never right.

    Some expert texts are noise, half of them missing and half of a random image, so that the image has the last word.
    With one distinct caption there is nothing else to draw from, and every expert text is noise.
    """
    (completion,) = _completions(record.captions, 1, rng)
    references = [text for text in distinct(record.captions) if clean_caption(text) != completion]
    texts = _expert_texts(references, others, rng)
    # Another image may have the very same caption.
    texts = {aspect: "" if text == completion else text for aspect, text in texts.items()}
    return Example(record.image, "rewrite", Prompt.rewrite(instructions.draw(rng), texts), (completion,))


def _similar_rewrite_example(
    record: CaptionRecord,
    similar: Sequence[CaptionRecord],
    references: int,
    instructions: "_Instructions",
    rng: random.Random,
) -> Example:
    """Each expert text comes from one of the similar images that have it. It may well be right, as an expert's may."""
    texts = {}
    for aspect in ASPECTS:
        by_image = [of_image for other in similar if (of_image := aspect_texts(other)[aspect])]
        texts[aspect] = clean_caption(rng.choice(rng.choice(by_image))) if by_image else ""
    prompt = Prompt.rewrite(instructions.draw(rng), texts)
    return Example(record.image, "rewrite", prompt, _completions(record.captions, references, rng))


def _detail_rewrite_example(
    record: CaptionRecord, others: Sequence[CaptionRecord], instructions: "_Instructions", rng: random.Random
) -> Example:
    """The completion is a paragraph; the expert texts are its own sentences, some of them wrong or missing."""
    paragraph = paragraph_of(record, rng)
    texts = with_faults(paragraph.sentences, others, rng)
    prompt = Prompt.rewrite(instructions.draw(rng, in_detail=bool(instructions.detail_share)), texts)
    return Example(record.image, "rewrite", prompt, (paragraph.text,))


def _expert_texts(captions: Sequence[str], others: Sequence[CaptionRecord], rng: random.Random) -> dict[str, str]:
    """A text for each aspect out of an image's captions; some are noise, all where there is no caption."""
    own = aspect_texts(CaptionRecord(Path(), "", "", tuple(captions)))
    noise = EXPERT_TEXT_NOISE if captions else 1
    texts = {}
    for aspect in ASPECTS:
        candidates = own[aspect]
        if rng.random() < noise:
            candidates = aspect_texts(rng.choice(others))[aspect] if rng.random() < 0.5 else []
        texts[aspect] = clean_caption(rng.choice(candidates)) if candidates else ""
    return texts


def _router_example(
    image: Path, name: str, instruction: str, texts: Sequence[str], in_detail: bool = False
) -> Example:
    prompt = router_prompt(name, texts)
    return Example(image, "router", Prompt.router(name, instruction), (detailed(prompt) if in_detail else prompt,))


def _expert_example(
    record: CaptionRecord,
    name: str,
    expert_instruction: str,
    references: int,
    instructions: "_Instructions",
    rng: random.Random,
) -> Example:
    in_detail = instructions.wants_detail_share(rng)
    texts = aspect_texts(record)[name]
    completions: tuple[str, ...] = ()
    if in_detail:
        sentences = paragraph_of(record, rng).sentences.get(name)  # none where another reference speaks of the aspect
        completions = (" ".join(sentences),) if sentences else ()
    draw = rng.random()
    if draw < TEMPLATE_SHARE:
        text = detailed(expert_instruction) if in_detail else expert_instruction
    elif draw < TEMPLATE_SHARE + GLOBAL_SHARE:
        text = instructions.draw(rng, in_detail)
    else:
        text = router_prompt(name, texts)
        text = detailed(text) if in_detail else text
    prompt = Prompt.for_expert(name, text, expert_instruction)
    return Example(record.image, "expert", prompt, completions or _completions(texts, references, rng))


@dataclass(frozen=True)
class _Instructions:
    """Draws what a user asks for: a caption, or a share of details."""

    detail_share: float

    def __post_init__(self) -> None:
        if not 0 <= self.detail_share <= 1:
            raise RSMoEError(f"detail_share is {self.detail_share}, expected a share from 0 to 1")

    def wants_detail_share(self, rng: random.Random) -> bool:
        """Draws nothing where there are no details, so that such trainings repeat."""
        return bool(self.detail_share) and rng.random() < self.detail_share

    def wants_detail(self, record: CaptionRecord, rng: random.Random) -> bool:
        """The same for a rewrite, where a record of paragraphs alone always is one."""
        return all(map(is_paragraph, record.captions)) or self.wants_detail_share(rng)

    def draw(self, rng: random.Random, in_detail: bool = False) -> str:
        if in_detail:
            return rng.choice(DETAIL_INSTRUCTIONS)
        others: tuple[str, ...] = OTHER_INSTRUCTIONS
        if self.detail_share:
            others = tuple(text for text in others if text not in DETAIL_INSTRUCTIONS)
        return rng.choice(others) if rng.random() < OTHER_INSTRUCTION_SHARE else DEFAULT_INSTRUCTION


def _completions(captions: Sequence[str], number: int, rng: random.Random) -> tuple[str, ...]:
    return tuple(clean_caption(caption) for caption in rng.sample(captions, min(number, len(captions))))


def _draw_for_rewrite(captions: Sequence[CaptionRecord], number: int, seed: int, epoch: int) -> list[CaptionRecord]:
    """Images by how many other references they have for expert texts; the share of an empty group goes to the rest."""
    if not captions:
        return _draw(captions, number, "compose", seed, epoch)
    groups: dict[str, list[CaptionRecord]] = {"one": [], "some": [], "many": []}
    for record in captions:
        others = len(distinct(record.captions)) - 1
        groups["one" if not others else "some" if others < len(ASPECTS) else "many"].append(record)
    shares = {name: REWRITE_GROUP_SHARES[name] for name, records in groups.items() if records}
    total = sum(shares.values())
    numbers = _numbers({name: share / total for name, share in shares.items()}, number)
    return [record for name in shares for record in _draw(groups[name], numbers[name], f"compose {name}", seed, epoch)]


def _seeded(records: Sequence[T], name: str) -> Iterator[tuple[T, random.Random]]:
    """Each record with the random numbers of its example."""
    for place, record in enumerate(records):
        yield record, random.Random(f"{name}/{place}")


def _shares(mix: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    for kind, share in mix.items():
        if kind not in known:
            raise RSMoEError(f'unknown kind of example "{kind}"; known: {", ".join(known)}')
        if not share >= 0:
            raise RSMoEError(f'share of "{kind}" examples is {share}, expected 0 or more')
    total = sum(mix.values())
    if not total:
        raise RSMoEError(f"no kind of example has a share; give one of {', '.join(known)} a share above 0")
    return {kind: share / total for kind, share in mix.items() if share}


def _numbers(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers that add up to ``count``, as near to the shares as can be."""
    numbers, assigned, total = {}, 0, 0.0
    for name, share in shares.items():
        total += share
        numbers[name] = round(count * total) - assigned
        assigned += numbers[name]
    return numbers


def _draw(records: Sequence[T], number: int, name: str, seed: int, epoch: int) -> list[T]:
    """``number`` records of an endless stream of shuffled passes over them; epoch ``n`` starts at ``n * number``."""
    if number and not records:
        raise RSMoEError(
            f'no record for "{name}" examples; give such records, set the share of these examples to 0, or '
            "leave an expert without sentences out of expert_names"
        )
    drawn: list[T] = []
    while len(drawn) < number:
        pass_number, start = divmod(epoch * number + len(drawn), len(records))
        order = list(records)
        random.Random(f"{seed}/{name}/{pass_number}").shuffle(order)
        drawn += order[start : start + number - len(drawn)]
    return drawn
