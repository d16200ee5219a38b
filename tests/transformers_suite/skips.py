"""The one table of skipped common tests: each with its reason.

Every one of them is skipped by transformers' own code, on a machine without an accelerator; this project skips none. A
skipped test that no row names fails (conftest.py), as does a row that names no test (test_source.py).
"""

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest


WORST_LAST = ("passed", "skipped", "failed")
OUTCOMES = pytest.StashKey[dict[str, str]]()
"""Where conftest.py keeps the outcome of each common test of a session, by its node id."""


@dataclass(frozen=True)
class Skip:
    """Why some tests are skipped.

    Args:
        tests: Name of a test without its class, or a pattern of names (`*`). The first row that fits counts.
        kind: Short name of the cause; summaries are grouped by it.
        reason: One sentence.
    """

    tests: str
    kind: str
    reason: str


NO_ACCELERATOR = "no accelerator or its library"
NOT_THIS_MODEL = "a feature RS-MoE does not have"
NO_VIDEO_NO_AUDIO = "no video, no audio"

SKIPS = (
    Skip("test_flash_attn_*", NO_ACCELERATOR, "Flash attention needs a GPU and a package of its own."),
    Skip("test_kernels_can_load_*", NO_ACCELERATOR, "Needs the kernels package, which downloads GPU code."),
    Skip("test_sdpa_can_dispatch_on_flash", NO_ACCELERATOR, "Checks the flash kernel of sdpa on a GPU."),
    Skip("test_sdpa_can_compile_dynamic", NO_ACCELERATOR, "Compiles on an accelerator only."),
    Skip("test_torch_compile_for_training", NO_ACCELERATOR, "Slow (RUN_SLOW=1), and compiles on an accelerator only."),
    Skip("test_flex_attention_with_grads", NO_ACCELERATOR, "Flex attention with gradients needs an accelerator."),
    Skip("test_cpu_offload", NO_ACCELERATOR, "Offloads from an accelerator to memory."),
    Skip("test_disk_offload_*", NO_ACCELERATOR, "Offloads from an accelerator to disk."),
    Skip("test_can_load_with_*", NO_ACCELERATOR, "Loads straight onto an accelerator."),
    Skip("test_model_parallelism", NO_ACCELERATOR, "Needs several accelerators."),
    Skip("test_resize_*_with_deepspeed*", NO_ACCELERATOR, "Needs the deepspeed package."),
    Skip(
        "test_eager_matches_batched_and_grouped_inference_*",
        NOT_THIS_MODEL,
        "Compares grouped products of sparse mixture layers; our experts are adapters of sequences, not layers.",
    ),
    Skip("test_moe_models_record_router_logits", NOT_THIS_MODEL, "No router logits: our router writes text."),
    Skip("test_output_router_logits_from_config", NOT_THIS_MODEL, "No router logits: our router writes text."),
    Skip("test_encoder_decoder_loss_no_double_shift", NOT_THIS_MODEL, "Not an encoder-decoder."),
    Skip("test_model_rope_with_partial_rotation", NOT_THIS_MODEL, "The tester's decoder (Llama) rotates whole heads."),
    Skip("test_vision_axial_rope", NOT_THIS_MODEL, "The tester's vision encoder (DINOv2) has learned positions."),
    Skip("test_resize_position_vector_embeddings", NOT_THIS_MODEL, "Positions are rotary: nothing to resize."),
    Skip("test_sliding_window_mask", NOT_THIS_MODEL, "A sliding window is a matter of the decoder's own config."),
    Skip("test_sdpa_can_dispatch_non_composite_models", NOT_THIS_MODEL, "Composite: that test runs instead."),
    Skip("test_*audio*", NO_VIDEO_NO_AUDIO, "The processor takes images and text."),
    Skip("test_*video*", NO_VIDEO_NO_AUDIO, "The processor takes images and text."),
    Skip("test_apply_chat_template_tool_calls_no_content", NOT_THIS_MODEL, "The chat template knows no tools."),
)


def find(test: str) -> Skip | None:
    """Returns the first row of the table for a test's name (without its class), or None."""
    return next((skip for skip in SKIPS if fnmatchcase(test, skip.tests)), None)


def count(outcomes: dict[str, str]) -> list[tuple[Skip, int]]:
    """Returns (row of the table, number of skipped tests it covers), in the order of the table, without empty ones."""
    counted = Counter(find(nodeid.split("::")[-1]) for nodeid, outcome in outcomes.items() if outcome == "skipped")
    return [(skip, counted[skip]) for skip in SKIPS if counted[skip]]
