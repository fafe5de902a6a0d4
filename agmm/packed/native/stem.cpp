// The first, real-valued convolution of an image, with a max-pool right behind it.
#include <algorithm>
#include <cstring>

#include "inference.h"

namespace agmm {

void Inference::make_stem(const float* image) {
    const size_t out16 = layers_.stem.convolution.out16, step = plan_.stem.pixels() * out16;
    stream_ = {room_.streams[0].data(), layers_.frames ? step : 0};
    for (int t = 0; t < (layers_.frames ? layers_.steps : 1); ++t) {
        pad_image(image + t * plan_.image.pixels() * layers_.stem.in_channels);
        const int rows = plan_.stem.height, threads = team_ ? team_->size() : 1, parts = threads > 1 ? 2 * threads : 1;
        float* out = stream_.data + t * stream_.step;
        each(parts, [&](int part, Scratch& scratch) {
            stem_rows(split(rows, part, parts), split(rows, part + 1, parts), scratch, out);
        });
    }
}

void Inference::pad_image(const float* image) {
    const int border = layers_.stem.kernel / 2, channels = layers_.stem.in_channels;
    const size_t row = (size_t)plan_.image.width * channels, side = (size_t)border * channels, padded = row + 2 * side;
    float* out = std::fill_n(room_.image.data(), border * padded, 0.0f);
    for (int y = 0; y < plan_.image.height; ++y, image += row) {
        out = std::fill_n(out, side, 0.0f);
        out = std::copy_n(image, row, out);
        out = std::fill_n(out, side, 0.0f);
    }
    std::fill_n(out, border * padded, 0.0f);
}

void Inference::stem_row(int row, Scratch& scratch, float* out) {
    const Stem& stem = layers_.stem;
    const Real& real = stem.convolution;
    const int width = plan_.convolved.width, step = stem.stride * stem.in_channels;
    const size_t pitch = (size_t)(plan_.image.width + stem.kernel / 2 * 2) * stem.in_channels;
    const float* first = room_.image.data() + (size_t)row * stem.stride * pitch;
    const float** places = scratch.places.data();
    for (int x = 0; x < width; ++x) places[x] = first + (size_t)x * step;
    kernels_.products({places, width, pitch, stem.kernel, stem.kernel * stem.in_channels, real.weights.data(),
                       real.scale_at(0), real.bias_at(0), real.out16, out});
}

// Rows of the stem's result; of the convolution, no more than three rows are kept.
void Inference::stem_rows(int first, int last, Scratch& scratch, float* out) {
    const int channels = layers_.stem.convolution.out16, width = plan_.convolved.width, height = plan_.convolved.height;
    const size_t row = (size_t)width * channels, pooled = (size_t)plan_.stem.width * channels;
    if (!layers_.stem.max_pool) {
        for (int y = first; y < last; ++y) stem_row(y, scratch, out + y * row);
        return;
    }
    const auto place = [&](int y) { return scratch.rows.data() + y % 3 * row; };
    int done = std::max(0, 2 * first - 1);
    for (int y = first; y < last; ++y) {
        for (; done < std::min(height, 2 * y + 2); ++done) stem_row(done, scratch, place(done));
        const float* rows[3] = {y > 0 ? place(2 * y - 1) : nullptr, place(2 * y),
                                2 * y + 1 < height ? place(2 * y + 1) : nullptr};
        kernels_.max_pool_row(rows, width, channels, out + y * pooled);
    }
}

}  // namespace agmm
