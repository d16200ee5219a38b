"""The page of `rsmoe demo`: a Gradio app around a `Viewer`. Everything is served from this machine: no fonts, scripts or
telemetry of others.

Each visitor's image and answers live in a session of theirs; the queue lets one event after another use the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..generation_rsmoe import DEFAULTS
from ..prompting_rsmoe import question_instruction
from ..utils.extras import require
from ..utils.html import render
from .viewer import Encoded, Told, Viewer


if TYPE_CHECKING:
    import gradio as gr
else:
    gr = require("gradio", "demo")

UPLOAD_LIMIT_MB = 200
LONGEST_QUESTION = 500  # letters
KEPT_SECONDS = 3600  # of an idle visitor's image, and of uploaded files
_COLUMNS = 3  # of example images
_MOST_WAITING = 64  # events of all visitors
_MOST_VISITORS = 200
_ROUTER_MODES = [("the router's prompts", "generated"), ("fixed prompts", "template"), ("the instruction", "none")]
_FUSIONS = [("the base LM, which reads the parts", "rewrite"), ("the parts, one after another", "concat")]
_CHOICE = ("the best of all, by the reranker", "rerank")  # of captions, where the checkpoint has a reranker


@dataclass(frozen=True)
class Session:
    """What one visitor sees: an image, and the questions asked about it, the last one first."""

    image: Encoded
    answers: tuple[tuple[str, Told], ...] = ()


def make_page(viewer: Viewer, examples: Sequence[Path] = ()) -> gr.Blocks:
    """The page, to be given to `launch`.

    Args:
        examples: image files that are offered to whoever has none at hand.
    """
    steps = _Steps(viewer, list(examples))
    with gr.Blocks(
        title=f"RS-MoE: {viewer.name}", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        session = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.HTML(render(_TEMPLATES / "head.html", model=viewer.name), elem_classes="rsmoe-head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                file = gr.File(label="Image or GeoTIFF", height=140, elem_id="file")
                picture = gr.Image(
                    label="What the model sees", interactive=False, visible=False, buttons=[], elem_id="picture"
                )
                gallery = gr.Gallery(
                    _thumbnails(examples),
                    label="Examples",
                    columns=_COLUMNS,
                    rows=-(-len(examples) // _COLUMNS) or 1,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=300):
                message = gr.HTML(visible=False, elem_id="message")
                caption = gr.HTML(render(_TEMPLATES / "welcome.html"), elem_id="caption")
                question = gr.Textbox(
                    label="Question about this image",
                    placeholder="Is there a road?",
                    submit_btn="Ask",
                    max_length=LONGEST_QUESTION,
                    max_lines=1,
                    interactive=True,
                    elem_id="question",
                )
                answers = gr.HTML(elem_id="answers")
        with gr.Row(elem_id="settings"):
            router = gr.Radio(
                _ROUTER_MODES, min_width=300, label="Each expert is asked by", value=steps.default("router_mode")
            )
            compose = gr.Radio(
                [_CHOICE, *_FUSIONS] if viewer.chooses else _FUSIONS,
                min_width=300,
                label="The text is made by",
                value="rerank" if viewer.chooses else steps.default("fusion"),
            )
            bands = gr.Textbox(
                label="Bands of a GeoTIFF (--bands)",
                placeholder="as the file says",
                max_length=100,
                max_lines=1,
                interactive=True,
                elem_id="bands",
            )

        settings = [router, compose]
        shown = [message, session, picture, caption, answers]
        common: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        looking: dict[str, Any] = {**common, "show_progress": "minimal", "show_progress_on": caption}
        looks = [
            file.upload(steps.look_at_file, [file, bands, *settings], shown, **looking),
            bands.submit(steps.look_at_file, [file, bands, *settings], shown, **looking),
            gallery.select(steps.look_at_example, settings, [file, *shown], **looking),
            router.input(steps.look_again, [session, *settings], shown, **looking),
            compose.input(steps.look_again, [session, *settings], shown, **looking),
        ]
        asked = question.submit(
            steps.ask,
            [question, session, *settings],
            [message, session, question, answers],
            show_progress="minimal",
            show_progress_on=answers,
            **common,
        )
        # Another image ends what is still being said about the last one.
        for trigger in (file.upload, gallery.select):
            trigger(None, cancels=[asked], api_visibility="private")
        file.clear(steps.forget, None, shown, queue=False, cancels=[*looks, asked], api_visibility="private")
    return page


def launch(
    page: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    upload_limit: int = UPLOAD_LIMIT_MB,
) -> tuple[str, str | None]:
    """Serve the page in threads of this process, until `page.close()`.

    Args:
        host: the address to listen at; by default this machine alone, or what a Space sets.
        port: by default 7860 or the next that is free.
        share: ask gradio.live for a public link, too.
        upload_limit: megabytes of a file.

    Returns:
        The page's URL here, and the public one.

    Raises:
        RSMoEError: the address cannot be listened at, or there is no public link to be had.
    """
    font = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    page.queue(max_size=_MOST_WAITING, api_open=False)
    try:
        _, url, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=upload_limit * 10**6,
            theme=gr.themes.Default(primary_hue="blue", font=font, font_mono=mono),
            css_paths=_TEMPLATES / "page.css",
            state_session_capacity=_MOST_VISITORS,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
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


_TEMPLATES = Path(__file__).parent


class _Steps:
    """What the page's events do. Each yields values for its outputs, in order; `gr.skip()` leaves one as it is."""

    def __init__(self, viewer: Viewer, examples: list[Path]) -> None:
        self._viewer = viewer
        self._examples = examples

    def default(self, name: str) -> str:
        """A setting as the checkpoint has it."""
        return str(getattr(self._viewer.generation, name, None) or DEFAULTS[name])

    def look_at_file(self, file: str | None, bands: str, router: str, compose: str) -> Iterator[tuple]:
        if file is not None:
            yield from self._look(Path(file), bands, router, compose)

    def look_at_example(self, router: str, compose: str, event: gr.SelectData) -> Iterator[tuple]:
        for values in self._look(self._examples[event.index], "", router, compose):
            yield None, *values  # the file that was dropped before is no longer what is shown

    def look_again(self, session: Session | None, router: str, compose: str) -> Iterator[tuple]:
        """The same encoded image under other settings."""
        if session is not None:
            yield from self._caption(session, router, compose, gr.skip())

    def _look(self, file: Path, bands: str, router: str, compose: str) -> Iterator[tuple]:
        try:
            session = Session(self._viewer.encode(file, bands))
        except RSMoEError as error:
            yield self._problem(error), None, gr.update(visible=False), "", ""
            return
        image = session.image
        label = f"{image.name}, {image.size[0]} x {image.size[1]} pixels"
        yield from self._caption(session, router, compose, gr.update(value=image.picture, visible=True, label=label))

    def _caption(self, session: Session, router: str, compose: str, picture: Any) -> Iterator[tuple]:
        skip, calm = gr.skip(), self._problem(None)
        yield calm, session, picture, self._render([("Caption", Told(), True)]), self._answers(session)
        for told in self._viewer.tell(session.image, router_mode=router, fusion=compose):
            yield skip, skip, skip, self._render([("Caption", told, True)]), skip

    def ask(self, question: str, session: Session | None, router: str, compose: str) -> Iterator[tuple]:
        skip = gr.skip()
        question = " ".join(question.split())
        problem = "first choose an image" if session is None else "the question is empty" if not question else None
        if session is None or problem:
            yield self._problem(problem), skip, skip, skip
            return
        before, shown = session, False
        compose = "rewrite" if compose == "rerank" else compose  # the reranker knows captions, no answers
        try:
            for told in self._viewer.tell(
                session.image, question_instruction(question), router_mode=router, fusion=compose
            ):
                session = replace(before, answers=((question, told), *before.answers))
                yield (
                    (skip if shown else self._problem(None)),
                    session,
                    (skip if shown else ""),
                    self._answers(session),
                )
                shown = True
        except RSMoEError as error:
            yield self._problem(error), before, skip, skip

    def forget(self) -> tuple:
        return self._problem(None), None, gr.update(value=None, visible=False), render(_TEMPLATES / "welcome.html"), ""

    def _answers(self, session: Session) -> str:
        """The last answer with its steps in sight, those of the others folded."""
        return self._render([(question, told, i == 0) for i, (question, told) in enumerate(session.answers)])

    def _render(self, said: list[tuple[str, Told, bool]]) -> str:
        items = [
            {"heading": heading, "told": told, "open": open_, "doing": _doing(told)} for heading, told, open_ in said
        ]
        return render(_TEMPLATES / "told.html", items=items, experts=self._viewer.experts)

    def _problem(self, problem: Any) -> Any:
        text = "" if problem is None else render(_TEMPLATES / "message.html", text=str(problem))
        return gr.update(value=text, visible=problem is not None)


def _doing(told: Told) -> str:
    if not told.router_prompts:
        return "the router writes what to ask each expert"
    return "the experts look" if not told.parts else "the text is put together"


def _thumbnails(examples: Sequence[Path]) -> list[Any]:
    from ..utils.images import read_image

    pictures = [read_image(file) for file in examples]
    for picture in pictures:
        picture.thumbnail((256, 256))
    return [(picture, file.name) for picture, file in zip(pictures, examples, strict=True)]
