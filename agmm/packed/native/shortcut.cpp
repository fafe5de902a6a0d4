// The shortcut that is a projection: an average pool, then a real 1x1 convolution.
#include <algorithm>

#include "inference.h"

namespace agmm {

void Inference::project(size_t number) {
    const Block& block = layers_.blocks[number];
    if (block.shortcut != Shortcut::kProjection) return;
    const Shape shape = plan_.blocks[number].out;
    const bool is_static = stream_.step == 0 && block.projection.steps == 1, per_step = block.projection.steps > 1;
    float* out = room_.streams[plan_.blocks[number].projected].data();
    const size_t step = shape.pixels() * block.signs.out16;
    const int steps = is_static ? 1 : layers_.steps;
    if (per_step || stream_.step == 0) {
        for (int t = 0; t < steps; ++t) project_rows(number, t, shape.height, out + t * step);
    } else {
        project_rows(number, 0, steps * shape.height, out);
    }
    stream_ = {out, is_static ? 0 : step};
}

// `rows` rows from the first of step t on; they may go on into the following steps.
void Inference::project_rows(size_t number, int t, int rows, float* out) {
    const Block& block = layers_.blocks[number];
    const BlockShape& shape = plan_.blocks[number];
    const int parts = parts_of(rows, rows_of_chunk(shape.out.width));
    each(parts, [&](int part, Scratch& scratch) {
        project_chunk(block, shape, t, split(rows, part, parts), split(rows, part + 1, parts), scratch, out);
    });
}

void Inference::project_chunk(const Block& block, const BlockShape& shape, int t, int first, int last, Scratch& scratch,
                              float* out) {
    const int stride = block.signs.stride, width = shape.in.width, columns = shape.out.width;
    const size_t in16 = round_up(block.signs.in_channels, kGroup);
    float* pooled = scratch.rows.data();
    const float** places = scratch.places.data();
    int count = 0;
    for (int row = first; row < last; ++row) {
        const int y = row % shape.out.height * stride, height = std::min(stride, shape.in.height - y);
        const float* x = stream_.data + (t + row / shape.out.height) * stream_.step + (size_t)y * width * in16;
        if (stride > 1) {
            kernels_.mean_row(x, height, width, (int)in16, stride, pooled);
            x = pooled;
            pooled += columns * in16;
        }
        for (int column = 0; column < columns; ++column) places[count++] = x + column * in16;
    }
    const Real& real = block.projection;
    kernels_.products({places, count, 0, 1, real.inputs, real.weights.data(), real.scale_at(t), real.bias_at(t),
                       real.out16, out + (size_t)first * columns * real.out16});
}

}  // namespace agmm
