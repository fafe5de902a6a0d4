#include "spikes.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "team.h"

namespace agmm {
namespace {

constexpr int kPixelsAtOnce = 256;

// Never destroyed: a process may end while its threads sleep.
std::unique_ptr<Team>& kept_team() {
    static auto* kept = new std::unique_ptr<Team>;
    return *kept;
}

}  // namespace

void share(int threads, int count, const std::function<void(int)>& work) {
    static std::mutex turn;
    std::unique_lock<std::mutex> lock(turn, std::defer_lock);
    if (threads > 1 && count > 1 && lock.try_lock()) {
        std::unique_ptr<Team>& team = kept_team();
        if (!team || team->size() != threads) team = std::make_unique<Team>(threads);
        return team->each(count, [&](int index, int) { work(index); });
    }
    for (int index = 0; index < count; ++index) work(index);
}

bool pack_spikes(const Kernels& kernels, int threads, const float* x, const BitMaps& maps, int channels,
                 uint64_t* bits) {
    const size_t row = (size_t)maps.width * channels;
    std::atomic<bool> fits{true};
    share(threads, maps.steps * maps.height, [&](int at) {
        const int n = at / maps.height, y = at % maps.height;
        if (!kernels.pack_floats(x + at * row, maps.width, channels, 1.0f, bits + maps.at(n, y, 0))) fits = false;
        clear_border(bits, maps, n, y);
    });
    return fits;
}

namespace {

template <typename Value>
void unpack_rows(void (*unpack)(const uint64_t*, int, int, Value*), int threads, const uint64_t* bits,
                 const BitMaps& maps, int channels, Value* x) {
    const size_t row = (size_t)maps.width * channels;
    share(threads, maps.steps * maps.height, [&](int at) {
        unpack(bits + maps.at(at / maps.height, at % maps.height, 0), maps.width, channels, x + at * row);
    });
}

}  // namespace

void unpack_spikes(const Kernels& kernels, int threads, const uint64_t* bits, const BitMaps& maps, int channels,
                   float* x) {
    unpack_rows(kernels.unpack_floats, threads, bits, maps, channels, x);
}

void unpack_spikes(const Kernels& kernels, int threads, const uint64_t* bits, const BitMaps& maps, int channels,
                   uint16_t* x) {
    unpack_rows(kernels.unpack_halves, threads, bits, maps, channels, x);
}

Signs load_latent(const Kernels& kernels, int threads, const float* weights, int out_channels, int in_channels,
                       int stride) {
    const size_t words = words_of(in_channels), bytes = ((size_t)in_channels + 7) / 8;
    std::vector<uint8_t> packed((size_t)out_channels * 9 * bytes);
    share(threads, out_channels, [&](int o) {
        std::vector<uint64_t> row(9 * words);
        kernels.pack_floats(weights + (size_t)o * 9 * in_channels, 9, in_channels, 0.0f, row.data());
        for (size_t tap = 0; tap < 9; ++tap) {
            std::copy_n((const uint8_t*)(row.data() + tap * words), bytes, packed.data() + (o * 9 + tap) * bytes);
        }
    });
    return load_signs(kernels, packed.data(), out_channels, in_channels, stride);
}

void convolve_spikes(const Kernels& kernels, int threads, const Signs& layer, const uint64_t* bits,
                     const BitMaps& maps, int16_t* out) {
    const int columns = strided(maps.width, layer.stride), rows = maps.steps * strided(maps.height, layer.stride);
    const int most = std::max(1, kPixelsAtOnce / columns), parts = (rows + most - 1) / most;
    share(threads, parts, [&](int part) {
        static thread_local Windows windows;
        static thread_local Array<int16_t> results;
        const int first = split(rows, part, parts), last = split(rows, part + 1, parts);
        const size_t pixels = (size_t)(last - first) * columns;
        windows.prepare((size_t)most * columns, maps.row());
        int16_t* to = out + (size_t)first * columns * layer.out_channels;
        const bool padded = layer.out16 != layer.out_channels;
        int16_t* sums = padded ? reserve(results, most * columns * layer.out16) : to;
        convolve(kernels, layer, bits, maps, first, last, windows, sums, nullptr);
        if (!padded) return;
        for (size_t pixel = 0; pixel < pixels; ++pixel) {
            std::copy_n(sums + pixel * layer.out16, layer.out_channels, to + pixel * layer.out_channels);
        }
    });
}

}  // namespace agmm
