// Sums of gradients over spikes: included once a path, behind its own header. See events.cpp.

constexpr size_t kSide = kLanes == 16 ? 2 : 1;  // vectors: nine times as many sums are to be registers
constexpr size_t kTile = kSide * kLanes;        // output channels at a time

inline void add_row(Lanes* to, const float* middle) {
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) {
#pragma GCC unroll 2
        for (size_t j = 0; j < kSide; ++j) to[x * kSide + j] += load(middle + (1 - x) * (int)kTile + j * kLanes);
    }
}

// The sum of what lies around each place, or of `all` what is left without it, is added to sums [9, kTile].
void add_taps(const float* grads, size_t columns, const uint32_t* places, size_t count, const float* all, float* sums) {
    Lanes found[kTaps * kSide] = {};
    const size_t row = columns * kTile;
    for (size_t i = 0; i < count; ++i) {
        // a weight's first tap is the gradient below and to the right of a spike, its last that above and to the left
        const float* middle = grads + places[i] * kTile;
        add_row(found, middle + row), add_row(found + 3 * kSide, middle), add_row(found + 6 * kSide, middle - row);
    }
    for (size_t i = 0; i < kTaps * kSide; ++i) {
        const Lanes added = all ? load(all + i * kLanes) - found[i] : found[i];
        store(sums + i * kLanes, load(sums + i * kLanes) + added);
    }
}
