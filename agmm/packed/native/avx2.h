// AVX2 with FMA: included once, inside the namespace and under the target of that path.
//
// There is no popcount of vectors. Popcounts of 4 spikes & 4 signs are looked up instead, for 32 output channels in one
// shuffle: the spikes choose the table, the signs are the places in it.

constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

inline Lanes all(float value) { return (Lanes)_mm256_set1_ps(value); }

inline Lanes from_int16(const int16_t* n) {
    return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)n)));
}

// Bit i is set where lane i reached the threshold; the membrane is reset there.
template <bool kHard>
inline unsigned spike_and_reset(Lanes& membrane, Lanes threshold) {
    const __m256 u = (__m256)membrane, fired = _mm256_cmp_ps(u, (__m256)threshold, _CMP_GE_OQ);
    membrane =
        kHard ? (Lanes)_mm256_andnot_ps(fired, u) : (Lanes)_mm256_sub_ps(u, _mm256_and_ps(fired, (__m256)threshold));
    return (unsigned)_mm256_movemask_ps(fired);
}

inline int popcount(uint64_t x) { return (int)_mm_popcnt_u64(x); }

inline uint32_t bits_of_half(const uint8_t* x, __m256i bits) {
    const __m256i none = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)x), bits), __m256i{});
    return ~(uint32_t)_mm256_movemask_epi8(none);
}

// Which of 64 bytes have one of the bits.
inline uint64_t bits_of_bytes(const uint8_t* x, uint8_t bits) {
    const __m256i wanted = _mm256_set1_epi8((char)bits);
    return (uint64_t)bits_of_half(x + 32, wanted) << 32 | bits_of_half(x, wanted);
}

constexpr int kPixels = 4, kColumns = 64, kNibbles = 16;
constexpr int kStep = kColumns / 8;  // words of the signs of 64 channels for 4 inputs: a byte each

size_t sign_words(int out_channels, int in_channels) {
    return round_up(out_channels, kColumns) / kColumns * 9 * words_of(in_channels) * kNibbles * kStep;
}

// Byte of a channel within its 64: in the order that unpacking to 16 bits undoes.
inline size_t byte_of(size_t channel) {
    const size_t eighth = channel % 32 / 8, swapped = eighth == 1 ? 2 : eighth == 2 ? 1 : eighth;
    return channel / 32 * 32 + swapped * 8 + channel % 8;
}

// [out / 64, 9 * words, 16 nibbles, 64 bytes], four signs a byte.
void pack_signs(const uint8_t* signs, int out_channels, int in_channels, uint64_t* weights) {
    const size_t taps = 9 * words_of(in_channels);
    std::memset(weights, 0, sign_words(out_channels, in_channels) * sizeof(uint64_t));
    each_sign_word(signs, out_channels, in_channels, [&](size_t o, size_t k, uint64_t word) {
        uint8_t* to = (uint8_t*)(weights + (o / kColumns * taps + k) * kNibbles * kStep) + byte_of(o % kColumns);
        for (int nibble = 0; nibble < kNibbles; ++nibble) to[nibble * kColumns] = word >> (4 * nibble) & 15;
    });
}

// Row s: how many bits s shares with 0, 1, .. 15.
alignas(64) const uint8_t kShared[16][16] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
    {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1}, {0, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1, 2},
    {0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1}, {0, 1, 0, 1, 1, 2, 1, 2, 0, 1, 0, 1, 1, 2, 1, 2},
    {0, 0, 1, 1, 1, 1, 2, 2, 0, 0, 1, 1, 1, 1, 2, 2}, {0, 1, 1, 2, 1, 2, 2, 3, 0, 1, 1, 2, 1, 2, 2, 3},
    {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}, {0, 1, 0, 1, 0, 1, 0, 1, 1, 2, 1, 2, 1, 2, 1, 2},
    {0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2}, {0, 1, 1, 2, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3},
    {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2}, {0, 1, 0, 1, 1, 2, 1, 2, 1, 2, 1, 2, 2, 3, 2, 3},
    {0, 0, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2, 2, 2, 3, 3}, {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4},
};

// One word of P windows against 64 channels: 16 nibbles of up to 4 each, added to bytes.
template <int P>
inline void add_word(uint64_t* s, const uint64_t* signs, __m256i* sums) {
    AGMM_EACH(p, P, s[p] = s[p] << 4 | s[p] >> 60);  // the lowest nibble becomes 16 times a table's number
    for (int nibble = 0; nibble < kNibbles; ++nibble, signs += kStep) {
        const __m256i low = _mm256_loadu_si256((const __m256i*)signs);
        const __m256i high = _mm256_loadu_si256((const __m256i*)(signs + 4));
        AGMM_EACH(p, P, const __m128i* row = (const __m128i*)(kShared[0] + (s[p] & 0xf0));
                  s[p] = s[p] >> 4 | s[p] << 60; const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(row));
                  sums[2 * p] = _mm256_add_epi8(sums[2 * p], _mm256_shuffle_epi8(table, low));
                  sums[2 * p + 1] = _mm256_add_epi8(sums[2 * p + 1], _mm256_shuffle_epi8(table, high)));
    }
}

inline void add_bytes(__m256i bytes, __m256i* sums) {
    sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(bytes, _mm256_setzero_si256()));
    sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(bytes, _mm256_setzero_si256()));
}

inline void store_dots(const __m256i* sums, int spikes, int columns, int16_t* out) {
    for (int i = 0; i * kGroup < columns; ++i) {
        const __m256i n = _mm256_sub_epi16(_mm256_slli_epi16(sums[i], 1), _mm256_set1_epi16((int16_t)spikes));
        _mm256_storeu_si256((__m256i*)(out + i * kGroup), n);
    }
}

// P windows x 64 output channels.
template <int P>
inline void dot_block(const Dots& job, const uint64_t* const* windows, const uint64_t* weights, const int32_t* spikes,
                      int columns, int16_t* out) {
    __m256i sums[P][4];
    for (int i = 0; i < 4 * P; ++i) sums[i / 4][i % 4] = _mm256_setzero_si256();
    const size_t run = job.run, pitch = job.pitch, out_pitch = job.out16;
    for (int plane = job.planes - 1; plane >= 0; --plane) {  // the heaviest first, doubled by the others
        for (int i = 0; i < 4 * P; ++i) sums[i / 4][i % 4] = _mm256_slli_epi16(sums[i / 4][i % 4], 1);
        const uint64_t* b = weights;
        for (size_t row = 0; row < 3; ++row) {
            const size_t begin = plane * job.plane + row * pitch;
            for (size_t at = begin; at < begin + run; at += 3) {  // 3 words: bytes reach 3 * 64 at the most
                __m256i bytes[2 * P];
                AGMM_EACH(i, 2 * P, bytes[i] = _mm256_setzero_si256());
                for (size_t k = at; k < at + 3; ++k, b += kNibbles * kStep) {
                    uint64_t s[P];
                    AGMM_EACH(p, P, s[p] = windows[p][k]);
                    add_word<P>(s, b, bytes);
                }
                AGMM_EACH(i, 2 * P, add_bytes(bytes[i], sums[i / 2] + i % 2 * 2));
            }
        }
    }
    for (int p = 0; p < P; ++p) store_dots(sums[p], spikes[p], columns, out + p * out_pitch);
}

template <int P>
inline void dot_block_of(int count, const Dots& job, int first, int column) {
    if (count == P) {
        const uint64_t* weights = job.weights + (size_t)column / kColumns * 3 * job.run * kNibbles * kStep;
        const int columns = job.out16 - column < kColumns ? job.out16 - column : kColumns;
        int16_t* out = job.out + (size_t)first * job.out16 + column;
        return dot_block<P>(job, job.windows + first, weights, job.spikes + first, columns, out);
    }
    if constexpr (P > 1) dot_block_of<P - 1>(count, job, first, column);
}

void dots(const Dots& job) {
    const int blocks = (job.count + kPixels - 1) / kPixels;
    for (int column = 0; column < job.out16; column += kColumns) {
        for (int block = 0; block < blocks; ++block) {
            const int first = split(job.count, block, blocks), last = split(job.count, block + 1, blocks);
            dot_block_of<kPixels>(last - first, job, first, column);
        }
    }
}
