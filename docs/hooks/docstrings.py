"""Docstrings in transformers' form, as mkdocstrings reads them: Google's form with links between classes.

``name (`torch.Tensor` of shape `(n, 3)`, *optional*):`` keeps its shape beside the signature's type; a type that the
signature already has is left out. ``[`RSMoEConfig`]`` becomes a link.
"""

import re
from typing import Any

import griffe


PARAMETER = re.compile(r"^( *)([*\w]+) \((`.*)\):(.*)$", flags=re.M)
REFERENCE = re.compile(r"\[`(RSMoE\w+)`\](?![\[(])")


class TransformersDocstrings(griffe.Extension):
    """Rewrites each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if PARAMETER.match(text) and obj.is_function:
            # `auto_docstring` writes the header itself.
            text = "Args:\n" + re.sub(r"^(?=.)", "    ", text, flags=re.M)
        parameters = obj.parameters if obj.is_function else ()
        typed = {parameter.name for parameter in parameters if parameter.annotation is not None}

        def without_type(match: re.Match) -> str:
            indent, name, told, rest = match.groups()
            if name in typed and " of shape " not in told:
                return f"{indent}{name}:{rest}"
            return f"{indent}{name}: {told}.{rest}"

        text = PARAMETER.sub(without_type, text)
        obj.docstring.value = REFERENCE.sub(r"[`\1`][modeling_rsmoe.\1]", text)
