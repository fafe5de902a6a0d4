// The floating-point parts of a path, over its `Lanes`: included once a path, behind its own header.

constexpr int kParts = kGroup / kLanes;

inline Lanes load(const float* x) { return *(const Lanes*)x; }
inline void store(float* x, Lanes value) { *(Lanes*)x = value; }

// kSource: 1 the convolution, 2 the stream, 3 their sum.
template <int kSource>
inline Lanes current(const Fire& job, int t, size_t at, size_t channel) {
    Lanes x = {};
    if (kSource & 2) x = load(job.in + t * job.in_step + at);
    if (kSource & 1) {
        const size_t affine = t * job.affine_step + channel;
        const Lanes n = from_int16(job.n + t * job.step + at);
        const Lanes y = n * load(job.scale + affine) + load(job.bias + affine);
        x = (kSource & 2) ? x + y : y;
    }
    return x;
}

// A quarter of a word of spikes.
typedef uint16_t Bits16 __attribute__((may_alias));

// Streams of large layers come from the outer caches: asked for so many values before they are needed.
constexpr size_t kAhead = 256;

template <int kSource, bool kHard>
inline void fire_group(const Fire& job, size_t at, size_t channel, Bits16* bits) {
    const Lanes threshold = all(job.neuron.threshold), leak = all(job.neuron.leak);
    Lanes membrane[kParts];
    for (int i = 0; i < kParts; ++i) membrane[i] = all(job.neuron.start);
    for (int t = 0; t < job.steps; ++t) {
        unsigned spikes = 0;
        if (kSource & 2) __builtin_prefetch(job.in + t * job.in_step + at + kAhead, 1);
        if (kSource & 1) __builtin_prefetch(job.n + t * job.step + at + kAhead);
        for (int i = 0; i < kParts; ++i) {
            const Lanes x = current<kSource>(job, t, at + i * kLanes, channel + i * kLanes);
            if (job.out) store(job.out + t * job.step + at + i * kLanes, x);
            membrane[i] = leak * membrane[i] + x;
            spikes |= spike_and_reset<kHard>(membrane[i], threshold) << (i * kLanes);
        }
        bits[t * job.bits_step * 4] = (Bits16)spikes;
    }
}

// The last block of a ResNet: the stream alone.
template <int kSource>
inline void stream_group(const Fire& job, size_t at, size_t channel) {
    for (int t = 0; t < job.steps; ++t) {
        for (int i = 0; i < kGroup; i += kLanes) {
            store(job.out + t * job.step + at + i, current<kSource>(job, t, at + i, channel + i));
        }
    }
}

// 16 bits a group of channels: the order of the bytes of a word is the little end first.
template <int kSource, bool kHard>
void fire_pixels(const Fire& shared, size_t first, size_t count, size_t bits_offset) {
    const Fire job = shared;  // our own: nothing that is stored can change it
    const size_t groups = job.out16 / kGroup, parts = words_of(job.out16) * 4;
    for (size_t pixel = 0; pixel < count; ++pixel) {
        const size_t at = (first + pixel) * job.out16;
        Bits16* bits = (Bits16*)(job.bits + bits_offset) + pixel * parts;
        for (size_t g = 0; g < groups; ++g) fire_group<kSource, kHard>(job, at + g * kGroup, g * kGroup, bits + g);
        for (size_t g = groups; g < parts; ++g) {
            for (int t = 0; t < job.steps; ++t) bits[t * job.bits_step * 4 + g] = 0;
        }
    }
}

template <int kSource>
void fire_from(const Fire& job, size_t first, size_t count, size_t bits_offset) {
    if (job.bits && job.neuron.hard) return fire_pixels<kSource, true>(job, first, count, bits_offset);
    if (job.bits) return fire_pixels<kSource, false>(job, first, count, bits_offset);
    for (size_t at = first * job.out16; at < (first + count) * job.out16; at += kGroup) {
        stream_group<kSource>(job, at, at % job.out16);
    }
}

void fire(const Fire& job, size_t first, size_t count, size_t bits_offset) {
    if (!job.n) return fire_from<2>(job, first, count, bits_offset);
    if (!job.in) return fire_from<1>(job, first, count, bits_offset);
    return fire_from<3>(job, first, count, bits_offset);
}

// P windows x 32 channels, all sums in registers on AVX-512 (P = 12) and AVX2 (P = 3).
constexpr int kWideParts = kWide / kLanes, kWindows = kLanes == 16 ? 12 : 3;

template <int P>
inline void product_block(const Products& job, const float* const* windows, int column, float* out) {
    const float *x[P], *w = job.weights + (size_t)column * job.rows * job.run;
    Lanes acc[P * kWideParts];
    AGMM_EACH(p, P, x[p] = windows[p]);
    AGMM_EACH(i, P * kWideParts, acc[i] = Lanes{});
    const size_t rows = job.rows, run = job.run, pitch = job.pitch, out_pitch = job.out16;
    for (size_t row = 0, at = 0; row < rows; ++row, at += pitch - run) {
        for (const size_t end = at + run; at < end; ++at, w += kWide) {
            Lanes weights[kWideParts];
            AGMM_EACH(i, kWideParts, weights[i] = load(w + i * kLanes));
            AGMM_EACH(i, P * kWideParts, acc[i] = all(x[i / kWideParts][at]) * weights[i % kWideParts] + acc[i]);
        }
    }
    const int parts = (job.out16 - column < kWide ? job.out16 - column : kWide) / kLanes;
    const float *scale = job.scale + column, *bias = job.bias + column;
    AGMM_EACH(
        i, P * kWideParts, constexpr int part = i % kWideParts; if (part < parts) {
            float* to = out + (i / kWideParts) * out_pitch + part * kLanes;
            store(to, acc[i] * load(scale + part * kLanes) + load(bias + part * kLanes));
        });
}

template <int P>
inline void product_block_of(int windows, const Products& job, int first, int column) {
    if (windows == P) {
        return product_block<P>(job, job.windows + first, column, job.out + (size_t)first * job.out16 + column);
    }
    if constexpr (P > 1) product_block_of<P - 1>(windows, job, first, column);
}

void products(const Products& job) {
    const int blocks = (job.count + kWindows - 1) / kWindows;
    for (int column = 0; column < job.out16; column += kWide) {
        for (int block = 0; block < blocks; ++block) {
            const int first = split(job.count, block, blocks), last = split(job.count, block + 1, blocks);
            product_block_of<kWindows>(last - first, job, first, column);
        }
    }
}

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

void max_pool_row(const float* const* rows, int width, int channels, float* out) {
    for (int x = 0; x < (width + 1) / 2; ++x) {
        const int left = 2 * x - (x > 0), right = 2 * x + (2 * x + 1 < width);
        for (int c = 0; c < channels; c += kLanes) {
            Lanes most = load(rows[1] + (size_t)2 * x * channels + c);
            for (int row = 0; row < 3; ++row) {
                for (int at = left; rows[row] && at <= right; ++at) {
                    most = larger(most, load(rows[row] + (size_t)at * channels + c));
                }
            }
            store(out + (size_t)x * channels + c, most);
        }
    }
}

void mean_row(const float* x, int rows, int width, int channels, int size, float* out) {
    for (int begin = 0; begin < width; begin += size, out += channels) {
        const int end = begin + size < width ? begin + size : width;
        const float share = 1.0f / (float)(rows * (end - begin));
        for (int c = 0; c < channels; c += kLanes) {
            Lanes sum = {};
            for (int row = 0; row < rows; ++row) {
                for (int at = begin; at < end; ++at) sum += load(x + ((size_t)row * width + at) * channels + c);
            }
            store(out + c, sum * all(share));
        }
    }
}

// Sums of 16 bits as long as they cannot overflow, which is what makes this cheap.
void column_sums(const int16_t* n, size_t count, int out16, int bound, int64_t* sums) {
    const size_t batch = bound > 0 ? 32767 / bound : count;
    for (int column = 0; column < out16; column += kGroup) {
        for (size_t begin = 0; begin < count; begin += batch) {
            const size_t end = begin + batch < count ? begin + batch : count;
            int16_t part[kGroup] = {};
            for (size_t pixel = begin; pixel < end; ++pixel) {
                for (int i = 0; i < kGroup; ++i) part[i] = (int16_t)(part[i] + n[pixel * out16 + column + i]);
            }
            for (int i = 0; i < kGroup; ++i) sums[column + i] += part[i];
        }
    }
}

// Spikes of words above each other; planes weighted, or each place once whose value is not zero.
inline int word_spikes(const uint64_t* bits, const BitMaps& maps, bool once) {
    const uint64_t one = bits[0], two = bits[maps.plane()], four = bits[2 * maps.plane()];
    return once ? popcount(one | two | four) : popcount(one) + 2 * popcount(two) + 4 * popcount(four);
}

// Of the three rows from `top` on, word by word.
inline void row_spikes(const uint64_t* top, const BitMaps& maps, bool once, int32_t* out) {
    const size_t count = maps.row();
    const uint64_t *middle = top + count, *bottom = middle + count;
    if (maps.planes == 1) {
        for (size_t i = 0; i < count; ++i) out[i] = popcount(top[i]) + popcount(middle[i]) + popcount(bottom[i]);
        return;
    }
    for (size_t i = 0; i < count; ++i) {
        out[i] = word_spikes(top + i, maps, once) + word_spikes(middle + i, maps, once) +
                 word_spikes(bottom + i, maps, once);
    }
}

// Words become pixels; in place.
inline void add_words(int32_t* sums, int pixels, int words) {
    for (int x = 0; words > 1 && x < pixels; ++x) {
        int sum = 0;
        for (int word = 0; word < words; ++word) sum += sums[x * words + word];
        sums[x] = sum;
    }
}

int64_t window_spikes(const uint64_t* top, const BitMaps& maps, int stride, bool once, int32_t* room, int32_t* out) {
    const int count = strided(maps.width, stride);
    row_spikes(top, maps, once, room);
    add_words(room, maps.width + 2, maps.words);
    int64_t total = 0;
    for (int x = 0; x < count; ++x) {
        const int32_t* column = room + x * stride;
        out[x] = column[0] + column[1] + column[2];
        total += out[x];
    }
    return total;
}

int64_t count_bits(const uint64_t* words, size_t count) {
    int64_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum += popcount(words[i]);
    return sum;
}

// 64 values of a pixel, or the last of them, as bits. Not zero where a value does not fit.
inline uint64_t pack_word(const uint8_t* values, int planes, size_t plane, uint64_t* bits) {
    bits[0] = bits_of_bytes(values, 1);
    if (planes == 1) return bits_of_bytes(values, 0xfe);
    bits[plane] = bits_of_bytes(values, 2);
    bits[2 * plane] = bits_of_bytes(values, 4);
    return bits_of_bytes(values, 0xf8) | (bits[2 * plane] & (bits[0] | bits[plane]));
}

bool pack_values(const uint8_t* x, int pixels, int channels, int planes, size_t plane, uint64_t* bits) {
    const int whole = channels / 64, rest = channels % 64;
    uint8_t last[64] = {};
    uint64_t wrong = 0;
    for (int pixel = 0; pixel < pixels; ++pixel, x += rest) {
        for (int word = 0; word < whole; ++word, x += 64) wrong |= pack_word(x, planes, plane, bits++);
        if (rest) wrong |= pack_word((const uint8_t*)std::memcpy(last, x, rest), planes, plane, bits++);
    }
    return wrong == 0;
}

// 16 values as bits; `wrong` becomes other than zero where one is neither 0 nor the threshold.
inline unsigned pack_group(const float* values, Lanes threshold, Lanes& wrong) {
    unsigned reached = 0;
    for (int i = 0; i < kParts; ++i) {
        Lanes x = load(values + i * kLanes);
        reached |= spike_and_reset<false>(x, threshold) << (i * kLanes);
        wrong += x * x;  // what is left when the threshold is taken off
    }
    return reached;
}

bool pack_floats(const float* x, int pixels, int channels, float threshold, uint64_t* bits) {
    const int whole = channels / kGroup, rest = channels % kGroup, groups = (int)words_of(channels) * 4;
    float last[kGroup] = {};
    Lanes wrong = {};
    for (int pixel = 0; pixel < pixels; ++pixel, x += channels, bits += groups / 4) {
        Bits16* to = (Bits16*)bits;
        for (int g = 0; g < whole; ++g) to[g] = (Bits16)pack_group(x + g * kGroup, all(threshold), wrong);
        for (int g = whole; g < groups; ++g) to[g] = 0;
        if (!rest) continue;
        std::memcpy(last, x + whole * kGroup, rest * sizeof(float));
        to[whole] = (Bits16)(pack_group(last, all(threshold), wrong) & ((1u << rest) - 1));
    }
    for (int i = 0; i < kLanes; ++i) {
        if (!(wrong[i] == 0)) return false;
    }
    return true;
}

template <typename Value>
inline void unpack(const uint64_t* bits, int pixels, int channels, Value one, Value* x) {
    const int words = (int)words_of(channels);
    for (int pixel = 0; pixel < pixels; ++pixel, bits += words) {
        for (int begin = 0; begin < channels; begin += 32) {
            const uint32_t part = (uint32_t)(bits[begin / 64] >> (begin % 64));
            const int count = channels - begin < 32 ? channels - begin : 32;
            Value* to = x + (size_t)pixel * channels + begin;
            for (int i = 0; i < count; ++i) to[i] = (Value)(part >> i & 1) * one;
        }
    }
}

void unpack_floats(const uint64_t* bits, int pixels, int channels, float* x) { unpack(bits, pixels, channels, 1.0f, x); }

constexpr uint16_t kOneHalf = 0x3f80;  // 1 in bfloat16

void unpack_halves(const uint64_t* bits, int pixels, int channels, uint16_t* x) {
    unpack(bits, pixels, channels, kOneHalf, x);
}

// As many chains as hide the latency of an addition: what a processor can do at the most.
int64_t multiply_adds(int64_t rounds, float* sum) {
    constexpr int kChains = 12;
    const Lanes factor = all(*sum), term = all(*sum + 1);
    Lanes chain[kChains], total = {};
    AGMM_EACH(i, kChains, chain[i] = all((float)i));
    for (int64_t round = 0; round < rounds; ++round) AGMM_EACH(i, kChains, chain[i] = chain[i] * factor + term);
    AGMM_EACH(i, kChains, total += chain[i]);
    *sum = 0;
    for (int i = 0; i < kLanes; ++i) *sum += total[i];
    return kChains * kLanes;
}
