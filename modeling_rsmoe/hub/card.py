"""The model card of a checkpoint: facts of its folder and scores of reports, in the one template card.md.jinja."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..errors_rsmoe import RSMoEError
from ..generation_rsmoe import DEFAULTS
from . import card_scores
from .facts import PICTURE, SETTINGS, Facts
from .sources import SOURCES_FILE, read_sources


CARD = "README.md"
MARK = "<!-- Written by `rsmoe card`: what is changed by hand is lost when it is written again. -->"
TAGS = ["rsmoe", "remote-sensing", "image-captioning", "visual-question-answering", "mixture-of-experts"]


def card_text(facts: Facts, scores: card_scores.HubScores | None = None, summary: str = "") -> str:
    """The complete card, front matter first.

    Args:
        facts: of the checkpoint.
        scores: of its reports; without them the card says that there are none.
        summary: a short Markdown table of those reports.

    Raises:
        RSMoEError: scores of a checkpoint that was not trained.
    """
    if scores and not facts.trained:
        raise RSMoEError(f"{facts.name} is the start of a training, so it has no scores; leave out --scores")
    card = ModelCard.from_template(
        _metadata(facts, scores),
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        facts=facts,
        texts=facts.texts,
        mark=MARK,
        experts=facts.config.expert_names,
        fusion=getattr(facts.generation, "fusion", DEFAULTS["fusion"]),
        picture=PICTURE if facts.texts.picture and (facts.folder / PICTURE).is_file() else "",
        command=_command(facts),
        use_folder=_use_folder(facts),
        settings=(facts.folder / SETTINGS).is_file(),
        scores=scores,
        summary=summary.strip(),
    )
    text = re.sub(r"[ \t]+$", "", str(card), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_card(
    facts: Facts,
    path: str | Path,
    reports: Sequence[card_scores.Report] = (),
    summary: str = "",
    benchmarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a card, and `.eval_results/` beside it.

    Args:
        facts: of the checkpoint.
        path: the card, or the folder of its README.md. A card that somebody wrote by hand is not replaced.
        reports: as of `hub_scores`.
        summary: as of `card_text`.
        benchmarks: as of `hub_scores`.

    Returns:
        What was done and what was left out, a line each.

    Raises:
        RSMoEError: as of `hub_scores` and `card_text`; a card by hand stands there. Then nothing is written.
    """
    path = Path(path) / CARD if Path(path).is_dir() else Path(path)
    if path.exists() and MARK not in card_scores.read_text(path):
        remedy = f"move it away, give another --output, or `rsmoe card {path}` to have only scores written into it"
        raise RSMoEError(f"{path} was not written by `rsmoe card`, so it is not replaced: {remedy}")
    scores = card_scores.hub_scores(reports, benchmarks) if reports else None
    text = card_text(facts, scores, summary)
    done = [card_scores.write_changed(path, text)]
    if scores:
        done += [card_scores.write_entries(path.parent / card_scores.EVAL_RESULTS, scores.entries), *scores.left_out]
    if facts.texts.missing:
        done.append(f"the card does not say: {', '.join(facts.texts.missing)}; write {facts.folder / 'card.yaml'}")
    return done


def _metadata(facts: Facts, scores: card_scores.HubScores | None) -> ModelCardData:
    """The front matter."""
    texts, index = facts.texts, scores.index if scores else []
    return ModelCardData(
        base_model=list(facts.base_models) or None,
        base_model_relation="finetune" if facts.trained and facts.base_models else None,
        datasets=[card_scores.dataset_id(name) for name in facts.datasets] or None,
        eval_results=index or None,
        language="en",
        library_name="transformers",
        license=texts.license and texts.license.lower(),
        license_name=texts.license_name,
        license_link=texts.license_link,
        metrics=list(dict.fromkeys(score.metric_type for score in index)) or None,
        model_name=facts.name if index else None,
        module_licenses={module.name: module.license for module in facts.modules if module.license} or None,
        pipeline_tag="image-text-to-text",
        tags=TAGS,
    )


def _command(facts: Facts) -> str:
    """The command that makes this checkpoint out of a folder of hub_configs; empty for a checkpoint."""
    if any(facts.folder.glob("model*.safetensors")) or not (facts.folder / SOURCES_FILE).is_file():
        return ""
    if read_sources(facts.folder).pinned:
        return f"rsmoe assemble {facts.name} --output {_use_folder(facts)}" + ("" if facts.trained else " --untrained")
    return f"rsmoe convert {facts.name} --instructblip INSTRUCTBLIP --llm LLM --output {_use_folder(facts)}"


def _use_folder(facts: Facts) -> str:
    return facts.name.removeprefix("rs-moe-") if facts.trained else "start"
