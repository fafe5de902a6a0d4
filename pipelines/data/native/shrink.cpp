// Resampling by area, as OpenCV's INTER_AREA but for boxes between pixels, and with vectors along rows and colours.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "pixels.h"

namespace {

using Colour = float __attribute__((vector_size(16)));

// The pixels under each part of a span, and how much of the part each covers.
struct Parts {
    std::vector<int64_t> first;
    std::vector<int64_t> count;
    std::vector<float> shares;  // `most` for each part
    int64_t most;

    Parts(double start, double length, int64_t side, int64_t parts)
        : first(parts), count(parts), most(static_cast<int64_t>(length / parts) + 3) {
        shares.resize(parts * most);
        for (int64_t part = 0; part < parts; ++part) {
            double low = start + length * part / parts, high = start + length * (part + 1) / parts;
            int64_t from = std::min(static_cast<int64_t>(low), side - 1);
            int64_t to = std::max(from + 1, std::min(static_cast<int64_t>(std::ceil(high)), side));
            first[part] = from;
            count[part] = to - from;
            cover(low, high, part);
        }
    }

    void cover(double low, double high, int64_t part) {
        float *share = &shares[part * most], sum = 0;
        for (int64_t n = 0; n < count[part]; ++n) {
            double pixel = static_cast<double>(first[part] + n);
            share[n] = static_cast<float>(std::max(std::min(high, pixel + 1) - std::max(low, pixel), 0.0));
            sum += share[n];
        }
        for (int64_t n = 0; n < count[part]; ++n) share[n] /= sum;
    }
};

// A row of sums of `count` rows of bytes, each by its share.
void add_rows(const uint8_t *rows, int64_t pitch, const float *shares, int64_t count, int64_t width, float *sums) {
    for (int64_t x = 0; x < width; ++x) sums[x] = shares[0] * rows[x];
    for (int64_t n = 1; n < count; ++n) {
        const uint8_t *row = rows + n * pitch;
        for (int64_t x = 0; x < width; ++x) sums[x] += shares[n] * row[x];
    }
}

// Each pixel is loaded as four floats, of which the last is the next one's red.
void add_columns(const float *sums, const Parts &parts, int64_t resolution, uint8_t *out) {
    for (int64_t part = 0; part < resolution; ++part, out += 3) {
        const float *pixel = sums + 3 * parts.first[part], *share = &parts.shares[part * parts.most];
        Colour total = {0.5F, 0.5F, 0.5F, 0.5F};
        for (int64_t n = 0; n < parts.count[part]; ++n, pixel += 3) {
            Colour colour;
            std::memcpy(&colour, pixel, sizeof colour);
            total += share[n] * colour;
        }
        for (int c = 0; c < 3; ++c) out[c] = static_cast<uint8_t>(total[c]);
    }
}

}  // namespace

void agmm_shrink(const uint8_t *image, int64_t height, int64_t width, double top, double left, double box_height,
                 double box_width, int64_t resolution, uint8_t *out) {
    Parts down(top, box_height, height, resolution), across(left, box_width, width, resolution);
    std::vector<float> sums(3 * width + 1);
    for (int64_t part = 0; part < resolution; ++part, out += 3 * resolution) {
        const uint8_t *rows = image + 3 * width * down.first[part];
        add_rows(rows, 3 * width, &down.shares[part * down.most], down.count[part], 3 * width, sums.data());
        add_columns(sums.data(), across, resolution, out);
    }
}
