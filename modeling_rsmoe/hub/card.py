"""The model card of a checkpoint: facts of its folder and scores of reports, in the one template card.md.jinja."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from ..errors_rsmoe import RSMoEError
from ..generation_rsmoe import DEFAULTS
from .card_scores import EVAL_RESULTS, HubScores, Report, dataset_id, hub_scores, write_changed, write_entries
from .facts import PARTS_FILE, SETTINGS, Facts
from .sources import SOURCES_FILE


CARD = "README.md"
MARK = "<!-- Written by `rsmoe card`: what is changed by hand is lost when it is written again. -->"
TAGS = ["rsmoe", "remote-sensing", "image-captioning", "visual-question-answering", "mixture-of-experts"]
# The order of the front matter: what says what it is, before the long model-index.
_KEYS = ["library_name", "pipeline_tag", "license", "license_name", "license_link", "part_licenses", "language"]
_KEYS += ["base_model", "base_model_relation", "datasets", "metrics", "tags", "model_name", "eval_results"]


def card_text(facts: Facts, scores: HubScores | None = None, summary: str = "", table: str = "") -> str:
    """The whole card, front matter first.

    Args:
        facts: of the checkpoint.
        scores: of its reports; without them the card says that there are none.
        summary, table: the Markdown tables of those reports, short and whole.

    Raises:
        RSMoEError: scores of a checkpoint that was not trained, or facts that are no metadata of a card.
    """
    if scores and not facts.trained:
        raise RSMoEError(f"{facts.name} is the start of a training, so it has no scores; leave out --scores")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"count": _count, "thousands": "{:,}".format}
    size = facts.image_processor.size
    record = facts.record or {}
    text = environment.get_template("card.md.jinja").render(
        facts=facts,
        texts=facts.texts,
        mark=MARK,
        metadata=_metadata(facts, scores),
        experts=facts.config.expert_names,
        fusion=getattr(facts.generation, "fusion", DEFAULTS["fusion"]),
        made_by=_made_by(facts),
        use_folder=_use_folder(facts),
        size=(size["height"], size["width"]),
        settings=(facts.folder / SETTINGS).is_file(),
        unlisted=_unlisted(facts),
        scores=scores,
        summary=summary.strip(),
        table=table.strip(),
        data=record.get("data"),
        start=record.get("start"),
        versions=", ".join(map(" ".join, record.get("versions", {}).items())),
    )
    return _checked(_single_blank_lines(text), facts, scores)


def write_card(
    facts: Facts,
    path: str | Path,
    reports: Sequence[Report] = (),
    summary: str = "",
    table: str = "",
    benchmarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a card, and `.eval_results/` beside it.

    Args:
        facts: of the checkpoint.
        path: the card, or the folder of its README.md. A card that somebody wrote by hand is not replaced.
        reports, benchmarks: as of `hub_scores`.
        summary, table: as of `card_text`.

    Returns:
        What was done and what was left out, a line each.

    Raises:
        RSMoEError: as of `hub_scores` and `card_text`; a card by hand stands there. Then nothing is written.
    """
    path = Path(path) / CARD if Path(path).is_dir() else Path(path)
    check_ours(path)
    scores = hub_scores(reports, benchmarks) if reports else None
    text = card_text(facts, scores, summary, table)
    done = [write_changed(path, text)]
    if scores:
        done += [write_entries(path.parent / EVAL_RESULTS, scores.entries), *scores.left_out]
    if facts.texts.missing:
        done.append(f"the card does not say: {', '.join(facts.texts.missing)}; write {facts.folder / 'card.yaml'}")
    return done


def check_ours(path: Path) -> None:
    """Raise if a card stands there that this command did not write."""
    try:
        ours = MARK in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise RSMoEError(f"{path} cannot be read ({error}); give another --output") from error
    if not ours:
        raise RSMoEError(
            f"{path} was not written by `rsmoe card`, so it is not replaced: move it away, give another --output, or "
            f"`rsmoe card {path}` to have only scores written into it"
        )


# ---- the front matter


def _metadata(facts: Facts, scores: HubScores | None) -> str:
    from huggingface_hub import ModelCardData

    texts = facts.texts
    licenses = {part.name: part.license for part in facts.parts if part.license}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=texts.license and texts.license.lower(),
        license_name=texts.license_name,
        license_link=texts.license_link,
        language="en",
        base_model=list(facts.base_models) or None,
        base_model_relation="finetune" if facts.trained and facts.base_models else None,
        datasets=[dataset_id(name) for name in facts.datasets] or None,
        metrics=(scores.metrics if scores else None) or None,
        tags=TAGS,
        model_name=facts.name if scores and scores.index else None,
        eval_results=(scores.index if scores else None) or None,
        part_licenses=licenses or None,
    )
    return data.to_yaml(original_order=_KEYS)


def _checked(text: str, facts: Facts, scores: HubScores | None) -> str:
    """`text`, once its front matter was read as the Hub's client reads it."""
    from huggingface_hub import ModelCard

    read = ModelCard(text).data
    if (read.get("eval_results") or []) != (scores.index if scores else []) or read.get("tags") != TAGS:
        raise RSMoEError(f"the facts of {facts.folder} do not come back out of a card's metadata; correct card.yaml")
    return text


# ---- words


def _made_by(facts: Facts) -> str:
    """The command that makes this checkpoint out of the settings in a folder of hub_configs; empty for a checkpoint."""
    folder, name = _use_folder(facts), facts.name
    if any(facts.folder.glob("model*.safetensors")):
        return ""
    if (facts.folder / SOURCES_FILE).is_file():
        return f"rsmoe assemble {name} --output {folder}" + ("" if facts.trained else " --untrained")
    if (facts.folder / PARTS_FILE).is_file():
        return f"rsmoe convert {name} --instructblip INSTRUCTBLIP --llm LLM --output {folder}"
    return ""


def _use_folder(facts: Facts) -> str:
    return facts.name.removeprefix("rs-moe-") if facts.trained else "start"


def _unlisted(facts: Facts) -> str:
    """Minutes of what is no row of the table of steps: "15 of them for features"."""
    minutes: Mapping[str, int] = facts.texts.training.minutes if facts.texts.training else {}
    listed = {step.name for step in facts.steps}
    return ", ".join(f"{value} minutes of them for {name}" for name, value in minutes.items() if name not in listed)


def _count(parameters: int) -> str:
    """134,515,008 -> "134.5 M"."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _single_blank_lines(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).strip() + "\n"


__all__ = ["CARD", "MARK", "card_text", "check_ours", "write_card"]
