"""The one place that makes text harmless for a terminal.

What comes of models, files and other machines could move the cursor, change the title, or type into the shell. Pure.
"""

from __future__ import annotations

import re

# C0 and C1 but for tab and newline, the overrides of writing direction, halves of characters
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """`text` without control characters other than tab and newline."""
    return _CONTROL.sub("", text)
