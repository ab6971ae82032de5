// The product of one row of Q8_0 weights with one token, for processors with AVX2: what an answer's every token is made
// of. `backend_patches` lays this file beside llama.cpp's x86 routines, which give it block_q8_0 and their arithmetic.
//
// Weights are read once and never again, so their rate is that of memory. llama.cpp's own loop leaves it to the processor
// to guess what is read next, and adds every block to one sum. This one says it in time, and keeps four sums.

#pragma once

#if defined(__AVX2__)

#define LLAMBO_AHEAD 2048  // bytes; half of it reads slower, and twice as much no faster

// Adds the products of as many blocks as four go into to `sum`; returns how many were done.
static inline int llambo_q8_0_dot(int blocks, const block_q8_0 * x, const block_q8_0 * y, __m256 * sum) {
    __m256 sums[4] = {*sum, _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int done = 0;
    for (; done + 4 <= blocks; done += 4) {
        const char * ahead = (const char *)(x + done) + LLAMBO_AHEAD;
        for (int line = 0; line < 3; ++line) {  // four blocks are 136 bytes
            _mm_prefetch(ahead + 64 * line, _MM_HINT_T0);
        }
        for (int u = 0; u < 4; ++u) {
            const block_q8_0 * a = x + done + u;
            const block_q8_0 * b = y + done + u;
            const __m256 d = _mm256_set1_ps(GGML_CPU_FP16_TO_FP32(a->d) * GGML_CPU_FP16_TO_FP32(b->d));
            const __m256 product = mul_sum_i8_pairs_float(_mm256_loadu_si256((const __m256i *)a->qs),
                                                          _mm256_loadu_si256((const __m256i *)b->qs));
            sums[u] = _mm256_fmadd_ps(d, product, sums[u]);
        }
    }
    *sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    return done;
}

#endif
