// Products of Q8_0 weights with tokens, for processors with AVX-512 and VNNI. `backend_patches` lays this file beside
// llama.cpp's sgemm.cpp, which gives it the types and GGML_CPU_FP16_TO_FP32.
//
// llama.cpp's own routines for this type work on 256 bits, and multiply one row of weights with one token at a time.
// For a batch of tokens this one takes 16 rows at once: their bytes are put in the order in which VPDPBUSD wants them,
// once for up to TOKENS tokens, and each lane of a register belongs to one row. One token takes its weights as they lie in
// memory, two blocks in a register, and asks for those that come next in time: memory is what it waits for.
//
// VPDPBUSD multiplies unsigned bytes with signed ones. So weights are laid out with 128 added, and a token's sum starts
// at -128 times the sum of its bytes, which takes that off again. Within a block all sums are whole numbers: exact.

#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace llambo {

constexpr int64_t ROWS = 16;     // lanes of a register
constexpr int64_t BLOCKS = 32;   // blocks of 32 weights that are worked on at once: a panel stays in the first cache
constexpr int64_t TOKENS = 256;  // tokens for which a panel is laid out once
constexpr int TOGETHER = 8;      // tokens multiplied side by side: so many sums as hide the instruction's latency
constexpr int STEPS = 8;         // instructions for one block: four bytes a lane each
constexpr int64_t LONGEST = 512;  // blocks of a row, for one token: what is laid out of it stays in the second cache
constexpr int AHEAD = 4096;       // bytes by which weights are asked for before they are multiplied with one token

struct Panel {
    alignas(64) uint8_t q[BLOCKS][STEPS][64];
    alignas(64) float d[BLOCKS][ROWS];
};

struct Batch {
    int32_t start[TOKENS][BLOCKS];
    float d[TOKENS][BLOCKS];
};

inline __m512i broadcast(const int8_t * bytes) {
    int32_t four;
    std::memcpy(&four, bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

// The bytes of one block of a row, and of the row four below it.
inline __m512i two_rows(const block_q8_0 * const * row, int64_t l) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row[0][l].qs));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row[4][l].qs));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// Of eight rows: the first four bytes of each, the second, ... of the first half of a block in the even quarters of a
// register, and of its second half in the odd ones.
struct Eight {
    __m512i first, second, third, fourth;
};

inline Eight eight_rows(const block_q8_0 * const * row, int64_t l) {
    const __m512i a = two_rows(row, l), b = two_rows(row + 1, l), c = two_rows(row + 2, l), d = two_rows(row + 3, l);
    const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    return {_mm512_unpacklo_epi64(ab_low, cd_low), _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high), _mm512_unpackhi_epi64(ab_high, cd_high)};
}

// Lays out `blocks` blocks of `rows` rows of weights; the last row stands for those that are missing to 16. By loads and
// shuffles: a gather takes several times as long, on Zen 4 longer than the product with eight tokens.
inline void lay_out(Panel & panel, const block_q8_0 * A, int64_t lda, int64_t rows, int64_t blocks) {
    const block_q8_0 * row[ROWS];
    for (int64_t i = 0; i < ROWS; ++i) {
        row[i] = A + std::min(i, rows - 1) * lda;
    }
    const __m512i add_128 = _mm512_set1_epi8(static_cast<char>(0x80));
    const auto scale = [&](int64_t i, int64_t l) { return static_cast<short>(row[i][l].d); };
    for (int64_t l = 0; l < blocks; ++l) {
        const __m256i scales = _mm256_setr_epi16(
            scale(0, l), scale(1, l), scale(2, l), scale(3, l), scale(4, l), scale(5, l), scale(6, l), scale(7, l),
            scale(8, l), scale(9, l), scale(10, l), scale(11, l), scale(12, l), scale(13, l), scale(14, l), scale(15, l));
        _mm512_store_ps(panel.d[l], _mm512_cvtph_ps(scales));
        const Eight upper = eight_rows(row, l), lower = eight_rows(row + 8, l);
        const auto put = [&](int step, __m512i above, __m512i below) {
            const __m512i low = _mm512_shuffle_i32x4(above, below, _MM_SHUFFLE(2, 0, 2, 0));
            const __m512i high = _mm512_shuffle_i32x4(above, below, _MM_SHUFFLE(3, 1, 3, 1));
            _mm512_store_si512(panel.q[l][step], _mm512_xor_si512(low, add_128));
            _mm512_store_si512(panel.q[l][step + STEPS / 2], _mm512_xor_si512(high, add_128));
        };
        put(0, upper.first, lower.first);
        put(1, upper.second, lower.second);
        put(2, upper.third, lower.third);
        put(3, upper.fourth, lower.fourth);
    }
}

// What is needed of each token beside its bytes.
inline void prepare(Batch & batch, const block_q8_0 * B, int64_t ldb, int64_t tokens, int64_t blocks) {
    const __m256i ones = _mm256_set1_epi8(1);
    for (int64_t j = 0; j < tokens; ++j) {
        for (int64_t l = 0; l < blocks; ++l) {
            const block_q8_0 & block = B[j * ldb + l];
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block.qs));
            const __m256i eight = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, bytes);
            const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
            const __m128i one = _mm_add_epi32(two, _mm_shuffle_epi32(two, _MM_SHUFFLE(2, 3, 0, 1)));
            batch.start[j][l] = -128 * _mm_cvtsi128_si32(one);
            batch.d[j][l] = GGML_CPU_FP16_TO_FP32(block.d);
        }
    }
}

// The panel times N tokens, the first of which is number `j` of the batch; B and C point at that token. Added to what is
// in C, or in its place where `is_first`.
template <int N>
inline void multiply(const Panel & panel, const Batch & batch, int64_t j, int64_t blocks, const block_q8_0 * B,
                     int64_t ldb, float * C, int64_t ldc, __mmask16 rows, bool is_first) {
    __m512 sums[N];
    for (int t = 0; t < N; ++t) {
        sums[t] = is_first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows, C + t * ldc);
    }
    for (int64_t l = 0; l < blocks; ++l) {
        __m512i whole[N];
        for (int t = 0; t < N; ++t) {
            whole[t] = _mm512_set1_epi32(batch.start[j + t][l]);
        }
        for (int step = 0; step < STEPS; ++step) {
            const __m512i weights = _mm512_load_si512(panel.q[l][step]);
            for (int t = 0; t < N; ++t) {
                whole[t] = _mm512_dpbusd_epi32(whole[t], weights, broadcast(B[t * ldb + l].qs + 4 * step));
            }
        }
        const __m512 d = _mm512_load_ps(panel.d[l]);
        for (int t = 0; t < N; ++t) {
            const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(batch.d[j + t][l]));
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[t]), scale, sums[t]);
        }
    }
    for (int t = 0; t < N; ++t) {
        _mm512_mask_storeu_ps(C + t * ldc, rows, sums[t]);
    }
}

// One token: the bytes of its blocks and what goes with them, two blocks in a row.
struct Token {
    alignas(64) int8_t q[LONGEST][32];
    alignas(64) int32_t start[LONGEST][8];
    alignas(64) float d[LONGEST][8];
};

// Lays out a token of `blocks` blocks; an odd number gets a block of zeros beside the last.
inline void prepare(Token & token, const block_q8_0 * B, int64_t blocks) {
    const __m256i add_128 = _mm256_set1_epi8(static_cast<char>(0x80));
    for (int64_t l = 0; l < blocks + blocks % 2; ++l) {
        const __m256i q = l < blocks ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(B[l].qs)) : __m256i{};
        const __m256i added = _mm256_dpbusd_epi32(_mm256_setzero_si256(), add_128, q);
        _mm256_store_si256(reinterpret_cast<__m256i *>(token.q[l]), q);
        _mm256_store_si256(reinterpret_cast<__m256i *>(token.start[l]), _mm256_sub_epi32(_mm256_setzero_si256(), added));
        _mm256_store_ps(token.d[l], _mm256_set1_ps(l < blocks ? GGML_CPU_FP16_TO_FP32(B[l].d) : 0.0f));
    }
}

// Two blocks of weights as VPDPBUSD wants them, and their scales beside each other.
inline __m512i pair_of_bytes(const block_q8_0 & first, const block_q8_0 & second) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(first.qs));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(second.qs));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    return _mm512_xor_si512(both, _mm512_set1_epi8(static_cast<char>(0x80)));
}

inline __m512 pair_of_scales(const block_q8_0 & first, const block_q8_0 & second) {
    const __m128i a = _mm_set1_epi16(static_cast<short>(first.d)), b = _mm_set1_epi16(static_cast<short>(second.d));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
}

// One row of weights times one token.
inline float multiply(const block_q8_0 * A, const Token & token, int64_t blocks) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t l = 0; l < blocks; l += 2) {
        const block_q8_0 & first = A[l];
        const block_q8_0 & second = A[l + (l + 1 < blocks)];  // an odd last block again, times zero
        _mm_prefetch(reinterpret_cast<const char *>(&first) + AHEAD, _MM_HINT_T0);
        const __m512i q = _mm512_load_si512(token.q[l]), start = _mm512_load_si512(token.start[l]);
        const __m512i whole = _mm512_dpbusd_epi32(start, pair_of_bytes(first, second), q);
        const __m512 scale = _mm512_mul_ps(_mm512_load_ps(token.d[l]), pair_of_scales(first, second));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// One token times this thread's share of m rows.
inline void multiply(const block_q8_0 * A, int64_t lda, const block_q8_0 * B, float * C, int64_t m, int64_t blocks,
                     int ith, int nth) {
    Token token;
    prepare(token, B, blocks);
    const int64_t end = m * (ith + 1) / nth;
    for (int64_t i = m * ith / nth; i < end; ++i) {
        C[i] = multiply(A + i * lda, token, blocks);
    }
}

}  // namespace llambo

// This thread's share, one of `nth`, of C = A B: m rows of weights, n tokens, k blocks; lda and ldb count blocks, ldc
// floats, as in llamafile_sgemm. Returns false, to every thread alike, where that is not for this routine.
inline bool llambo_q8_0(int64_t m, int64_t n, int64_t k, const block_q8_0 * A, int64_t lda, const block_q8_0 * B,
                        int64_t ldb, float * C, int64_t ldc, int ith, int nth) {
    using namespace llambo;
    if (n == 1 && k <= LONGEST) {
        multiply(A, lda, B, C, m, k, ith, nth);
        return true;
    }
    if (n < 2) {  // one, of very long rows
        return false;
    }
    const int64_t panels = (m + ROWS - 1) / ROWS, begin = panels * ith / nth, end = panels * (ith + 1) / nth;
    if (begin == end) {
        return true;
    }
    Panel panel;
    Batch batch;
    for (int64_t j0 = 0; j0 < n; j0 += TOKENS) {
        const int64_t tokens = std::min(TOKENS, n - j0);
        for (int64_t l0 = 0; l0 < k; l0 += BLOCKS) {
            const int64_t blocks = std::min(BLOCKS, k - l0);
            prepare(batch, B + j0 * ldb + l0, ldb, tokens, blocks);
            for (int64_t p = begin; p < end; ++p) {
                const int64_t i = p * ROWS, rows = std::min(ROWS, m - i);
                const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1);
                lay_out(panel, A + i * lda + l0, lda, rows, blocks);
                int64_t j = 0;
                const auto multiply_by = [&](auto many) {
                    constexpr int N = decltype(many)::value;
                    for (; j + N <= tokens; j += N) {
                        multiply<N>(panel, batch, j, blocks, B + (j0 + j) * ldb + l0, ldb, C + (j0 + j) * ldc + i, ldc,
                                    mask, l0 == 0);
                    }
                };
                multiply_by(std::integral_constant<int, TOGETHER>{});
                multiply_by(std::integral_constant<int, TOGETHER / 2>{});
                multiply_by(std::integral_constant<int, TOGETHER / 4>{});
                multiply_by(std::integral_constant<int, 1>{});
            }
        }
    }
    return true;
}

#else

inline bool llambo_q8_0(int64_t, int64_t, int64_t, const block_q8_0 *, int64_t, const block_q8_0 *, int64_t, float *,
                        int64_t, int, int) {
    return false;
}

#endif
