// AVX-512 (F, DQ): included once, inside the namespace and under the target of that path.

constexpr size_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef double Halves __attribute__((vector_size(64), aligned(8), may_alias));

inline Lanes all(float value) { return (Lanes)_mm512_set1_ps(value); }
inline __mmask16 first(size_t count) { return (__mmask16)((1u << count) - 1); }
inline Lanes load(const float* x) { return (Lanes)_mm512_loadu_ps(x); }
inline Lanes load_first(const float* x, size_t count) { return (Lanes)_mm512_maskz_loadu_ps(first(count), x); }
inline void store(float* x, Lanes value) { _mm512_storeu_ps(x, (__m512)value); }
inline void store_first(float* x, Lanes value, size_t count) { _mm512_mask_storeu_ps(x, first(count), (__m512)value); }
inline void stream(float* x, Lanes value) { _mm512_stream_ps(x, (__m512)value); }
inline void end_stream() { _mm_sfence(); }

inline Lanes widen(const int16_t* n) {
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)n)));
}

// bfloat16, rounded to the nearest, ties to even; a NaN stays one.
inline void narrow(uint16_t* x, Lanes value) {
    const __m512i bits = (__m512i)value, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i*)x, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Lanes at_least_zero(Lanes a) { return (Lanes)_mm512_max_ps((__m512)a, _mm512_setzero_ps()); }
inline Lanes magnitude(Lanes a) { return (Lanes)_mm512_abs_ps((__m512)a); }

typedef __mmask16 Mask;
inline Mask reaches(Lanes a, Lanes b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
inline Lanes where(Mask mask, Lanes a) { return (Lanes)_mm512_maskz_mov_ps(mask, (__m512)a); }
inline Lanes unless(Mask mask, Lanes a) { return (Lanes)_mm512_maskz_mov_ps((Mask)~mask, (__m512)a); }

inline Halves low_half(Lanes a) { return (Halves)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a)); }
inline Halves high_half(Lanes a) { return (Halves)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)a, 1)); }
inline double sum_of(Halves a) { return _mm512_reduce_add_pd((__m512d)a); }
inline double sum_of(Lanes a) { return sum_of(low_half(a) + high_half(a)); }
