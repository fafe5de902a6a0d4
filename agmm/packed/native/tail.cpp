// From the last stream to logits.
#include <algorithm>

#include "inference.h"

namespace agmm {

void Inference::classify(float* logits) {
    const Real& head = layers_.tail.head;
    const float* features = room_.features.data();
    each((int)round_up(head.outputs, kWide) / kWide, [&](int part, Scratch&) {
        const int column = part * kWide, outputs = std::min(kWide, head.outputs - column);
        float padded[kWide];
        kernels_.products({&features, 1, 0, 1, head.inputs, head.weights.data() + (size_t)column * head.inputs,
                           head.scale_at(0) + column, head.bias_at(0) + column, kWide, padded});
        std::copy_n(padded, outputs, logits + column);
    });
}

void Inference::take_means() {
    const Real& head = layers_.tail.head;
    const size_t pixels = plan_.blocks.back().out.pixels(), out16 = round_up(head.inputs, kGroup);
    const double share = 1.0 / ((double)pixels * layers_.steps);
    each((int)(out16 / kGroup), [&](int group, Scratch&) {
        const int begin = group * kGroup, end = std::min(begin + kGroup, head.inputs);
        double sums[kGroup] = {};
        for (int t = 0; t < layers_.steps; ++t) {
            const float* x = stream_.data + t * stream_.step + begin;
            for (size_t pixel = 0; pixel < pixels; ++pixel, x += out16) {
                for (int i = 0; i < kGroup; ++i) sums[i] += x[i];
            }
        }
        for (int c = begin; c < end; ++c) room_.features.data()[c] = (float)(sums[c - begin] * share);
    });
}

// Means over the places of a grid, as torch's adaptive average pool draws it; in the order C, H, W.
void Inference::take_spikes() {
    const Tail& tail = layers_.tail;
    const int channels = layers_.blocks.back().signs.out_channels, grid = tail.grid;
    const BitMaps maps = tail_maps(layers_, plan_.tail, tail.pool ? 3 : 1);
    const auto begin = [&](int place, int size) { return place * size / grid; };
    const auto end = [&](int place, int size) { return ((place + 1) * size + grid - 1) / grid; };
    each(channels, [&](int c, Scratch&) {
        for (int place = 0; place < grid * grid; ++place) {
            const int top = begin(place / grid, maps.height), bottom = end(place / grid, maps.height);
            const int left = begin(place % grid, maps.width), right = end(place % grid, maps.width);
            int64_t sum = 0;
            for (int t = 0; t < maps.steps; ++t) {
                for (int at = 0; at < (bottom - top) * (right - left); ++at) {
                    const int y = top + at / (right - left), x = left + at % (right - left);
                    const uint64_t* word = room_.bits.data() + maps.at(t, y, x) + c / 64;
                    for (int p = 0; p < maps.planes; ++p) sum += (int64_t)(word[p * maps.plane()] >> (c % 64) & 1) << p;
                }
            }
            const double values = (double)maps.steps * (bottom - top) * (right - left) * (tail.pool ? 4 : 1);
            room_.features.data()[c * grid * grid + place] = (float)((double)sum * tail.amplitude / values);
        }
    });
}

}  // namespace agmm
