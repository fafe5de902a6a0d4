// Sizes of everything for images of one size, and the memory that holds it.
#pragma once

#include "layers.h"
#include "team.h"

namespace agmm {

struct Shape {
    int height, width;
    size_t pixels() const { return (size_t)height * width; }
};

// Of a block: what its neuron sees, what its convolution sees, what it gives. `projected` and `stream`: in which of the
// two streams its projection and its output lie.
struct BlockShape {
    Shape in, pooled, out;
    int projected, stream;
};

struct Plan {
    Shape image, convolved, stem;  // convolved: before the stem's max-pool
    std::vector<BlockShape> blocks;
    Shape tail;                  // behind the tail's pool
    size_t streams[2] = {0, 0};  // values of each; the stem's is the first

    Plan() = default;
    Plan(const Layers& layers, Shape image);

  private:
    void place_streams(const Layers& layers);
};

// Whether the stream behind a block is seen by more than the next neuron.
bool is_needed(const Layers& layers, size_t block);

// A thread's own.
struct Scratch {
    Windows windows;
    Array<const float*> places;
    Array<float> rows;
    Array<int64_t> sums;  // [T, out16]
    int64_t spikes = 0, arrivals = 0;
};

// An image's.
struct Room {
    Array<float> image, streams[2], scale, bias, features;
    Array<int16_t> results;
    Array<uint64_t> bits, unpooled;
    std::vector<Scratch> scratch;  // one for each thread that shares the image

    // Makes room for the plan; throws std::bad_alloc.
    void prepare(const Layers& layers, const Plan& plan, int threads);
    int64_t bytes() const;
};

// Pixels that a thread convolves at once: their windows' addresses stay in the first cache.
constexpr int kChunk = 256;
constexpr int rows_of_chunk(int width) { return width < kChunk ? kChunk / width : 1; }
constexpr size_t chunk_pixels(int width) { return (size_t)rows_of_chunk(width) * width; }

// Of spikes as a block's convolution takes them, as its neuron gives them, and of the tail's.
BitMaps maps_of(const Block& block, const BlockShape& shape, int steps);
BitMaps unpooled_maps(const Block& block, const BlockShape& shape, int steps);
BitMaps tail_maps(const Layers& layers, Shape shape, int planes);

}  // namespace agmm
