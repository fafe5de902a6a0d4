#include "layer.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace agmm {
namespace {

constexpr size_t kPixelsAtOnce = 256;

}  // namespace

Layer::Layer(const Kernels& kernels, Signs signs, int planes, int threads)
    : kernels_(kernels), signs_(std::move(signs)), planes_(planes), team_(threads), scratch_(team_.size()) {}

bool Layer::run(const uint8_t* x, int count, int height, int width, int16_t* out) {
    const BitMaps maps{planes_, count, height, width, (int)words_of(signs_.in_channels)};
    const int columns = strided(width, signs_.stride), rows = count * strided(height, signs_.stride);
    const int most = std::max<int>(1, kPixelsAtOnce / columns);
    const int parts = std::min(rows, (int)round_up((rows + most - 1) / most, team_.size()));
    prepare(maps, most);
    if (!pack(x, maps)) return false;
    const size_t row = (size_t)columns * signs_.out_channels, padded = (size_t)columns * signs_.out16;
    team_.each(parts, [&](int part, int worker) {
        Scratch& its = scratch_[worker];
        const int first = split(rows, part, parts), last = split(rows, part + 1, parts);
        const bool direct = signs_.out_channels == signs_.out16;
        int16_t* results = direct ? out + first * row : its.results.data();
        convolve(kernels_, signs_, bits_.data(), maps, first, last, its.windows, results, nullptr);
        for (size_t pixel = 0; !direct && pixel < (last - first) * padded / signs_.out16; ++pixel) {
            std::copy_n(results + pixel * signs_.out16, signs_.out_channels,
                        out + first * row + pixel * signs_.out_channels);
        }
    });
    return true;
}

void Layer::prepare(const BitMaps& maps, int rows) {
    const size_t pixels = (size_t)rows * strided(maps.width, signs_.stride);
    reserve(bits_, maps.size());
    for (Scratch& its : scratch_) {
        its.windows.prepare(pixels, maps.row());
        if (signs_.out_channels != signs_.out16) reserve(its.results, pixels * signs_.out16);
    }
}

bool Layer::pack(const uint8_t* x, const BitMaps& maps) {
    const size_t row = (size_t)maps.width * signs_.in_channels;
    std::atomic<bool> fits{true};
    team_.each(maps.steps * maps.height, [&](int at, int) {
        const int n = at / maps.height, y = at % maps.height;
        uint64_t* bits = bits_.data() + maps.at(n, y, 0);
        if (!kernels_.pack_values(x + at * row, maps.width, signs_.in_channels, maps.planes, maps.plane(), bits)) {
            fits = false;
        }
        clear_border(bits_.data(), maps, n, y);
    });
    return fits;
}

}  // namespace agmm
