// AVX-512 (F, BW, DQ, VL, VPOPCNTDQ): included once, inside the namespace and under the target of that path.

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));

inline Lanes all(float value) { return (Lanes)_mm512_set1_ps(value); }

inline Lanes from_int16(const int16_t* n) {
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)n)));
}

// Bit i is set where lane i reached the threshold; the membrane is reset there.
template <bool kHard>
inline unsigned spike_and_reset(Lanes& membrane, Lanes threshold) {
    const __mmask16 fired = _mm512_cmp_ps_mask((__m512)membrane, (__m512)threshold, _CMP_GE_OQ);
    const __m512 u = (__m512)membrane;
    membrane = kHard ? (Lanes)_mm512_maskz_mov_ps(_knot_mask16(fired), u)
                     : (Lanes)_mm512_mask_sub_ps(u, fired, u, (__m512)threshold);
    return fired;
}

inline int popcount(uint64_t x) { return (int)_mm_popcnt_u64(x); }

// Which of 64 bytes have one of the bits.
inline uint64_t bits_of_bytes(const uint8_t* x, uint8_t bits) {
    return _mm512_test_epi8_mask(_mm512_loadu_si512(x), _mm512_set1_epi8((char)bits));
}

constexpr int kPixels = 12;  // x 2 accumulators of 8 channels: 24 of 32 registers

// 8 output channels x 64 input channels a register: [out16 / 16, 9 * words, 16].
size_t sign_words(int out_channels, int in_channels) {
    return round_up(out_channels, kGroup) * 9 * words_of(in_channels);
}

void pack_signs(const uint8_t* signs, int out_channels, int in_channels, uint64_t* weights) {
    pack_by_words(signs, out_channels, in_channels, weights);
}

// Of two registers of 8 channels, the lowest 16 bits of each.
inline __m256i dots_of(__m512i low, __m512i high, int spikes) {
    alignas(64) static const int16_t lowest[32] = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60};
    const __m256i sums = _mm512_castsi512_si256(_mm512_permutex2var_epi16(low, _mm512_load_si512(lowest), high));
    return _mm256_sub_epi16(_mm256_add_epi16(sums, sums), _mm256_set1_epi16((int16_t)spikes));
}

inline __m512i overlap(__m512i signs, __m512i spikes) { return _mm512_popcnt_epi64(_mm512_and_si512(signs, spikes)); }

// Of the words of a window from its first: one loop over all of them is faster than one in another.
struct Offsets {
    size_t begin[3 * 3 * kMostWords], *end = begin;

    explicit Offsets(const Dots& job) {
        for (int row = 0; row < 3; ++row) {
            for (int k = 0; k < job.run; ++k) *end++ = row * job.pitch + k;
        }
    }
};

// P windows x 16 output channels, of which `weights` are the signs.
template <int P, bool kPlanes>
inline void dot_block(const Dots& job, const Offsets& offsets, const uint64_t* const* windows, const uint64_t* weights,
                      const int32_t* spikes, int16_t* out) {
    const uint64_t *s[P], *b = weights;
    __m512i low[P], high[P];
    const size_t *offset = offsets.begin, out_pitch = job.out16, plane_pitch = job.plane;
    int plane = kPlanes ? job.planes - 1 : 0;
    {  // the first word begins the sums: to add it to zeros would cost a tenth of a convolution of 64 channels
        const size_t at = *offset++ + plane * plane_pitch;
        const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 8);
        AGMM_EACH(p, P, s[p] = windows[p]; const __m512i word = _mm512_set1_epi64((int64_t)s[p][at]);
                  low[p] = overlap(b0, word); high[p] = overlap(b1, word));
        b += kGroup;
    }
    for (;; offset = offsets.begin, b = weights) {
        for (const size_t* end = offsets.end; offset < end; ++offset, b += kGroup) {
            const size_t at = *offset + plane * plane_pitch;
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 8);
            AGMM_EACH(p, P, const __m512i word = _mm512_set1_epi64((int64_t)s[p][at]);
                      low[p] = _mm512_add_epi64(low[p], overlap(b0, word));
                      high[p] = _mm512_add_epi64(high[p], overlap(b1, word)));
        }
        if (!kPlanes || plane-- == 0) break;  // the heaviest first, doubled by the others
        AGMM_EACH(p, P, low[p] = _mm512_slli_epi64(low[p], 1); high[p] = _mm512_slli_epi64(high[p], 1));
    }
    AGMM_EACH(p, P, _mm256_storeu_si256((__m256i*)(out + p * out_pitch), dots_of(low[p], high[p], spikes[p])));
}

template <int P, bool kPlanes>
inline void dot_block_of(int count, const Dots& job, const Offsets& offsets, int first, int column) {
    if (count == P) {
        const uint64_t* weights = job.weights + (size_t)column * 3 * job.run;
        int16_t* out = job.out + (size_t)first * job.out16 + column;
        return dot_block<P, kPlanes>(job, offsets, job.windows + first, weights, job.spikes + first, out);
    }
    if constexpr (P > 1) dot_block_of<P - 1, kPlanes>(count, job, offsets, first, column);
}

void dots(const Dots& job) {
    Offsets offsets(job);
    for (int column = 0; column < job.out16; column += kGroup) {
        for (int first = 0; first < job.count; first += kPixels) {
            const int count = job.count - first < kPixels ? job.count - first : kPixels;
            if (job.planes > 1)
                dot_block_of<kPixels, true>(count, job, offsets, first, column);
            else
                dot_block_of<kPixels, false>(count, job, offsets, first, column);
        }
    }
}
