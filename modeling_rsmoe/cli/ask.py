"""`rsmoe ask IMAGE QUESTION`: a question about an image, answered in a word or phrase."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from . import shared


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file or URL.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.", show_default=False)],
    router: shared.RouterOption = None,
    compose: shared.ComposeOption = "llm",
    max_new_tokens: shared.MaxNewTokensOption = None,
    num_beams: shared.NumBeamsOption = None,
    model: shared.ModelOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Answer a question about an image in a word or phrase.

    The experts look at the image under the question; the LLM block reads what they found and answers.
    """
    question = question.strip()
    if not question:
        raise RSMoEError('the question is empty: ask for example "Is there a road?"')
    settings = shared.Settings(router, compose, max_new_tokens, num_beams, 1, model)
    with shared.Steps() as steps:
        kept = shared.check_images([image], 1, steps)
        loaded = shared.load(model, steps)
        from ..processing_rsmoe import answer_prompt  # not at the top: it imports transformers

        for result in shared.look_at([image], kept, answer_prompt(question), settings, loaded, steps):
            texts = {"question": question, "answer": result.text}
            shared.show(result, texts, loaded.name, as_json, steps)
