"""What every output holds: columns of tables and fields of JSON with their types and meanings, for the documents.

`EXPERT` stands for each expert's name. Types are JSON's; where a Parquet has another it says so. The writers are in
`scenes/outputs.py`, `scenes/result.py`, `scenes/change_result.py`, `collection/` and `evaluation/predict.py`; the
tests hold what they write against these tables.
"""

EXPERT = "EXPERT"
Columns = dict[str, tuple[str, str]]  # name -> type, meaning

_TEXTS: Columns = {
    "caption": ("string", "The caption, where no question was asked."),
    "question": ("string", "What was asked."),
    "answer": ("string", "The answer, beside the question."),
}
_EXPERTS: Columns = {
    f"expert_text_{EXPERT}": ("string", "What this expert wrote."),
    f"router_prompt_{EXPERT}": ("string", "What the router asked it."),
}
_CONFIDENCE: Columns = {
    "confidence": (
        "number",
        "The probability that the caption or answer is right, from 0 to 1. Of a checkpoint that was fitted to say so.",
    ),
}
_CONFIDENCES: Columns = {
    **_CONFIDENCE,
    f"expert_confidence_{EXPERT}": ("number", "Likewise, of this expert's text."),
}
_NESTED_CONFIDENCES: Columns = {
    **_CONFIDENCE,
    "expert_confidences": ("object", "Likewise of the expert texts, by the experts' names."),
}
_NESTED_EXPERTS: Columns = {
    "router_prompts": ("object", "What each expert was asked, by its name."),
    "expert_texts": ("object", "What each expert wrote, by its name."),
}
_SENTENCES: Columns = {
    "sentences": (
        "string",
        "Of a paragraph (--detail): each sentence after its writer in brackets, an expert, base LM or rewriting. In "
        "JSON lines an array of objects with text and writer.",
    ),
}
_WINDOW: Columns = {
    "column": ("integer", "Left edge of the tile in the raster, in pixels."),
    "row": ("integer", "Upper edge."),
    "width": ("integer", "Width of the tile, in pixels."),
    "height": ("integer", "Its height."),
}
_CHECKPOINT: Columns = {
    "model": ("string", "The checkpoint's name."),
    "revision": ("string", "Its commit on the Hub, or the first 12 digits of its folder's hash."),
}
_SCORE: Columns = {
    "score": (
        "number",
        "How well the caption fits the tile, by the reranker: about the share of n-grams that a human caption would "
        "have, too. Only where it chose the text. No probability: it compares tiles of one model.",
    ),
}

# A described tile of a scene: a feature of GeoJSON, a row of GeoPackage or GeoParquet.
TILE: Columns = {
    "scene": ("string", "The raster's name."),
    "tile": ("integer", "The tile's number, row by row, from 0."),
    **_TEXTS,
    **_EXPERTS,
    **_SENTENCES,
    **_WINDOW,
    "valid": ("number", "Share of its pixels that are data, from 0 to 1."),
    **_SCORE,
    **_CONFIDENCES,
    **_CHECKPOINT,
    "style": ("object", "Colors for web maps. Only in GeoJSON."),
    "geometry": ("geometry", "Where the tile lies."),
}

# A scene as a whole.
SCENE: Columns = {
    "scene": ("string", "The raster's name."),
    **_TEXTS,
    "expert_texts": ("object", "Of each expert the most typical text, which the caption was written from."),
    "mentioned": ("object", "Nouns of the tiles' captions, with the share of tiles that mention them."),
    "instruction": ("string", "What every tile was asked, for captions."),
    "how": ("string", "How the tiles' answers became one, for questions."),
    "tiles": ("integer", "Tiles that were described."),
    "skipped": ("integer", "Tiles that are mostly without data."),
    "tile_size": ("integer", "Side of a tile, in pixels."),
    "overlap": ("integer", "Overlap of neighboring tiles, in pixels."),
    "width": ("integer", "Width of the raster, in pixels."),
    "height": ("integer", "Its height."),
    "bands": ("array", "Numbers of the bands that were shown, from 1."),
    "stretch": ("object or null", "Lowest and highest value of each band that was shown; null for 8 bits."),
    "crs": ("string or null", "The raster's coordinate system."),
    "notes": ("array", "What was decided in reading it, in words."),
    **_CHECKPOINT,
}

# A tile on two dates.
CHANGE: Columns = {
    "tile": TILE["tile"],
    "differs": ("boolean", "Whether the descriptions differ."),
    "difference": ("string", "What differs, in a sentence."),
    "appears": ("string", "Nouns that only the later date names, with commas between them."),
    f"appears_{EXPERT}": ("string", "Those that this expert names."),
    "disappears": ("string", "Nouns that only the earlier date names."),
    f"disappears_{EXPERT}": ("string", "Those that this expert names."),
    "..._before": (
        "",
        "`scene`, texts, `score` and confidences of the earlier date, each under its name with this ending.",
    ),
    "..._after": ("", "Those of the later date."),
    **_WINDOW,
    "valid": TILE["valid"],
    **_CHECKPOINT,
    "style": TILE["style"],
    "geometry": TILE["geometry"],
}

_FILE: Columns = {
    "image": ("string", "The path within the folder, or as it stands in the list."),
    "sha256": ("string", "Hash of the file that was read."),
}
_SIZE: Columns = {
    "width": ("int32", "Width of the image, in pixels."),
    "height": ("int32", "Its height."),
}
_ERROR: Columns = {"error": ("string", "Why there is no text or no features; null in good rows.")}

# An image of a collection, captioned.
IMAGE: Columns = {
    **_FILE,
    **_SIZE,
    "caption": ("string", "The caption."),
    "router_prompts": ("struct", "What each expert was asked, by its name."),
    "expert_texts": ("struct", "What each expert wrote, by its name."),
    **_CONFIDENCE,
    "expert_confidences": ("struct", "Likewise of the expert texts, by the experts' names."),
    **_ERROR,
    **_CHECKPOINT,
}

# An image of a collection, encoded.
FEATURES: Columns = {
    **_FILE,
    **_SIZE,
    "features": ("tensor", "The image encoder's output, of shape `[patches, width]`, in float16 or float32."),
    "encoder_sha256": ("string", "Hash of the encoder that made them."),
    **_ERROR,
    **_CHECKPOINT,
}

# A tile of a collection of scenes.
COLLECTION_TILE: Columns = {
    **{name: column for name, column in TILE.items() if name in ("scene", "tile", "caption")},
    **_EXPERTS,
    **_CONFIDENCES,
    **_WINDOW,
    "valid": TILE["valid"],
    **_CHECKPOINT,
    "status": ("string", "`described`; `skipped`: mostly no data, without texts; `error`."),
    "error": ("string", "Why a tile could not be read. A scene that cannot be opened has one row, with `tile` null."),
    "geometry": ("WKB", "The footprint in WGS84."),
}

# A line of a predictions file.
PREDICTION: Columns = {
    "image": ("string", "The image, relative to the data folder."),
    "dataset": ("string", "The record's dataset."),
    "split": ("string", "Its split."),
    "question": ("string", "The question. Not of a caption."),
    "caption": ("string", "What the model wrote about the image."),
    "answer": ("string", "What it answered, in place of `caption`."),
    **_NESTED_EXPERTS,
    "sentences": ("array", "Of a paragraph (--detail): each sentence as an object with `text` and `writer`."),
    "score": ("number", "How well the caption fits the image, by the reranker. Only where it chose the text."),
    **_NESTED_CONFIDENCES,
    "seconds": ("number", "The record's share of the time of its batch."),
    "peak_memory": ("integer", "Largest memory of the process until then, in bytes."),
}
