// What llama.cpp's loops over F16 vectors leave: with AVX-512 they go in steps of 64, and do the rest number by number.
// Small models have attention heads of 32 or 48, so that for them the rest is all of it, once for every token of the
// context. `backend_patches` lays this file beside vec.h, which has those loops, and has each ask here before the rest.
//
// Each function does as many numbers as 16 goes into, and returns how many: 0 without AVX-512.

#pragma once

#if defined(__AVX512F__)

#include <immintrin.h>

static inline __m512 llambo_f16_load(const ggml_fp16_t * x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
}

static inline void llambo_f16_store(ggml_fp16_t * y, __m512 value) {
    _mm256_storeu_si256((__m256i *)y, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Adds the products of `x` and `y` to `sum`.
static inline int llambo_f16_dot(int n, const ggml_fp16_t * x, const ggml_fp16_t * y, double * sum) {
    __m512 products = _mm512_setzero_ps();
    int done = 0;
    for (; done + 16 <= n; done += 16) {
        products = _mm512_fmadd_ps(llambo_f16_load(x + done), llambo_f16_load(y + done), products);
    }
    if (done) {
        *sum += _mm512_reduce_add_ps(products);
    }
    return done;
}

// y += x * v
static inline int llambo_f16_mad(int n, ggml_fp16_t * y, const ggml_fp16_t * x, float v) {
    const __m512 factor = _mm512_set1_ps(v);
    int done = 0;
    for (; done + 16 <= n; done += 16) {
        llambo_f16_store(y + done, _mm512_fmadd_ps(llambo_f16_load(x + done), factor, llambo_f16_load(y + done)));
    }
    return done;
}

// y *= v
static inline int llambo_f16_scale(int n, ggml_fp16_t * y, float v) {
    const __m512 factor = _mm512_set1_ps(v);
    int done = 0;
    for (; done + 16 <= n; done += 16) {
        llambo_f16_store(y + done, _mm512_mul_ps(llambo_f16_load(y + done), factor));
    }
    return done;
}

#else

static inline int llambo_f16_dot(int n, const ggml_fp16_t * x, const ggml_fp16_t * y, double * sum) {
    (void)n, (void)x, (void)y, (void)sum;
    return 0;
}

static inline int llambo_f16_mad(int n, ggml_fp16_t * y, const ggml_fp16_t * x, float v) {
    (void)n, (void)y, (void)x, (void)v;
    return 0;
}

static inline int llambo_f16_scale(int n, ggml_fp16_t * y, float v) {
    (void)n, (void)y, (void)v;
    return 0;
}

#endif
