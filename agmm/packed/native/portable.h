// Any 64-bit processor, arm64 among them: included once, inside the namespace of that path.

constexpr int kLanes = 4;
typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));

inline Lanes all(float value) { return Lanes{value, value, value, value}; }

inline Lanes from_int16(const int16_t* n) { return Lanes{(float)n[0], (float)n[1], (float)n[2], (float)n[3]}; }

template <bool kHard>
inline unsigned spike_and_reset(Lanes& membrane, Lanes threshold) {
    const auto fired = membrane >= threshold;
    const Lanes after = kHard ? Lanes{0, 0, 0, 0} : membrane - threshold;
    membrane = fired ? after : membrane;
    return (fired[0] & 1) | (fired[1] & 2) | (fired[2] & 4) | (fired[3] & 8);
}

size_t sign_words(int out_channels, int in_channels) {
    return round_up(out_channels, kGroup) * 9 * words_of(in_channels);
}

void pack_signs(const uint8_t* signs, int out_channels, int in_channels, uint64_t* weights) {
    pack_by_words(signs, out_channels, in_channels, weights);
}

// Set bits of each byte: 0..8. The compiler makes vectors of it.
inline uint64_t byte_counts(uint64_t x) {
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    return (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}

inline uint64_t sum_of_bytes(uint64_t x) {  // 16 bits wide on the way: eight bytes may sum to more than 255
    x = (x & 0x00ff00ff00ff00ffu) + ((x >> 8) & 0x00ff00ff00ff00ffu);
    return (x * 0x0001000100010001u) >> 48;
}

inline int popcount(uint64_t x) { return (int)sum_of_bytes(byte_counts(x)); }

// Which of 64 bytes have one of the bits: a product brings the lowest bits of eight bytes side by side.
inline uint64_t bits_of_bytes(const uint8_t* x, uint8_t bits) {
    uint64_t found = 0;
    for (int i = 0; i < 8; ++i) {
        uint64_t bytes;
        std::memcpy(&bytes, x + 8 * i, 8);
        bytes &= bits * 0x0101010101010101u;
        bytes |= bytes >> 4;
        bytes |= bytes >> 2;
        bytes |= bytes >> 1;
        found |= ((bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return found;
}

// A row of a window against 16 channels. Bytes count up to 8 a word: 30 words fit before they are summed.
inline void dot_row(const uint64_t* s, const uint64_t* weights, int run, uint64_t* acc) {
    for (int begin = 0; begin < run; begin += 30) {
        const int end = begin + 30 < run ? begin + 30 : run;
        uint64_t bytes[kGroup] = {};
        for (int k = begin; k < end; ++k) {
            for (int o = 0; o < kGroup; ++o) bytes[o] += byte_counts(weights[k * kGroup + o] & s[k]);
        }
        for (int o = 0; o < kGroup; ++o) acc[o] += sum_of_bytes(bytes[o]);
    }
}

inline void dot_pixel(const Dots& job, int pixel, int column, int16_t* out) {
    uint64_t acc[kGroup] = {};
    for (int plane = job.planes - 1; plane >= 0; --plane) {  // the heaviest first, doubled by the others
        const uint64_t* weights = job.weights + (size_t)column * 3 * job.run;
        for (int o = 0; o < kGroup; ++o) acc[o] *= 2;
        for (int row = 0; row < 3; ++row, weights += job.run * kGroup) {
            dot_row(job.windows[pixel] + row * job.pitch + plane * job.plane, weights, job.run, acc);
        }
    }
    for (int o = 0; o < kGroup; ++o) out[o] = (int16_t)(2 * (int)acc[o] - job.spikes[pixel]);
}

void dots(const Dots& job) {
    for (int column = 0; column < job.out16; column += kGroup) {
        for (int pixel = 0; pixel < job.count; ++pixel) {
            dot_pixel(job, pixel, column, job.out + (size_t)pixel * job.out16 + column);
        }
    }
}
