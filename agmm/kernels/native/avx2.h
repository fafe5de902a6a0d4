// AVX2 with FMA: included once, inside the namespace and under the target of that path.

constexpr size_t kLanes = 8;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef double Halves __attribute__((vector_size(32), aligned(8), may_alias));

inline Lanes all(float value) { return (Lanes)_mm256_set1_ps(value); }

inline __m256i first(size_t count) {
    static const int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(kMasks + 8 - count));
}

inline Lanes load(const float* x) { return (Lanes)_mm256_loadu_ps(x); }
inline Lanes load_first(const float* x, size_t count) { return (Lanes)_mm256_maskload_ps(x, first(count)); }
inline void store(float* x, Lanes value) { _mm256_storeu_ps(x, (__m256)value); }
inline void store_first(float* x, Lanes value, size_t count) { _mm256_maskstore_ps(x, first(count), (__m256)value); }
inline void stream(float* x, Lanes value) { _mm256_stream_ps(x, (__m256)value); }
inline void end_stream() { _mm_sfence(); }

inline Lanes widen(const int16_t* n) {
    return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)n)));
}

// bfloat16, rounded to the nearest, ties to even; a NaN stays one.
inline void narrow(uint16_t* x, Lanes value) {
    const __m256i bits = (__m256i)value, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)value, (__m256)value, _CMP_UNORD_Q);
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
    const __m128i low = _mm256_castsi256_si128(kept), high = _mm256_extracti128_si256(kept, 1);
    _mm_storeu_si128((__m128i*)x, _mm_packus_epi32(low, high));
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline Lanes at_least_zero(Lanes a) { return (Lanes)_mm256_max_ps((__m256)a, _mm256_setzero_ps()); }
inline Lanes magnitude(Lanes a) { return (Lanes)_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)a); }

typedef __m256 Mask;
inline Mask reaches(Lanes a, Lanes b) { return _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ); }
inline Lanes where(Mask mask, Lanes a) { return (Lanes)_mm256_and_ps(mask, (__m256)a); }
inline Lanes unless(Mask mask, Lanes a) { return (Lanes)_mm256_andnot_ps(mask, (__m256)a); }

inline Halves low_half(Lanes a) { return (Halves)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a)); }
inline Halves high_half(Lanes a) { return (Halves)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1)); }
inline double sum_of(Halves a) { return (a[0] + a[1]) + (a[2] + a[3]); }
inline double sum_of(Lanes a) { return sum_of(low_half(a) + high_half(a)); }
