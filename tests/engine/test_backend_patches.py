"""What is changed in the engine's source: only where it looks as known, and routines that compute right."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llambo.engine import backend_patches
from llambo.engine.processor import this_processor

MATMUL = Path("src/ggml-cpu/llamafile/sgemm.cpp")
DOT = Path("src/ggml-cpu/arch/x86/quants.c")
TILES = Path("src/ggml-cpu/amx/mmq.cpp")
VECTORS = Path("src/ggml-cpu/vec.h")
SUMS = Path("src/ggml-cpu/vec.cpp")
_GEMM = """\
#include "simd-mappings.h"
int other;
    // only enable sgemm for prompt processing
    if (n < 2)
        return false;
"""
_DOT = f"""\
{backend_patches._DOT_FUNCTION}float * s) {{
{backend_patches._DOT_LOOP}"""

_VECTORS = f"""\
{backend_patches._REST_INCLUDE}
    // scalar and leftovers
{backend_patches._REST_MAD}    }}
    // scalar and leftovers
{backend_patches._REST_SCALE}    }}
"""

_TYPES = """
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
typedef uint16_t ggml_half;
typedef struct { ggml_half d; int8_t qs[32]; } block_q8_0;
static float half(ggml_half d) { return std::ldexp(1.0f + (d & 1023) / 1024.0f, (d >> 10) - 15); }
#define GGML_CPU_FP16_TO_FP32(d) half(d)
static void fill(std::vector<block_q8_0> & blocks) {
    for (auto & block : blocks) {
        block.d = (10 << 10) + rand() % 4096;
        for (auto & q : block.qs) q = rand() % 256 - 128;
    }
}
static double dot(const block_q8_0 & a, const block_q8_0 & b) {
    int sum = 0;
    for (int x = 0; x < 32; ++x) sum += a.qs[x] * b.qs[x];
    return sum * double(half(a.d)) * half(b.d);
}
"""
# Every entry of the product against one that is computed in the plain way, in double precision; each thread's share in
# turn. It says the worst of the errors, as a part of the sum of magnitudes, or "declined".
_CHECK_GEMM = """
#include "q8_0_avx512.h"
int main(int, char ** words) {
    const int64_t m = atoi(words[1]), n = atoi(words[2]), k = atoi(words[3]), threads = atoi(words[4]), pad = 3;
    const int64_t ld = k + pad, ldc = m + pad;
    std::vector<block_q8_0> A(m * ld), B(n * ld);
    fill(A), fill(B);
    std::vector<float> C(n * ldc, NAN);
    for (int64_t t = 0; t < threads; ++t)
        if (!llambo_q8_0(m, n, k, A.data(), ld, B.data(), ld, C.data(), ldc, t, threads)) return puts("declined"), 0;
    double worst = 0;
    for (int64_t i = 0; i < m; ++i) for (int64_t j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (int64_t l = 0; l < k; ++l) {
            const double part = dot(A[i * ld + l], B[j * ld + l]);
            sum += part, size += std::fabs(part);
        }
        const double error = std::fabs(C[j * ldc + i] - sum) / (size + 1e-30);
        if (!(error <= worst)) worst = error;
    }
    for (int64_t j = 0; j < n; ++j) for (int64_t i = m; i < ldc; ++i) if (!std::isnan(C[j * ldc + i])) worst = INFINITY;
    printf("%g\\n", worst);
}
"""
# How many blocks are said to be done, and the error of their sum.
_CHECK_DOT = """
#include <immintrin.h>
static __m256 mul_sum_i8_pairs_float(__m256i x, __m256i y) {
    const __m256i low = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(x)),
                                          _mm256_cvtepi8_epi16(_mm256_castsi256_si128(y)));
    const __m256i high = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(x, 1)),
                                           _mm256_cvtepi8_epi16(_mm256_extracti128_si256(y, 1)));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
}
#include "q8_0_dot.h"
int main(int, char ** words) {
    const int blocks = atoi(words[1]);
    std::vector<block_q8_0> x(blocks), y(blocks);
    fill(x), fill(y);
    __m256 sum = _mm256_set1_ps(0.5f);
    const int done = llambo_q8_0_dot(blocks, x.data(), y.data(), &sum);
    float lanes[8];
    _mm256_storeu_ps(lanes, sum);
    double found = -4, expected = 0, size = 1;
    for (float lane : lanes) found += lane;
    for (int l = 0; l < done; ++l) expected += dot(x[l], y[l]), size += std::fabs(dot(x[l], y[l]));
    printf("%d %g\\n", done, std::fabs(found - expected) / size);
}
"""
# The worst error of the product of F16 weights with one token, as above, or "declined".
_CHECK_GEMV = """
typedef uint16_t ggml_fp16_t;
#include "f16_gemv_avx512.h"
int main(int, char ** words) {
    const int64_t m = atoi(words[1]), n = atoi(words[2]), k = atoi(words[3]), threads = atoi(words[4]), lda = k + 3;
    std::vector<ggml_fp16_t> A(m * lda);
    std::vector<float> B(k), C(m + 1, NAN);
    for (auto & a : A) a = (10 << 10) + rand() % 4096;
    for (auto & b : B) b = rand() % 2001 / 1000.0f - 1;
    for (int64_t t = 0; t < threads; ++t)
        if (!llambo_f16(m, n, k, A.data(), lda, B.data(), C.data(), t, threads)) return puts("declined"), 0;
    double worst = std::isnan(C[m]) ? 0 : INFINITY;
    for (int64_t i = 0; i < m; ++i) {
        double sum = 0, size = 0;
        for (int64_t l = 0; l < k; ++l) {
            const double part = double(half(A[i * lda + l])) * B[l];
            sum += part, size += std::fabs(part);
        }
        const double error = std::fabs(C[i] - sum) / size;
        if (!(error <= worst)) worst = error;
    }
    printf("%g\\n", worst);
}
"""
# The numbers that each function says it has done, and the worst error of these; the others must be as they were.
_CHECK_REST = """
typedef uint16_t ggml_fp16_t;
#include "f16_rest_avx512.h"
static ggml_half packed(float value) {
    int exponent;
    const float fraction = std::frexp(std::fabs(value), &exponent);  // from 0.5 on, below 1
    const int bits = ((exponent + 14) << 10) + int(std::nearbyint(fraction * 2048)) - 1024;
    return ggml_half((value < 0 ? 1 << 15 : 0) + bits);
}
static float whole(ggml_half d) { return (d >> 15 ? -1 : 1) * half(d & 0x7fff); }
static std::vector<ggml_half> some(int count) {
    std::vector<ggml_half> made(count);
    for (auto & one : made) one = packed((rand() % 4000 + 100) / 1000.0f * (rand() % 2 ? 1 : -1));
    return made;
}
int main(int, char ** words) {
    const int n = atoi(words[1]);
    const float v = 1.75f;
    auto x = some(n + 1), y = some(n + 1), sum = y, scaled = y;
    double dot = 0.5, expected = 0.5, worst = 0;
    const int done[] = {llambo_f16_dot(n, x.data(), y.data(), &dot), llambo_f16_mad(n, sum.data(), x.data(), v),
                        llambo_f16_scale(n, scaled.data(), v)};
    for (int i = 0; i < done[0]; ++i) expected += double(whole(x[i])) * whole(y[i]);
    worst = std::fabs(dot - expected) / 1000;
    for (int i = 0; i <= n; ++i) {
        const float added = i < done[1] ? whole(x[i]) * v + whole(y[i]) : whole(y[i]);
        const float times = i < done[2] ? whole(y[i]) * v : whole(y[i]);
        worst = std::fmax(worst, std::fabs(whole(sum[i]) - added) / (std::fabs(added) + 0.01f));
        worst = std::fmax(worst, std::fabs(whole(scaled[i]) - times) / std::fabs(times));
    }
    printf("%d %d %d %g\\n", done[0], done[1], done[2], worst);
}
"""
_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd", "-mavx512vnni", "-mfma", "-mf16c")

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
needs_vnni = pytest.mark.skipif(
    not {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= this_processor().features,
    reason="this processor has no AVX-512 with VNNI",
)


def _write(ggml: Path, path: Path, text: str) -> Path:
    (ggml / path).parent.mkdir(parents=True, exist_ok=True)
    (ggml / path).write_text(text)
    return ggml / path


@pytest.fixture(scope="session")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that checks products with many tokens, compiled for AVX-512 with VNNI."""
    return _compile(tmp_path_factory.mktemp("kernel"), _CHECK_GEMM, _FLAGS)


@pytest.fixture(scope="session")
def gemv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that checks F16 weights with one token, compiled for AVX-512."""
    return _compile(tmp_path_factory.mktemp("gemv"), _CHECK_GEMV, _FLAGS)


@pytest.fixture(scope="session")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that checks short vectors, compiled for AVX-512."""
    return _compile(tmp_path_factory.mktemp("rest"), _CHECK_REST, _FLAGS)


def _compile(directory: Path, code: str, flags: tuple[str, ...]) -> Path:
    source, program = directory / "check.cpp", directory / "check"
    source.write_text(_TYPES + code)
    include = f"-I{backend_patches.GEMM.parent}"
    subprocess.run(["c++", "-O2", "-std=c++17", *flags, include, "-o", program, source], check=True)
    return program


def _run(program: Path, *numbers: int) -> str:
    return subprocess.run([program, *map(str, numbers)], capture_output=True, text=True, check=True).stdout.strip()


def test_a_source_that_looks_as_known_is_changed_and_the_changes_are_told(tmp_path: Path) -> None:
    tiles = _write(tmp_path, TILES, "    tc.rows[0] = 8;\n    _tile_loadconfig(&tc);\n")
    matmul, dot = _write(tmp_path, MATMUL, _GEMM), _write(tmp_path, DOT, _DOT)
    vectors, sums = _write(tmp_path, VECTORS, _VECTORS), _write(tmp_path, SUMS, backend_patches._REST_DOT)
    assert backend_patches.apply(tmp_path) == (
        "the AMX unit's configuration is kept from the optimiser",
        "Q8_0 weights are multiplied with AVX-512",
        "short rows of F16 weights are multiplied side by side",
        "Q8_0 weights are fetched ahead",
        "short F16 vectors are computed with AVX-512",
    )
    lines = tiles.read_text().splitlines()
    assert "asm" in lines[1] and "memory" in lines[1] and lines[2] == "    _tile_loadconfig(&tc);"
    text = matmul.read_text()
    assert text.index("llambo_q8_0(") < text.index("n < 2")
    assert f'#include "{backend_patches.GEMM.name}"' in text
    assert matmul.with_name(backend_patches.GEMM.name).read_bytes() == backend_patches.GEMM.read_bytes()
    assert text.index("llambo_q8_0(") < text.index("llambo_f16(") < text.index("n < 2")
    assert f'#include "{backend_patches.GEMV.name}"' in text
    assert matmul.with_name(backend_patches.GEMV.name).read_bytes() == backend_patches.GEMV.read_bytes()
    text = dot.read_text()
    assert text.index('#include "q8_0_dot.h"') < text.index("void ggml_vec_dot") < text.index("llambo_q8_0_dot(")
    assert text.index("llambo_q8_0_dot(") < text.index("// Main loop")
    assert dot.with_name(backend_patches.DOT.name).read_bytes() == backend_patches.DOT.read_bytes()
    text = vectors.read_text()
    assert text.index('#include "f16_rest_avx512.h"') < text.index("llambo_f16_mad(") < text.index("llambo_f16_scale(")
    assert "int i = np + llambo_f16_dot(" in sums.read_text()
    assert vectors.with_name(backend_patches.REST.name).read_bytes() == backend_patches.REST.read_bytes()


@pytest.mark.parametrize("text", ["something else", _GEMM + _GEMM, _GEMM.partition("int other")[0]])
def test_a_source_that_looks_otherwise_is_compiled_as_it_is(tmp_path: Path, text: str) -> None:
    matmul = _write(tmp_path, MATMUL, text)
    assert backend_patches.apply(tmp_path) == ()
    assert matmul.read_text() == text
    assert list(matmul.parent.iterdir()) == [matmul]


@needs_compiler
@needs_vnni
@pytest.mark.parametrize(
    ("rows", "tokens", "blocks", "threads"),
    [
        (16, 8, 1, 1),
        (64, 15, 8, 3),
        (17, 9, 33, 2),
        (31, 300, 70, 1),
        (1, 8, 32, 4),
        (48, 257, 65, 2),
        (33, 2, 8, 2),
        (20, 5, 513, 1),
        (64, 7, 8, 1),
        (17, 1, 24, 1),
        (1, 1, 1, 2),
        (50, 1, 33, 3),
        (3, 1, 512, 4),
    ],
)
def test_the_routine_computes_every_entry_and_touches_nothing_else(
    check: Path, rows: int, tokens: int, blocks: int, threads: int
) -> None:
    assert float(_run(check, rows, tokens, blocks, threads)) < 1e-6


@needs_compiler
@needs_vnni
def test_one_token_of_very_long_rows_is_left_to_llama_cpp(check: Path) -> None:
    assert _run(check, 64, 1, 513, 1) == "declined"


@needs_compiler
@pytest.mark.parametrize("code", [_CHECK_GEMM, _CHECK_GEMV])
def test_without_avx_512_it_compiles_and_declines(tmp_path: Path, code: str) -> None:
    assert _run(_compile(tmp_path, code, ()), 64, 1, 16, 1) == "declined"


@needs_compiler
@needs_vnni
@pytest.mark.parametrize(
    ("rows", "numbers", "threads"), [(8, 16, 1), (512, 128, 2), (17, 384, 3), (1, 32, 4), (7, 48, 1), (100, 80, 5)]
)
def test_short_rows_of_f16_side_by_side_are_the_same_product(gemv: Path, rows: int, numbers: int, threads: int) -> None:
    assert float(_run(gemv, rows, 1, numbers, threads)) < 1e-6


@needs_compiler
@needs_vnni
@pytest.mark.parametrize(("tokens", "numbers"), [(2, 64), (1, 400), (1, 40)])
def test_long_rows_several_tokens_and_odd_lengths_of_f16_are_left_to_llama_cpp(
    gemv: Path, tokens: int, numbers: int
) -> None:
    assert _run(gemv, 64, tokens, numbers, 1) == "declined"


@needs_compiler
@pytest.mark.skipif(not {"avx2", "fma"} <= this_processor().features, reason="this processor has no AVX2")
def test_the_product_with_one_token_takes_four_blocks_at_a_time_and_leaves_the_rest(tmp_path: Path) -> None:
    program = _compile(tmp_path, _CHECK_DOT, ("-mavx2", "-mfma", "-mf16c"))
    for blocks in (0, 1, 3, 4, 7, 24, 65):
        done, error = _run(program, blocks).split()
        assert (int(done), float(error) < 1e-6) == (blocks // 4 * 4, True)


@needs_compiler
@needs_vnni
@pytest.mark.parametrize("numbers", [0, 1, 15, 16, 17, 32, 48, 63, 80])
def test_short_vectors_are_done_by_sixteens_and_the_rest_is_left(rest: Path, numbers: int) -> None:
    *done, error = _run(rest, numbers).split()
    assert done == [str(numbers // 16 * 16)] * 3
    assert float(error) < 1e-3, "a half has eleven bits"


@needs_compiler
def test_without_avx_512_short_vectors_are_left(tmp_path: Path) -> None:
    assert _run(_compile(tmp_path, _CHECK_REST, ()), 48) == "0 0 0 0"
