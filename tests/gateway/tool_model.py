"""A model that answers everything with one call of the tool `get_weather`, in the words of Hermes' chat template.

Made of `bench.make_model`'s walk: the answer is a walk through the pieces of the call, and then the end.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from bench.make_model import PRESETS, SPECIALS, Matrix, Writer

CITY = "Paris"
PIECES = ('<tool_call>\n{"name": "get_weather", ', '"arguments": ', '{"city": ', f'"{CITY}"}}', "}\n</tool_call>")
_EOS = 2
_NEWLINE = len(SPECIALS) + ord("\n")
"""The prompt's last token, which the answer begins after."""

TEMPLATE = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call, return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class _Calling(Writer):
    def output(self, embedding: Matrix) -> Matrix:
        """Each piece of the call makes the next one likeliest, and the last one the end."""
        output = np.zeros((self.shape.vocab, self.shape.width), np.float32)
        first = self.shape.vocab - len(PIECES)
        gain = np.float32(4.0 / np.sqrt(self.shape.width))
        steps = [_NEWLINE, *range(first, self.shape.vocab), _EOS]
        for last, following in itertools.pairwise(steps):
            output[following] = embedding[last] * gain
        return output


def write(path: Path) -> Path:
    """Writes the model and returns `path`."""
    pieces = [piece.replace(" ", "\u2581") for piece in PIECES]
    return _Calling(path, PRESETS["tiny"], walk=True, pieces=pieces, template=TEMPLATE).write("calling")
