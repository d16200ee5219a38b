"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..inference.checkpoint import DEFAULT_MODEL
from ..inference.loading import LIMITS


if TYPE_CHECKING:
    from ..inference import GenerationSettings

BATCH_SIZE = 8
_CHECKPOINTS = "the checkpoint's"

RouterMode = Literal["generated", "template", "none"]
Fusion = Literal["auto", "rerank", "rewrite", "concat", "sentences"]
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int8-dynamic", "nf4"]
RouterOption = Annotated[
    RouterMode | None,
    typer.Option(
        metavar="MODE",
        help="What each expert is asked. generated: a prompt that the router writes; template: a fixed prompt; "
        "none: the instruction itself.",
        show_default=_CHECKPOINTS,
    ),
]
FusionOption = Annotated[
    Fusion | None,
    typer.Option(
        metavar="MODE",
        help="How the experts' texts become one. concat: one after the other, without repeated sentences; rewrite: "
        "written by the base LM, which reads them; rerank: of them and the base LM's own caption the one that "
        "fits the image best; sentences: of all their sentences those that the image supports and that say something "
        "new (both need a reranker); auto: rerank for captions and sentences for details where there is a reranker, "
        "else concat for details and rewrite for all others.",
        show_default=f"{_CHECKPOINTS}, usually auto",
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=LIMITS["max_new_tokens"][1],
        metavar="N",
        help="Longest text of an expert, in tokens. A paragraph's default is the checkpoint's detail_max_new_tokens.",
        show_default=_CHECKPOINTS,
    ),
]
NumBeamsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=LIMITS["num_beams"][1],
        metavar="N",
        help="Beams of the search; 1 is greedy.",
        show_default=_CHECKPOINTS,
    ),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        help="Give no text that is less likely right than this, from 0 to 1. In its place stands that the model does "
        "not know.",
        show_default="every text is given",
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images, or tiles of a scene, that are described together.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A checkpoint: a folder, or a name on the Hub.",
        show_default=f"{DEFAULT_MODEL}, assembled on first use",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        metavar="TYPE",
        help="Weight dtype: float32, bfloat16, float16; int8 or int8-dynamic (torchao); nf4 (bitsandbytes).",
        show_default="float32, on a GPU bfloat16; the checkpoint's where it is quantised",
    ),
]
DetailOption = Annotated[
    bool,
    typer.Option("--detail", help='Write a paragraph: as --instruction "Describe the image in detail."'),
]
FolderOption = Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that DIR holds already.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for each image, on a line of its own.")
]


@dataclass(frozen=True)
class Generation:
    """The options of a command that runs a model; None is the checkpoint's own setting."""

    router: RouterMode | None
    fusion: Fusion | None
    max_new_tokens: int | None
    num_beams: int | None
    min_confidence: float | None
    batch_size: int
    model: str | None

    def settings(self) -> "GenerationSettings":
        from ..inference import GenerationSettings

        return GenerationSettings(self.router, self.fusion, self.max_new_tokens, self.num_beams, self.min_confidence)
