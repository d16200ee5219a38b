"""A plugin of lmms-eval: `LMMS_EVAL_PLUGINS=lmms_eval_rsmoe` reads this list of models."""

AVAILABLE_MODELS = {"rsmoe": "RSMoE"}
