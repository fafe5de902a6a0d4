#include "convolution.h"

#include <algorithm>

namespace agmm {
Signs load_signs(const Kernels& kernels, const uint8_t* signs, int out_channels, int in_channels, int stride) {
    Signs layer{in_channels, out_channels, (int)round_up(out_channels, kGroup), stride, {}};
    layer.weights.resize(kernels.sign_words(out_channels, in_channels));
    kernels.pack_signs(signs, out_channels, in_channels, layer.weights.data());
    return layer;
}

void Windows::prepare(size_t pixels, size_t row) {
    reserve(room, row);
    reserve(place, pixels);
    reserve(spikes, pixels);
}

void convolve(const Kernels& kernels, const Signs& layer, const uint64_t* bits, const BitMaps& maps, int first,
              int last, Windows& windows, int16_t* out, int64_t* arrivals) {
    const int stride = layer.stride, rows = strided(maps.height, stride), columns = strided(maps.width, stride);
    const uint64_t** place = windows.place.data();
    int32_t *spikes = windows.spikes.data(), *room = windows.room.data();
    int count = 0;
    for (int row = first; row < last; ++row, count += columns) {
        const uint64_t* top = bits + row / rows * maps.step() + (size_t)(row % rows) * stride * maps.row();
        for (int x = 0; x < columns; ++x) place[count + x] = top + (size_t)x * stride * maps.words;
        if (arrivals && maps.planes > 1)
            *arrivals += kernels.window_spikes(top, maps, stride, true, room, spikes + count);
        const int64_t sum = kernels.window_spikes(top, maps, stride, false, room, spikes + count);
        if (arrivals && maps.planes == 1) *arrivals += sum;
    }
    const Dots job{place,       spikes, count,       maps.row(),  3 * maps.words, layer.weights.data(),
                   layer.out16, out,    maps.planes, maps.plane()};
    kernels.dots(job);
}

void clear_border(uint64_t* bits, const BitMaps& maps, int t, int y) {
    const size_t row = maps.row();
    for (int plane = 0; plane < maps.planes; ++plane, bits += maps.plane()) {
        uint64_t* begin = bits + maps.at(t, y, -1);
        std::fill_n(begin, maps.words, 0);
        std::fill_n(begin + row - maps.words, maps.words, 0);
        if (y == 0) std::fill_n(begin - row, row, 0);
        if (y == maps.height - 1) std::fill_n(begin + row, row, 0);
    }
}

}  // namespace agmm
