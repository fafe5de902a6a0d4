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
