"""The page of `rsmoe demo`: a Gradio app around a checkpoint.

Everything is served from this machine: no fonts, scripts or telemetry of others. Each visitor's image and answers live
in a session of theirs; the queue lets one event after another use the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..generation_rsmoe import DEFAULTS
from ..inference.checkpoint import Checkpoint
from ..inference.predict import GenerationSettings, Prediction, Predictor
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION, question_instruction
from ..utils.extras import require
from ..utils.html import render
from ..utils.images import read_image
from .guard import Guard
from .images import EncodedImage, encode_upload


if TYPE_CHECKING:
    import gradio as gr
else:
    gr = require("gradio", "demo")

UPLOAD_LIMIT_MB = 200
MAX_QUESTION_CHARACTERS = 500
_MAX_BANDS_CHARACTERS = 100
KEEP_SECONDS = 3600  # of an idle visitor's image, and of uploaded files
_GALLERY_COLUMNS = 3
_THUMBNAIL_SIDE = 256
_MAX_QUEUE = 64  # events of all visitors
_MAX_SESSIONS = 200
_TEMPLATES = Path(__file__).parent
_ROUTER_MODES = [("the router's prompts", "generated"), ("fixed prompts", "template"), ("the instruction", "none")]
_FUSIONS = [
    ("automatic", "auto"),
    ("the base LM, which reads the expert texts", "rewrite"),
    ("the expert texts, one after another", "concat"),
]
_RERANK = [  # of captions, where the checkpoint has a reranker
    ("the best of all, by the reranker", "rerank"),
    ("the sentences that the image supports", "sentences"),
]


@dataclass(frozen=True)
class Entry:
    """A text on the page under its heading."""

    heading: str  # a question, or what kind of text it is
    prediction: Prediction = Prediction()  # what is known so far
    is_complete: bool = False

    @property
    def status(self) -> str:
        """What is being done while there is no text yet."""
        if not self.prediction.router_prompts:
            return "the router writes a prompt for each expert"
        return "the text is put together" if self.prediction.expert_texts else "the experts write"


@dataclass(frozen=True)
class Session:
    """What one visitor sees: an image, and the questions about it, the last one first."""

    image: EncodedImage
    answers: tuple[Entry, ...] = ()


def make_page(checkpoint: Checkpoint, examples: Sequence[Path] = ()) -> gr.Blocks:
    """The page, to be given to `launch`.

    Args:
        checkpoint: that describes the images.
        examples: image files that are offered to visitors who have none at hand.
    """
    with gr.Blocks(
        title=f"RS-MoE: {checkpoint.public_name}", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        _connect(_lay_out(checkpoint, examples), _Events(checkpoint, list(examples)))
    return page


def _lay_out(checkpoint: Checkpoint, examples: Sequence[Path]) -> SimpleNamespace:
    """What the page's events read and change, by name."""
    widgets = SimpleNamespace()
    widgets.session = gr.State(None, time_to_live=KEEP_SECONDS)
    gr.HTML(render(_TEMPLATES / "head.html", model=checkpoint.public_name), elem_classes="rsmoe-head")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            widgets.file = gr.File(label="Image or GeoTIFF", height=140, elem_id="file")
            widgets.image = gr.Image(
                label="What the model sees", interactive=False, visible=False, buttons=[], elem_id="image"
            )
            widgets.gallery = _gallery(examples)
        with gr.Column(scale=3, min_width=300):
            widgets.message = gr.HTML(visible=False, elem_id="message")
            widgets.caption = gr.HTML(render(_TEMPLATES / "welcome.html"), elem_id="caption")
            widgets.question = gr.Textbox(
                label="Question about this image",
                placeholder="Is there a road?",
                submit_btn="Ask",
                max_length=MAX_QUESTION_CHARACTERS,
                max_lines=1,
                interactive=True,
                elem_id="question",
            )
            widgets.answers = gr.HTML(elem_id="answers")
    with gr.Row(elem_id="settings"):
        widgets.router_mode = gr.Radio(
            _ROUTER_MODES, min_width=300, label="Each expert is asked by", value=_default(checkpoint, "router_mode")
        )
        widgets.fusion = gr.Radio(
            _FUSIONS if checkpoint.model.model.reranker is None else [*_FUSIONS, *_RERANK],
            min_width=300,
            label="The text is made by",
            value=_default(checkpoint, "fusion"),
        )
        widgets.detail = gr.Checkbox(label="Describe in detail", container=True, min_width=160, elem_id="detail")
        widgets.bands = gr.Textbox(
            label="Bands of a GeoTIFF (--bands)",
            placeholder="as the file says",
            max_length=_MAX_BANDS_CHARACTERS,
            max_lines=1,
            interactive=True,
            elem_id="bands",
        )
    return widgets


def _gallery(examples: Sequence[Path]) -> gr.Gallery:
    thumbnails = []
    for file in examples:
        image = read_image(file)
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        thumbnails.append((image, file.name))
    return gr.Gallery(
        thumbnails,
        label="Examples",
        columns=_GALLERY_COLUMNS,
        rows=-(-len(examples) // _GALLERY_COLUMNS) or 1,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(examples),
        elem_id="examples",
    )


def _default(checkpoint: Checkpoint, name: str) -> str:
    """A setting as the checkpoint has it."""
    return str(getattr(checkpoint.model.generation_config, name, None) or DEFAULTS[name])


def _connect(widgets: SimpleNamespace, events: "_Events") -> None:
    settings = [widgets.router_mode, widgets.fusion, widgets.detail]
    outputs = [widgets.message, widgets.session, widgets.image, widgets.caption, widgets.answers]
    common: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    captions: dict[str, Any] = {**common, "show_progress": "minimal", "show_progress_on": widgets.caption}
    running = [
        widgets.file.upload(events.open_file, [widgets.file, widgets.bands, *settings], outputs, **captions),
        widgets.bands.submit(events.open_file, [widgets.file, widgets.bands, *settings], outputs, **captions),
        widgets.gallery.select(events.open_example, settings, [widgets.file, *outputs], **captions),
        widgets.router_mode.input(events.caption_again, [widgets.session, *settings], outputs, **captions),
        widgets.fusion.input(events.caption_again, [widgets.session, *settings], outputs, **captions),
        widgets.detail.input(events.caption_again, [widgets.session, *settings], outputs, **captions),
    ]
    answer = widgets.question.submit(
        events.ask,
        [widgets.question, widgets.session, widgets.router_mode, widgets.fusion],
        [widgets.message, widgets.session, widgets.question, widgets.answers],
        show_progress="minimal",
        show_progress_on=widgets.answers,
        **common,
    )
    # Another image ends the answer that is being written about the last one.
    for trigger in (widgets.file.upload, widgets.gallery.select):
        trigger(None, cancels=[answer], api_visibility="private")
    widgets.file.clear(events.clear, None, outputs, queue=False, cancels=[*running, answer], api_visibility="private")


def launch(
    page: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    upload_limit: int = UPLOAD_LIMIT_MB,
) -> tuple[str, str | None]:
    """Serve the page in threads of this process, until `page.close()`.

    Args:
        page: of `make_page`.
        host: the address to listen at; by default this machine alone, or what a Space sets.
        port: by default 7860 or the next that is free.
        share: ask gradio.live for a public link, too.
        upload_limit: megabytes of a file.

    Returns:
        The page's URL here, and the public one.

    Raises:
        RSMoEError: the address cannot be listened at, or there is no public link to be had.
    """
    from starlette.middleware import Middleware  # comes with gradio

    font = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    page.queue(max_size=_MAX_QUEUE, api_open=False)
    try:
        _, url, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=upload_limit * 10**6,
            theme=gr.themes.Default(primary_hue="blue", font=font, font_mono=mono),
            css_paths=_TEMPLATES / "page.css",
            state_session_capacity=_MAX_SESSIONS,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        where = f"port {port}" if port else "a port"
        raise RSMoEError(
            f"cannot listen at {where} of {host or 'this machine'}: give another --port or --host"
        ) from error
    if share and not public:
        page.close()
        raise RSMoEError("gradio.live gave no public link: check the connection, or leave --share out")
    return url, public


class _Events:
    """What the page's events do. Each yields values for its outputs, in order; `gr.skip()` leaves one as it is.

    A field is None where somebody is faster than the page, which sets its values after it is shown.
    """

    def __init__(self, checkpoint: Checkpoint, examples: list[Path]) -> None:
        self._model, self._processor, self._examples = checkpoint.model, checkpoint.processor, examples

    def open_file(
        self, file: str | None, bands: str | None, router_mode: str, fusion: str, in_detail: bool = False
    ) -> Iterator[tuple]:
        if file is not None:
            yield from self._open(Path(file), bands or "", router_mode, fusion, in_detail)

    def open_example(self, router_mode: str, fusion: str, in_detail: bool, event: gr.SelectData) -> Iterator[tuple]:
        for values in self._open(self._examples[event.index], "", router_mode, fusion, in_detail):
            yield None, *values  # the file that was dropped before is no longer what is shown

    def caption_again(
        self, session: Session | None, router_mode: str, fusion: str, in_detail: bool = False
    ) -> Iterator[tuple]:
        """The same encoded image under other settings."""
        if session is not None:
            yield from self._caption(session, router_mode, fusion, in_detail, gr.skip())

    def _open(self, file: Path, bands: str, router_mode: str, fusion: str, in_detail: bool) -> Iterator[tuple]:
        try:
            image = encode_upload(Predictor(self._model, self._processor), file, bands[:_MAX_BANDS_CHARACTERS])
        except RSMoEError as error:
            yield _problem(str(error)), None, gr.update(visible=False), "", ""
            return
        label = f"{image.name}, {image.size[0]} x {image.size[1]} pixels"
        update = gr.update(value=image.preview, visible=True, label=label)
        yield from self._caption(Session(image), router_mode, fusion, in_detail, update)

    def _caption(
        self, session: Session, router_mode: str, fusion: str, in_detail: bool, image: Any
    ) -> Iterator[tuple]:
        empty, skip = Entry("Description" if in_detail else "Caption"), gr.skip()
        instruction = DETAIL_INSTRUCTION if in_detail else DEFAULT_INSTRUCTION
        yield _problem(None), session, image, self._render(empty), self._render(*session.answers)
        for entry in self._predict(empty, session.image, instruction, router_mode, fusion):
            yield skip, skip, skip, self._render(entry), skip

    def ask(self, question: str | None, session: Session | None, router_mode: str, fusion: str) -> Iterator[tuple]:
        skip = gr.skip()
        question = " ".join((question or "").split())
        problem = None if question else "the question is empty"
        if len(question) > MAX_QUESTION_CHARACTERS:  # the page's field takes no more, but others may ask
            problem = f"the question has more than {MAX_QUESTION_CHARACTERS} characters"
        if session is None:
            problem = "first choose an image"
        if session is None or problem:
            yield _problem(problem), skip, skip, skip
            return
        # The reranker knows captions, no answers.
        fusion = "rewrite" if fusion in ("rerank", "sentences") else fusion
        updates = _problem(None), ""  # of the message and the question, once
        try:
            instruction = question_instruction(question)
            for entry in self._predict(Entry(question), session.image, instruction, router_mode, fusion):
                answered = replace(session, answers=(entry, *session.answers))
                yield updates[0], answered, updates[1], self._render(*answered.answers)
                updates = skip, skip
        except RSMoEError as error:
            yield _problem(str(error)), session, skip, skip

    def clear(self) -> tuple:
        image = gr.update(value=None, visible=False)
        return _problem(None), None, image, render(_TEMPLATES / "welcome.html"), ""

    def _predict(
        self, entry: Entry, image: EncodedImage, instruction: str, router_mode: str, fusion: str
    ) -> Iterator[Entry]:
        """The entry as its text grows. Closing the iterator stops the generation."""
        settings = GenerationSettings(router_mode=router_mode, fusion=fusion)
        predictor = Predictor(self._model, self._processor, settings)
        with closing(predictor.stream(instruction=instruction, image_embeds=image.embeds)) as predictions:
            for prediction in predictions:
                entry = replace(entry, prediction=prediction)
                yield entry
        yield replace(entry, is_complete=True)

    def _render(self, *entries: Entry) -> str:
        """The first entry with its steps in sight, those of the others folded."""
        return render(_TEMPLATES / "predictions.html", entries=entries, experts=self._processor.experts)


def _problem(text: str | None) -> Any:
    value = "" if text is None else render(_TEMPLATES / "message.html", text=text)
    return gr.update(value=value, visible=text is not None)
