// How a pass goes over a tensor, and what it sums: included once a path, behind its own header.
//
// A line is values side by side: the pixels of one channel, or the channels of one pixel. What a channel has one of is
// one value of a line in the first case, and a line itself in the second.

// Where a group of up to kLanes values lies: in a step, among [B, C], and among [C].
struct Place {
    size_t at, coefficient, channel, count;
};

inline Lanes widen_first(const int16_t* n, size_t count) {
    int16_t whole[kLanes] = {};
    std::memcpy(whole, n, count * sizeof *n);
    return widen(whole);
}

inline void narrow_first(uint16_t* x, Lanes value, size_t count) {
    uint16_t whole[kLanes];
    narrow(whole, value);
    std::memcpy(x, whole, count * sizeof *x);
}

// kFull: a whole group of kLanes.
template <bool kFull>
inline Lanes take(const float* x, size_t count) {
    return kFull ? load(x) : load_first(x, count);
}

template <bool kFull>
inline void give(float* x, Lanes value, size_t count, bool past_caches) {
    if (!kFull) return store_first(x, value, count);
    past_caches ? stream(x, value) : store(x, value);
}

// kLast: channels come last.
template <bool kLast, bool kFull>
inline Lanes of_channel(const float* x, size_t count) {
    return kLast ? take<kFull>(x, count) : all(*x);
}

// n in units of its channel, `at` a place of all steps.
template <bool kLast, bool kFull>
inline Lanes take_n(const AgmmCounts& counts, size_t at, const Place& place) {
    const Lanes value = counts.sums ? (kFull ? widen(counts.sums + at) : widen_first(counts.sums + at, place.count))
                                    : take<kFull>(counts.n + at, place.count);
    return counts.unit ? value * of_channel<kLast, kFull>(counts.unit + place.channel, place.count) : value;
}

// Groups of a line of `length` values; each is told which channel of the line it begins with.
template <bool kLast, typename Body, typename Sums>
inline void each_group(const Body& body, Place line, size_t length, Sums& sums) {
    size_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
        const size_t moved = kLast ? i : 0;
        body.template run<true>({line.at + i, line.coefficient + moved, line.channel + moved, kLanes}, sums, moved);
    }
    if (i < length) {
        const size_t moved = kLast ? i : 0;
        body.template run<false>({line.at + i, line.coefficient + moved, line.channel + moved, length - i}, sums, moved);
    }
}

// Groups, or pixels, whose values are summed in float before the sums are added to totals in double: too few to lose
// anything that counts.
constexpr size_t kRun = 32;

// All lines of a part; body.take_up(line, sums) after a run.
template <bool kLast, typename Body>
inline void each_line(Body& body, const Shape& shape, Part part) {
    const size_t pixels = shape.pixels, channels = shape.channels, from = part.sample * channels;
    typename Body::Sums sums;
    if (kLast) {
        Place line = {0, from + part.begin, part.begin, part.end - part.begin};
        for (size_t pixel = 0; pixel < pixels; ++pixel) {
            line.at = (part.sample * pixels + pixel) * channels + part.begin;
            each_group<true>(body, line, line.count, sums);
            if (pixel % kRun == kRun - 1 || pixel + 1 == pixels) body.take_up(line, sums);
        }
        return;
    }
    for (size_t channel = part.begin; channel < part.end; ++channel) {
        for (size_t pixel = 0; pixel < pixels; pixel += kRun * kLanes) {
            const Place line = {(from + channel) * pixels + pixel, from + channel, channel, 1};
            each_group<false>(body, line, pixels - pixel < kRun * kLanes ? pixels - pixel : kRun * kLanes, sums);
            body.take_up(line, sums);
        }
    }
}

struct Floats {
    using Vector = Lanes;
    using Value = float;
};

struct Doubles {
    using Vector = Halves;
    using Value = double;
};

// Sums of a channel's values: kept in registers, since one channel comes after the other.
template <typename Of, size_t kNumber>
struct LineSums {
    typename Of::Vector values[kNumber] = {};

    void add(size_t which, size_t, typename Of::Vector value) { values[which] += value; }

    void move_to(double* total, size_t which, size_t) {
        *total += sum_of(values[which]);
        values[which] = typename Of::Vector{};
    }
};

// Sums of many channels at once.
template <typename Of, size_t kNumber>
struct WideSums {
    alignas(64) typename Of::Value values[kNumber][kWide] = {};

    void add(size_t which, size_t channel, typename Of::Vector value) {
        auto* to = (typename Of::Vector*)(values[which] + channel);
        *to = *to + value;
    }

    void move_to(double* totals, size_t which, size_t channels) {
        for (size_t i = 0; i < channels; ++i) totals[i] += values[which][i];
        std::memset(values[which], 0, channels * sizeof values[which][0]);
    }
};

template <bool kLast, typename Of, size_t kNumber>
using SumsOf = std::conditional_t<kLast, WideSums<Of, kNumber>, LineSums<Of, kNumber>>;

// Passes that sum nothing.
struct NoSums {};
