"""Training rows: what one row's reader is asked and should write. Knows nothing about tokenizers, models or pixels.

A row's ``prompt`` is the user text without the image's mark and without a chat template; a router's or expert's row
begins with the special token that selects its reader (``<router>``, ``<theme>``). An epoch of rows is a list that
depends only on the records, the seed and the epoch's number, so a run can be resumed and repeated.

[our decision] All prompt wordings and shares here, except that the four wordings of RSICap and the answer wording of
GeoChat are theirs. The paper's own prompts were not recovered.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, Prompt, question_instruction
from .aspects import ASPECTS, distinct, router_prompt, split_aspects
from .records import CaptionRecord, QuestionRecord
from .text import clean_caption


Kind = Literal["caption", "answer", "rewrite", "router", "expert"]
T = TypeVar("T")

OTHER_INSTRUCTIONS = (
    # RSICap [paper]
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
    "Describe this image in detail.",
    # our own
    "What does this image show?",
    "Write a caption for this aerial image.",
    "Describe this satellite image in one sentence.",
)

# Shares of an epoch's rows.
STAGE1_MIX: Mapping[str, float] = {"caption": 0.55, "answer": 0.25, "rewrite": 0.2}
STAGE2_MIX: Mapping[str, float] = {"router": 0.4, "expert": 0.6}

OTHER_INSTRUCTION_SHARE = 0.3  # of global instructions are not the default one
PART_NOISE = 0.15  # of a fusion's parts are left out or belong to another image
# Fusion rows by the image's distinct captions: one (every part is noise), some, or enough for every part.
# Generation always has every part, so half of the rows should.
COMPOSE_SHARES: Mapping[str, float] = {"one": 0.15, "some": 0.35, "many": 0.5}
QUESTION_PARTS_SHARE = 0.2  # of answer rows hold parts, so that the composer has read parts under a question too
SIMILAR_SHARE = 0.7  # of fusion rows have parts out of similar images' captions, where those are known
TEMPLATE_SHARE = 0.25  # of expert rows are asked the expert's fixed prompt, for router mode "template"
GLOBAL_SHARE = 0.1  # of expert rows are asked the global instruction, for router mode "none"
QUESTION_SHARE = 0.15  # of router rows read a question instead of an instruction


@dataclass(frozen=True)
class Row:
    """One row of training text for one image.

    Several completions are learned in one pass: each follows the prompt, none sees another. A repeated one counts as
    often as it stands here.
    """

    image: Path
    kind: Kind
    expert: str | None  # of a router's and an expert's row
    prompt: str
    completions: tuple[str, ...]


def stage1_rows(
    captions: Sequence[CaptionRecord],
    questions: Sequence[QuestionRecord],
    seed: int,
    epoch: int = 0,
    count: int | None = None,
    mix: Mapping[str, float] = STAGE1_MIX,
    references: int = 1,
    similar: Mapping[Path, Sequence[CaptionRecord]] | None = None,
) -> list[Row]:
    """One epoch of rows for the base LM: captions, answers and fusions, shuffled.

    Args:
        captions, questions: the records; either may be empty when its rows have no share in ``mix``.
        seed: of everything random here.
        epoch: rows of another epoch are drawn anew; each kind goes on through its records where the last epoch ended.
        count: rows of the epoch; by default so many that each captioned image (or, without caption rows, each record)
            has one caption row.
        mix: share of each kind, ``caption``, ``answer`` and ``rewrite``, of any sum; 0 or absent for none.
        references: so many captions of its image, or all where it has fewer, are the completions of a caption row.
        similar: for each captioned image others that look like it. Their sentences are parts as wrong as an expert's:
            a composer that only ever read other references of the same image would believe every part.

    Raises:
        RSMoEError: for an unknown kind or a negative share in ``mix``, or a kind that has no record to draw from.
    """
    shares = _shares(mix, ("caption", "answer", "rewrite"))
    if count is None:
        kind = "caption" if "caption" in shares else max(shares, key=lambda name: shares[name])
        count = round(len(questions if kind == "answer" else captions) / shares[kind])
    numbers = _numbers(shares, count)
    rows = []
    for place, record in enumerate(_draw(captions, numbers.get("caption", 0), "caption", seed, epoch)):
        rows.append(_caption_row(record, references, random.Random(f"{seed}/{epoch}/caption/{place}")))
    captioned = {record.image: record for record in captions}
    for place, question in enumerate(_draw(questions, numbers.get("answer", 0), "answer", seed, epoch)):
        rows.append(_answer_row(question, captioned, captions, random.Random(f"{seed}/{epoch}/answer/{place}")))
    composed = numbers.get("rewrite", 0)
    doubted = round(composed * SIMILAR_SHARE) if similar else 0
    for place, record in enumerate(_draw(captions, doubted, "compose similar", seed, epoch)):
        rng = random.Random(f"{seed}/{epoch}/compose similar/{place}")
        rows.append(_similar_compose_row(record, (similar or {})[record.image], references, rng))
    for place, record in enumerate(_draw_composed(captions, composed - doubted, seed, epoch)):
        rows.append(_compose_row(record, captions, random.Random(f"{seed}/{epoch}/compose/{place}")))
    random.Random(f"{seed}/{epoch}/stage1").shuffle(rows)
    return rows


def stage2_rows(
    captions: Sequence[CaptionRecord],
    questions: Sequence[QuestionRecord],
    expert_instructions: Mapping[str, str],
    seed: int,
    epoch: int = 0,
    count: int | None = None,
    mix: Mapping[str, float] = STAGE2_MIX,
    question_share: float = QUESTION_SHARE,
    references: int = 1,
) -> list[Row]:
    """One epoch of rows for the router and the experts, shuffled; every expert has the same number of rows.

    An image has rows only for the aspects its captions speak of. A question has router rows: the target names what the
    question speaks of, in the wording of each expert ("Where are the buildings and the river relative to each
    other?").

    Args:
        captions, seed, epoch: as for :func:`stage1_rows`.
        questions: may be empty.
        expert_instructions: the experts' names, each one of ``ASPECTS``, with their fixed prompts.
        count: rows of the epoch; by default one expert row for each image and aspect that it has.
        mix: share of each kind, ``router`` and ``expert``, of any sum; 0 or absent for none.
        question_share: of router rows read a question; 0 without questions.
        references: so many sentences of its aspect, or all where there are fewer, are the completions of an expert row.

    Raises:
        RSMoEError: as for :func:`stage1_rows`, and for an expert that is no aspect.
    """
    unknown = [name for name in expert_instructions if name not in ASPECTS]
    if unknown or not expert_instructions:
        raise RSMoEError(
            f"experts {unknown or 'none'} have no training sentences; known aspects: {', '.join(ASPECTS)}"
        )
    if not 0 <= question_share <= 1:
        raise RSMoEError(f"question_share is {question_share}, expected a share from 0 to 1")
    by_expert = {
        name: [record for record in captions if split_aspects(record.captions)[name]] for name in expert_instructions
    }
    shares = _shares(mix, ("router", "expert"))
    if count is None:
        units = sum(len(records) for records in by_expert.values())
        count = round(units / shares.get("expert", 1))
    rows = []
    for kind, number in _numbers(shares, count).items():
        for name, of_expert in _numbers({name: 1 / len(by_expert) for name in by_expert}, number).items():
            asked = round(of_expert * question_share) if kind == "router" and questions else 0
            for place, record in enumerate(_draw(by_expert[name], of_expert - asked, f"{kind} {name}", seed, epoch)):
                rng = random.Random(f"{seed}/{epoch}/{kind}/{name}/{place}")
                if kind == "router":
                    rows.append(_router_row(record, name, rng))
                else:
                    rows.append(_expert_row(record, name, expert_instructions[name], references, rng))
            for question in _draw(questions, asked, f"question {name}", seed, epoch):
                rows.append(_question_router_row(question, name))
    random.Random(f"{seed}/{epoch}/stage2").shuffle(rows)
    return rows


def _caption_row(record: CaptionRecord, references: int, rng: random.Random) -> Row:
    return Row(record.image, "caption", None, _instruction(rng), _targets(record.captions, references, rng))


def _answer_row(
    question: QuestionRecord,
    captioned: Mapping[Path, CaptionRecord],
    others: Sequence[CaptionRecord],
    rng: random.Random,
) -> Row:
    """Some with parts, as the composer reads a question: out of the image's captions, or noise where it has none."""
    prompt = question_instruction(question.question)
    if others and rng.random() < QUESTION_PARTS_SHARE:
        record = captioned.get(question.image)
        prompt = Prompt.rewrite(prompt, _parts(record.captions if record else (), others, rng)).text
    return Row(question.image, "answer", None, prompt, (question.answer.strip(),))


def _compose_row(record: CaptionRecord, others: Sequence[CaptionRecord], rng: random.Random) -> Row:
    """The target is one reference; the parts come from the others, so that copying a part is never the answer.

    Some parts are noise, half of it missing parts and half parts of a random image, so that the image keeps the last
    word. With one distinct caption there is nothing else to draw from, and every part is noise.
    """
    (target,) = _targets(record.captions, 1, rng)
    references = [text for text in distinct(record.captions) if clean_caption(text) != target]
    parts = _parts(references, others, rng)
    # Another image may have the very same caption.
    parts = {aspect: "" if part == target else part for aspect, part in parts.items()}
    return Row(record.image, "rewrite", None, Prompt.rewrite(_instruction(rng), parts).text, (target,))


def _similar_compose_row(
    record: CaptionRecord, similar: Sequence[CaptionRecord], references: int, rng: random.Random
) -> Row:
    """Each part comes from one of the similar images that have it. It may well be the answer, as an expert's part may."""
    parts = {}
    for aspect in ASPECTS:
        some = [sentences for other in similar if (sentences := split_aspects(other.captions)[aspect])]
        parts[aspect] = clean_caption(rng.choice(rng.choice(some))) if some else ""
    prompt = Prompt.rewrite(_instruction(rng), parts).text
    return Row(record.image, "rewrite", None, prompt, _targets(record.captions, references, rng))


def _parts(sentences: Sequence[str], others: Sequence[CaptionRecord], rng: random.Random) -> dict[str, str]:
    """A part for each aspect out of an image's sentences; some are noise, all where there is no sentence."""
    split = split_aspects(sentences)
    noise = PART_NOISE if sentences else 1
    parts = {}
    for aspect in ASPECTS:
        some = split[aspect]
        if rng.random() < noise:
            some = split_aspects(rng.choice(others).captions)[aspect] if rng.random() < 0.5 else []
        parts[aspect] = clean_caption(rng.choice(some)) if some else ""
    return parts


def _router_row(record: CaptionRecord, name: str, rng: random.Random) -> Row:
    target = router_prompt(name, split_aspects(record.captions)[name])
    return Row(record.image, "router", name, Prompt.router(name, _instruction(rng)).text, (target,))


def _question_router_row(record: QuestionRecord, name: str) -> Row:
    target = router_prompt(name, [record.question])
    return Row(
        record.image, "router", name, Prompt.router(name, question_instruction(record.question)).text, (target,)
    )


def _expert_row(record: CaptionRecord, name: str, fixed: str, references: int, rng: random.Random) -> Row:
    sentences = split_aspects(record.captions)[name]
    draw = rng.random()
    if draw < TEMPLATE_SHARE:
        prompt = fixed
    elif draw < TEMPLATE_SHARE + GLOBAL_SHARE:
        prompt = _instruction(rng)
    else:
        prompt = router_prompt(name, sentences)
    return Row(
        record.image, "expert", name, Prompt.for_expert(name, prompt, "").text, _targets(sentences, references, rng)
    )


def _instruction(rng: random.Random) -> str:
    return rng.choice(OTHER_INSTRUCTIONS) if rng.random() < OTHER_INSTRUCTION_SHARE else DEFAULT_INSTRUCTION


def _targets(captions: Sequence[str], number: int, rng: random.Random) -> tuple[str, ...]:
    return tuple(clean_caption(caption) for caption in rng.sample(captions, min(number, len(captions))))


def _draw_composed(captions: Sequence[CaptionRecord], number: int, seed: int, epoch: int) -> list[CaptionRecord]:
    """Images by how many other references they have for the parts; a share whose images are absent goes to the rest."""
    groups: dict[str, list[CaptionRecord]] = {"one": [], "some": [], "many": []}
    for record in captions:
        others = len(distinct(record.captions)) - 1
        groups["one" if not others else "some" if others < len(ASPECTS) else "many"].append(record)
    shares = {name: COMPOSE_SHARES[name] for name, records in groups.items() if records}
    if not shares:
        return _draw(captions, number, "compose", seed, epoch)
    total = sum(shares.values())
    numbers = _numbers({name: share / total for name, share in shares.items()}, number)
    return [record for name in shares for record in _draw(groups[name], numbers[name], f"compose {name}", seed, epoch)]


def _shares(mix: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    for kind, share in mix.items():
        if kind not in known:
            raise RSMoEError(f'unknown kind of row "{kind}"; known: {", ".join(known)}')
        if not share >= 0:
            raise RSMoEError(f'share of "{kind}" rows is {share}, expected 0 or more')
    total = sum(mix.values())
    if not total:
        raise RSMoEError(f"no kind of row has a share; give one of {', '.join(known)} a share above 0")
    return {kind: share / total for kind, share in mix.items() if share}


def _numbers(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers that add up to ``count``, as near to the shares as can be."""
    numbers, given, total = {}, 0, 0.0
    for name, share in shares.items():
        total += share
        numbers[name] = round(count * total) - given
        given += numbers[name]
    return numbers


def _draw(records: Sequence[T], number: int, name: str, seed: int, epoch: int) -> list[T]:
    """``number`` records of an endless stream of shuffled passes over them; epoch ``n`` starts at ``n * number``."""
    if number and not records:
        raise RSMoEError(
            f'no record for "{name}" rows; give such records, set the share of these rows to 0, or '
            "leave an expert without sentences out of expert_names"
        )
    drawn: list[T] = []
    place, end = epoch * number, (epoch + 1) * number
    while place < end:
        turn, start = divmod(place, len(records))
        order = list(range(len(records)))
        random.Random(f"{seed}/{name}/{turn}").shuffle(order)
        taken = order[start : start + end - place]
        drawn.extend(records[index] for index in taken)
        place += len(taken)
    return drawn
