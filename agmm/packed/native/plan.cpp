#include "plan.h"

#include <algorithm>

namespace agmm {
namespace {

Shape halved(Shape shape, int stride) { return {strided(shape.height, stride), strided(shape.width, stride)}; }

size_t padded_image(const Stem& stem, Shape image) {
    const int border = stem.kernel / 2 * 2;
    return (size_t)(image.height + border) * (image.width + border) * stem.in_channels;
}

template <typename T>
int64_t bytes_of(const Array<T>& room) {
    return (int64_t)(room.size() * sizeof(T));
}

// The largest sizes over all blocks.
struct Most {
    size_t results = 0, bits = 0, unpooled = 0, chunk = 0, row = 0, scratch = 0, channels = 0;

    void see(const Block& block, const BlockShape& shape, int steps) {
        const size_t in16 = round_up(block.signs.in_channels, kGroup), out16 = block.signs.out16;
        const BitMaps maps = maps_of(block, shape, steps);
        results = std::max(results, steps * shape.out.pixels() * out16);
        bits = std::max(bits, maps.size());
        if (block.pool) unpooled = std::max(unpooled, unpooled_maps(block, shape, steps).size());
        chunk = std::max(chunk, chunk_pixels(shape.out.width));
        row = std::max(row, maps.row());
        if (block.shortcut == Shortcut::kProjection) scratch = std::max(scratch, chunk_pixels(shape.out.width) * in16);
        channels = std::max(channels, out16);
    }
};

}  // namespace

BitMaps tail_maps(const Layers& layers, Shape shape, int planes) {
    const int words = (int)words_of(layers.blocks.back().signs.out_channels);
    return {planes, layers.steps, shape.height, shape.width, words};
}

BitMaps unpooled_maps(const Block& block, const BlockShape& shape, int steps) {
    return {1, steps, shape.in.height, shape.in.width, (int)words_of(block.signs.in_channels)};
}

BitMaps maps_of(const Block& block, const BlockShape& shape, int steps) {
    return {block.planes(), steps, shape.pooled.height, shape.pooled.width, (int)words_of(block.signs.in_channels)};
}

Plan::Plan(const Layers& layers, Shape size) : image(size), convolved(halved(size, layers.stem.stride)) {
    Shape seen = stem = halved(convolved, layers.stem.max_pool ? 2 : 1);
    for (const Block& block : layers.blocks) {
        BlockShape shape{seen, halved(seen, block.pool ? 2 : 1), {}, 0, 0};
        seen = shape.out = halved(shape.pooled, block.signs.stride);
        blocks.push_back(shape);
    }
    tail = halved(seen, layers.tail.pool ? 2 : 1);
    place_streams(layers);
}

// A block's output takes the place of what it adds to; what has another size, or serves all steps, is read to its end.
void Plan::place_streams(const Layers& layers) {
    int at = 0;
    bool is_static = !layers.frames;
    const auto hold = [&](Shape shape, int channels16) {
        streams[at] = std::max(streams[at], shape.pixels() * channels16 * (is_static ? 1 : layers.steps));
        return at;
    };
    hold(stem, layers.stem.convolution.out16);
    for (size_t i = 0; i < blocks.size(); ++i) {
        const Block& block = layers.blocks[i];
        BlockShape& shape = blocks[i];
        if (block.shortcut == Shortcut::kProjection) {
            at = 1 - at;
            is_static = is_static && block.projection.steps == 1;
            shape.projected = hold(shape.out, block.signs.out16);
        }
        if (block.shortcut == Shortcut::kNone || is_static) at = 1 - at;
        is_static = false;
        shape.stream = is_needed(layers, i) ? hold(shape.out, block.signs.out16) : at;
    }
}

bool is_needed(const Layers& layers, size_t block) {
    if (block + 1 < layers.blocks.size()) return layers.blocks[block + 1].shortcut != Shortcut::kNone;
    return !layers.tail.spikes;
}

void Room::prepare(const Layers& layers, const Plan& plan, int threads) {
    const Stem& stem = layers.stem;
    Most most;
    for (size_t i = 0; i < layers.blocks.size(); ++i) most.see(layers.blocks[i], plan.blocks[i], layers.steps);
    if (layers.tail.spikes) {
        const int planes = layers.tail.pool ? 3 : 1;
        most.bits = std::max(most.bits, tail_maps(layers, plan.tail, planes).size());
        most.unpooled = std::max(most.unpooled, tail_maps(layers, plan.blocks.back().out, 1).size());
    }
    const size_t stem_rows = 3 * (size_t)plan.convolved.width * stem.convolution.out16;
    reserve(image, padded_image(stem, plan.image));
    for (int i = 0; i < 2; ++i) reserve(streams[i], plan.streams[i]);
    reserve(results, most.results);
    reserve(bits, most.bits);
    reserve(unpooled, most.unpooled);
    reserve(scale, layers.steps * most.channels);
    reserve(bias, layers.steps * most.channels);
    reserve(features, layers.tail.head.inputs);
    if ((int)scratch.size() < threads) scratch.resize(threads);
    for (Scratch& its : scratch) {
        its.windows.prepare(most.chunk, most.row);
        reserve(its.places, std::max(most.chunk, (size_t)plan.convolved.width));
        reserve(its.rows, std::max(most.scratch, stem_rows));
        reserve(its.sums, layers.steps * most.channels);
    }
}

int64_t Room::bytes() const {
    int64_t sum = bytes_of(image) + bytes_of(streams[0]) + bytes_of(streams[1]) + bytes_of(scale) + bytes_of(bias) +
                  bytes_of(features) + bytes_of(results) + bytes_of(bits) + bytes_of(unpooled);
    for (const Scratch& its : scratch) {
        sum += bytes_of(its.windows.place) + bytes_of(its.windows.spikes) + bytes_of(its.windows.room) +
               bytes_of(its.places) + bytes_of(its.rows) + bytes_of(its.sums);
    }
    return sum;
}

}  // namespace agmm
