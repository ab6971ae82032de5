"""How llama.cpp's server says in a reply what is wrong. Pure; what it means is for who asked."""

from __future__ import annotations

import msgspec


class LlamaFault(msgspec.Struct, frozen=True):
    """The error; the counts are those of a prompt that is too long (`type` "exceed_context_size_error")."""

    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Envelope(msgspec.Struct):
    error: LlamaFault


_decode = msgspec.json.Decoder(_Envelope).decode


def fault_in(body: bytes) -> LlamaFault | None:
    """The error that a reply's body tells; None where it tells none in this form."""
    try:
        return _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
