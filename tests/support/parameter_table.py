"""Formats the table of OpenAI parameters in docs/openai-batch.md."""

from __future__ import annotations

from spoolama.evaluation.child.openai_lines import PARAMETERS
from spoolama.job.strict_json import canonical


def parameter_table() -> str:
    """Return the table of parameters in Markdown."""
    lines = ["| parameter | how it is used |", "|---|---|"]
    for parameter in PARAMETERS.values():
        what = parameter.note
        if parameter.treatment != "mapped":
            what = f"{parameter.treatment}: {what}"
        if parameter.harmless:
            what += f" (accepted: {', '.join(f'`{canonical(value)}`' for value in parameter.harmless)})"
        lines.append(f"| `{parameter.name}` | {what} |")
    lines.append("| anything else | refused: it could change the answer |")
    return "\n".join(lines) + "\n"
