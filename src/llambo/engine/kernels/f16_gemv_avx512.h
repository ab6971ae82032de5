// The product of F16 weights with one token, for processors with AVX-512. `backend_patches` lays this file beside
// llama.cpp's sgemm.cpp, which gives it the type, and has it asked while the token is still in single precision.
//
// llama.cpp rounds the token to F16 first, which all threads wait for, and then takes one row after the other: of a short
// row much of the time goes into adding up the lanes of its sum. This takes F16_ROWS rows side by side, adds up all their
// lanes at once, and asks for the next rows meanwhile.

#pragma once

#if defined(__AVX512F__) && defined(__AVX512DQ__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace llambo {

constexpr int64_t F16_ROWS = 8;
constexpr int64_t F16_LANES = 16;
constexpr int64_t F16_LONGEST = 384;  // of longer rows adding up is little, and several streams are read more slowly

inline __m512 load_f16(const ggml_fp16_t * x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
}

inline __m256 halve(__m512 x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

// F16_ROWS rows. Each sum has a name, not a place in an array, which gcc 12 would write to memory in every turn.
inline void multiply_rows(int64_t k, const ggml_fp16_t * A, int64_t lda, const float * b, float * c) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    for (int64_t l = 0; l < k; l += F16_LANES) {
        const __m512 token = _mm512_loadu_ps(b + l);
        const ggml_fp16_t * at = A + l;
        const char * next = reinterpret_cast<const char *>(A + F16_ROWS * (lda + l));
        _mm_prefetch(next, _MM_HINT_T0);
        _mm_prefetch(next + 64, _MM_HINT_T0);
        _mm_prefetch(next + 128, _MM_HINT_T0);
        _mm_prefetch(next + 192, _MM_HINT_T0);
        s0 = _mm512_fmadd_ps(load_f16(at), token, s0);
        s1 = _mm512_fmadd_ps(load_f16(at + lda), token, s1);
        s2 = _mm512_fmadd_ps(load_f16(at + 2 * lda), token, s2);
        s3 = _mm512_fmadd_ps(load_f16(at + 3 * lda), token, s3);
        s4 = _mm512_fmadd_ps(load_f16(at + 4 * lda), token, s4);
        s5 = _mm512_fmadd_ps(load_f16(at + 5 * lda), token, s5);
        s6 = _mm512_fmadd_ps(load_f16(at + 6 * lda), token, s6);
        s7 = _mm512_fmadd_ps(load_f16(at + 7 * lda), token, s7);
    }
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(halve(s0), halve(s1)), _mm256_hadd_ps(halve(s2), halve(s3)));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(halve(s4), halve(s5)), _mm256_hadd_ps(halve(s6), halve(s7)));
    _mm256_storeu_ps(c, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)));
}

inline float multiply_row(int64_t k, const ggml_fp16_t * A, const float * b) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t l = 0; l < k; l += F16_LANES) {
        sum = _mm512_fmadd_ps(load_f16(A + l), _mm512_loadu_ps(b + l), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

}  // namespace llambo

// C = A B, of one token; the share of thread `ith` of `nth`. False, and nothing done, for what it is not for.
inline bool llambo_f16(int64_t m, int64_t n, int64_t k, const ggml_fp16_t * A, int64_t lda, const float * B, float * C,
                       int ith, int nth) {
    using namespace llambo;
    if (n != 1 || k > F16_LONGEST || k % F16_LANES) {
        return false;
    }
    const int64_t groups = (m + F16_ROWS - 1) / F16_ROWS;
    const int64_t end = std::min(groups * (ith + 1) / nth * F16_ROWS, m);
    int64_t i = groups * ith / nth * F16_ROWS;
    for (; i + F16_ROWS <= end; i += F16_ROWS) {
        multiply_rows(k, A + i * lda, lda, B, C + i);
    }
    for (; i < end; ++i) {
        C[i] = multiply_row(k, A + i * lda, B);
    }
    return true;
}

#else

inline bool llambo_f16(int64_t, int64_t, int64_t, const ggml_fp16_t *, int64_t, const float *, float *, int, int) {
    return false;
}

#endif
