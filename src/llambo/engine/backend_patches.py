"""What is changed in the engine's own source before it is compiled: one fault mended, some routines added.

Owns those changes and the places that they go to. Each is made only where the source looks as it did when the change
was written: another version of llama.cpp is compiled as it is, and is no worse than without us.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_AMX_SOURCE = Path("src/ggml-cpu/amx/mmq.cpp")
_AMX_LOAD = "    _tile_loadconfig("
# gcc 12 sees nobody read the tile configuration and drops the writes to it; then ldtilecfg faults.
_AMX_BARRIER = '    __asm__ volatile("" ::: "memory");\n'

_KERNELS = Path(__file__).parent / "kernels"
GEMM = _KERNELS / "q8_0_avx512.h"
"""Products of Q8_0 weights with tokens: llama.cpp has none that uses 512 bits (decision 8)."""
_GEMM_SOURCE = Path("src/ggml-cpu/llamafile/sgemm.cpp")
_GEMM_INCLUDE = '#include "simd-mappings.h"\n'
_GEMM_CALL = "    // only enable sgemm for prompt processing\n"
_GEMM_OURS = """\
    if (Atype == GGML_TYPE_Q8_0 && Btype == GGML_TYPE_Q8_0 && Ctype == GGML_TYPE_F32 &&
        llambo_q8_0(m, n, k, (const block_q8_0 *)A, lda, (const block_q8_0 *)B, ldb, (float *)C, ldc,
                    params->ith, params->nth))
        return true;

"""

GEMV = _KERNELS / "f16_gemv_avx512.h"
"""Products of short rows of F16 weights with one token."""
_GEMV_OURS = """\
    if (Atype == GGML_TYPE_F16 && Btype == GGML_TYPE_F32 && Ctype == GGML_TYPE_F32 &&
        llambo_f16(m, n, k, (const ggml_fp16_t *)A, lda, (const float *)B, (float *)C, params->ith, params->nth))
        return true;

"""

DOT = _KERNELS / "q8_0_dot.h"
"""The product of one row with one token where that routine is not asked: without AVX-512, and for chosen experts."""
_DOT_SOURCE = Path("src/ggml-cpu/arch/x86/quants.c")
_DOT_FUNCTION = "void ggml_vec_dot_q8_0_q8_0(int n, "
_DOT_LOOP = """\
    // Main loop
    for (; ib < nb; ++ib) {
        // Compute combined scale for the block
        const __m256 d = _mm256_set1_ps(GGML_CPU_FP16_TO_FP32(x[ib].d) * GGML_CPU_FP16_TO_FP32(y[ib].d));
        __m256i qx = _mm256_loadu_si256((const __m256i *)x[ib].qs);
"""
_DOT_CALL = "    ib = llambo_q8_0_dot(nb, x, y, &acc);\n"

REST = _KERNELS / "f16_rest_avx512.h"
"""What is left of short F16 vectors, such as the keys and values of small attention heads."""
_REST_HEADER = Path("src/ggml-cpu/vec.h")
_REST_SOURCE = Path("src/ggml-cpu/vec.cpp")
_REST_INCLUDE = '#include "ggml-cpu.h"\n'
_REST_MAD = """\
    for (int i = np; i < n; ++i) {
        y[i] = GGML_CPU_FP32_TO_FP16(GGML_CPU_FP16_TO_FP32(y[i]) + GGML_CPU_FP16_TO_FP32(x[i])*v);
"""
_REST_SCALE = """\
    for (int i = np; i < n; ++i) {
        y[i] = GGML_CPU_FP32_TO_FP16(GGML_CPU_FP16_TO_FP32(y[i])*v);
"""
_REST_DOT = """\
        for (int i = np; i < n; ++i) {
            sumf += (ggml_float)(GGML_CPU_FP16_TO_FP32(x[i])*GGML_CPU_FP16_TO_FP32(y[i]));
"""


def apply(ggml: Path) -> tuple[str, ...]:
    """Changes the source below `ggml`; returns what was changed, in words.

    Raises: `OSError`.
    """
    changes = {
        "the AMX unit's configuration is kept from the optimiser": _keep_tile_configuration,
        "Q8_0 weights are multiplied with AVX-512": _add_gemm,
        "short rows of F16 weights are multiplied side by side": _add_gemv,
        "Q8_0 weights are fetched ahead": _add_dot,
        "short F16 vectors are computed with AVX-512": _add_rest,
    }
    return tuple(words for words, change in changes.items() if change(ggml))


def _keep_tile_configuration(ggml: Path) -> bool:
    """Makes the compiler keep what the AMX unit is told."""
    return _insert(ggml / _AMX_SOURCE, {_AMX_LOAD: _AMX_BARRIER + _AMX_LOAD})


def _add_gemm(ggml: Path) -> bool:
    """Has our routine asked first, for Q8_0; it declines what is not for it, and where there is no AVX-512."""
    include = f'{_GEMM_INCLUDE}#include "{GEMM.name}"\n'
    return _add(GEMM, ggml / _GEMM_SOURCE, {_GEMM_INCLUDE: include, _GEMM_CALL: _GEMM_OURS + _GEMM_CALL})


def _add_gemv(ggml: Path) -> bool:
    """Has our routine asked for F16 with one token; it declines what is not for it, and where there is no AVX-512."""
    include = f'{_GEMM_INCLUDE}#include "{GEMV.name}"\n'
    return _add(GEMV, ggml / _GEMM_SOURCE, {_GEMM_INCLUDE: include, _GEMM_CALL: _GEMV_OURS + _GEMM_CALL})


def _add_dot(ggml: Path) -> bool:
    """Has our loop run first; llama.cpp's own does what is left, which is no more than three blocks of a row."""
    include = f'#include "{DOT.name}"\n\n{_DOT_FUNCTION}'
    return _add(DOT, ggml / _DOT_SOURCE, {_DOT_FUNCTION: include, _DOT_LOOP: _DOT_CALL + _DOT_LOOP})


def _add_rest(ggml: Path) -> bool:
    """Has our loops do what llama.cpp's own leave, before it does that number by number."""
    changes = {
        _REST_INCLUDE: f'{_REST_INCLUDE}#include "{REST.name}"\n',
        _REST_MAD: _REST_MAD.replace("int i = np", "int i = np + llambo_f16_mad(n - np, y + np, x + np, v)"),
        _REST_SCALE: _REST_SCALE.replace("int i = np", "int i = np + llambo_f16_scale(n - np, y + np, v)"),
    }
    dot = _REST_DOT.replace("int i = np", "int i = np + llambo_f16_dot(n - np, x + np, y + np, &sumf)")
    return _add(REST, ggml / _REST_HEADER, changes) and _insert(ggml / _REST_SOURCE, {_REST_DOT: dot})


def _add(kernel: Path, source: Path, replacements: dict[str, str]) -> bool:
    if not _insert(source, replacements):
        return False
    shutil.copyfile(kernel, source.with_name(kernel.name))
    return True


def _insert(path: Path, replacements: dict[str, str]) -> bool:
    """Replaces each of these texts where every one is there exactly once; else the file stays as it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    if any(text.count(one) != 1 for one in replacements):
        return False
    for old, new in replacements.items():
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return True
