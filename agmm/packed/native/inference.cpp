#include "inference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace agmm {

// Into how many parts `rows` are split, of at most `most` rows each; every thread has as many.
int Inference::parts_of(int rows, int most) const {
    const int threads = team_ ? team_->size() : 1;
    return std::min(rows, (int)round_up((rows + most - 1) / most, threads));
}

void Inference::run(const float* image, float* logits, int64_t* counts) {
    counts_ = counts;
    make_stem(image);
    Fire first{};
    first.in = stream_.data;
    first.in_step = stream_.step;
    fire(first, 0, plan_.stem);
    for (size_t number = 0; number < layers_.blocks.size(); ++number) {
        convolve_block(number);
        fold(number);
        project(number);
        emit(number);
    }
    if (layers_.tail.spikes)
        take_spikes();
    else
        take_means();
    classify(logits);
}

void Inference::convolve_block(size_t number) {
    const Block& block = layers_.blocks[number];
    const BlockShape& shape = plan_.blocks[number];
    const BitMaps maps = maps_of(block, shape, layers_.steps);
    const int out16 = block.signs.out16, height = shape.out.height, rows = layers_.steps * height;
    const int parts = parts_of(rows, rows_of_chunk(shape.out.width));
    for (Scratch& its : room_.scratch) {
        std::fill_n(its.sums.data(), (size_t)layers_.steps * out16, 0);
        its.arrivals = 0;
    }
    each(parts, [&](int part, Scratch& scratch) {
        const int first = split(rows, part, parts), last = split(rows, part + 1, parts);
        const size_t row = (size_t)shape.out.width * out16;
        int16_t* out = room_.results.data() + first * row;
        int64_t* arrivals = counts_ ? &scratch.arrivals : nullptr;
        convolve(kernels_, block.signs, room_.bits.data(), maps, first, last, scratch.windows, out, arrivals);
        if (block.gate == Gate::kNone) return;
        for (int begin = first, end; begin < last; begin = end) {
            end = std::min(last, (begin / height + 1) * height);
            kernels_.column_sums(room_.results.data() + begin * row, (size_t)(end - begin) * shape.out.width, out16,
                                 block.signs.bound(maps.planes), scratch.sums.data() + begin / height * out16);
        }
    });
    if (counts_) add_up(number);
}

void Inference::add_up(size_t number) {
    for (const Scratch& its : room_.scratch) counts_[number * 3 + 2] += its.arrivals;
}

// Y = sigmoid(alpha * mean of X) * X (Eq. 11, 12), where X = scale * n + bias: the mean needs the sums of n alone.
double Inference::gate(const Block& block, int t, int64_t pixels, int o) const {
    if (block.gate == Gate::kNone) return 1.0;
    const int outs = block.signs.out_channels, affine = block.affine_steps > 1 ? t * outs : 0;
    const bool sample = block.gate == Gate::kSample;
    double total = 0;
    for (int c = sample ? 0 : o; c < (sample ? outs : o + 1); ++c) {
        int64_t sum = 0;
        for (const Scratch& its : room_.scratch) sum += its.sums.data()[(size_t)t * block.signs.out16 + c];
        total += block.scale[affine + c] * (double)sum + block.bias[affine + c] * (double)pixels;
    }
    return 1 / (1 + std::exp(-block.alpha[t] * total / (double)(pixels * (sample ? outs : 1))));
}

void Inference::fold(size_t number) {
    const Block& block = layers_.blocks[number];
    const int outs = block.signs.out_channels, out16 = block.signs.out16;
    const int64_t pixels = (int64_t)plan_.blocks[number].out.pixels();
    std::fill_n(room_.scale.data(), (size_t)layers_.steps * out16, 0.0f);
    std::fill_n(room_.bias.data(), (size_t)layers_.steps * out16, 0.0f);
    for (int t = 0; t < layers_.steps; ++t) {
        const int affine = block.affine_steps > 1 ? t * outs : 0;
        double factor = gate(block, t, pixels, 0);
        for (int o = 0; o < outs; ++o) {
            if (block.gate == Gate::kChannel && o > 0) factor = gate(block, t, pixels, o);
            room_.scale.data()[t * out16 + o] = (float)(factor * block.scale[affine + o]);
            room_.bias.data()[t * out16 + o] = (float)(factor * block.bias[affine + o]);
        }
    }
}

void Inference::emit(size_t number) {
    const Block& block = layers_.blocks[number];
    const BlockShape& shape = plan_.blocks[number];
    const bool per_step = block.affine_steps > 1 || block.gate != Gate::kNone;
    Fire job{};
    job.n = room_.results.data();
    job.scale = room_.scale.data();
    job.bias = room_.bias.data();
    job.affine_step = per_step ? block.signs.out16 : 0;
    if (block.shortcut != Shortcut::kNone) {
        job.in = stream_.data;
        job.in_step = stream_.step;
    }
    stream_ = {room_.streams[shape.stream].data(), shape.out.pixels() * block.signs.out16};
    if (is_needed(layers_, number)) job.out = stream_.data;
    fire(job, number + 1, shape.out);
}

// The neuron of block `next` (or of the tail) on a stream of that shape.
void Inference::fire(Fire job, size_t next, Shape shape) {
    const bool in_tail = next == layers_.blocks.size();
    const Tail& tail = layers_.tail;
    const int channels = in_tail ? layers_.blocks.back().signs.out_channels : layers_.blocks[next].signs.in_channels;
    job.steps = layers_.steps;
    job.out16 = (int)round_up(channels, kGroup);
    job.step = shape.pixels() * job.out16;
    if (in_tail && !tail.spikes) return fire_rows(job, shape, nullptr);
    const bool pooled = in_tail ? tail.pool : layers_.blocks[next].pool;
    const BitMaps maps{1, job.steps, shape.height, shape.width, (int)words_of(channels)};
    job.neuron = in_tail ? tail.neuron : layers_.blocks[next].neuron;
    job.bits = pooled ? room_.unpooled.data() : room_.bits.data();
    job.bits_step = maps.step();
    fire_rows(job, shape, &maps);
    if (counts_ && !in_tail) {
        counts_[next * 3] += (int64_t)shape.pixels() * job.steps * channels;
        counts_[next * 3 + 1] += kernels_.count_bits(job.bits, maps.size());
    }
    if (!pooled) return;
    const BitMaps planes =
        in_tail ? tail_maps(layers_, plan_.tail, 3) : maps_of(layers_.blocks[next], plan_.blocks[next], job.steps);
    pool(job.bits, maps, planes);
}

void Inference::fire_rows(const Fire& job, Shape shape, const BitMaps* maps) {
    each(shape.height, [&](int y, Scratch&) {
        kernels_.fire(job, (size_t)y * shape.width, shape.width, maps ? maps->at(0, y, 0) : 0);
        for (int t = 0; maps && t < job.steps; ++t) clear_border(job.bits, *maps, t, y);
    });
}

// Sums of 2x2 spikes, weighted to 4 where the border leaves fewer, as three bit planes.
void Inference::pool(const uint64_t* from, const BitMaps& unpooled, const BitMaps& maps) {
    uint64_t* out = room_.bits.data();
    each(maps.height, [&](int y, Scratch&) {
        const int below = 2 * y + 1 < unpooled.height ? 2 * y + 1 : 2 * y;  // twice itself where there is none
        for (int t = 0; t < maps.steps; ++t) {
            for (int x = 0; x < maps.width; ++x) {
                const int right = 2 * x + 1 < unpooled.width ? 2 * x + 1 : 2 * x;
                for (int word = 0; word < maps.words; ++word) {
                    const uint64_t a = from[unpooled.at(t, 2 * y, 2 * x) + word],
                                   b = from[unpooled.at(t, 2 * y, right) + word];
                    const uint64_t c = from[unpooled.at(t, below, 2 * x) + word],
                                   d = from[unpooled.at(t, below, right) + word];
                    const uint64_t twos = (a & b) ^ (c & d) ^ ((a ^ b) & (c ^ d));
                    uint64_t* pixel = out + maps.at(t, y, x) + word;
                    pixel[0] = a ^ b ^ c ^ d;
                    pixel[maps.plane()] = twos;
                    pixel[2 * maps.plane()] = a & b & c & d;
                }
            }
            clear_border(out, maps, t, y);
        }
    });
}

}  // namespace agmm
