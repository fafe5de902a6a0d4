// A weight's gradient is the sum of the gradients of outputs that its spikes reach: a spike costs nine additions an
// output channel, and no spike nothing. Where more than half of a channel's neurons fire, those that do not are taken
// off the sum of all.
//
// The padded rows of all images, one behind the other, are taken in bands whose gradients fit the caches. Sums are
// float within a band, over bands and over parts of them: neither path nor threads change their order.
#include "events.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>

namespace agmm::fused {
namespace {

constexpr size_t kBandPlaces = 512;

using Band = Range;  // of padded rows

struct Job : AgmmEvents {
    const size_t columns, rows, words, band_rows;

    explicit Job(const AgmmEvents& given)
        : AgmmEvents(given),
          columns(width + 2),
          rows(images * (height + 2)),
          words((ins + kWordBits - 1) / kWordBits),
          band_rows(std::max<size_t>(1, kBandPlaces / columns)) {}

    Band band(size_t index) const { return {index * band_rows, std::min((index + 1) * band_rows, rows)}; }

    bool is_border(size_t row) const {
        const size_t y = row % (height + 2);
        return y == 0 || y == (size_t)height + 1;
    }
};

// Floats on a line of the caches: a load of two lines takes twice as long.
class Floats {
  public:
    explicit Floats(size_t count) : memory(count + kLine) {}
    float* data() { return (float*)(((uintptr_t)memory.data() + kLine - 1) / kLine * kLine); }

  private:
    static constexpr size_t kLine = 64;
    std::vector<float> memory;
};

// Where each channel of a word has spikes in a band, or, where it is dense, where it has none; behind one more row.
struct Places {
    const size_t most;
    std::vector<uint32_t> inside, others;  // inside: all that are no border
    std::vector<uint32_t> of_all;          // `most` of each channel
    size_t count[kWordBits];
    bool dense[kWordBits], any_dense;

    explicit Places(size_t most) : most(most), of_all(kWordBits * most) {}

    const uint32_t* of(size_t channel) const { return of_all.data() + channel * most; }

    void find(const Job& job, Band band, size_t word) {
        inside.clear();
        std::fill_n(count, kWordBits, 0);
        for (size_t row = band.begin; row < band.end; ++row) {
            if (job.is_border(row)) continue;
            for (size_t x = 1; x + 1 < job.columns; ++x) {
                const uint32_t place = (row - band.begin + 1) * job.columns + x;
                inside.push_back(place);
                uint64_t bits = job.bits[(row * job.columns + x) * job.words + word];
                for (; bits; bits &= bits - 1) {
                    const size_t channel = __builtin_ctzll(bits);
                    of_all[channel * most + count[channel]++] = place;
                }
            }
        }
        any_dense = false;
        for (size_t channel = 0; channel < kWordBits; ++channel) {
            dense[channel] = 2 * count[channel] > inside.size();
            any_dense |= dense[channel];
            if (dense[channel]) turn_over(channel);
        }
    }

  private:
    void turn_over(size_t channel) {
        uint32_t* places = of_all.data() + channel * most;
        others.clear();
        std::set_difference(inside.begin(), inside.end(), places, places + count[channel], std::back_inserter(others));
        std::copy(others.begin(), others.end(), places);
        count[channel] = others.size();
    }
};

void take_place(const Job& job, size_t at, size_t count, float* to) {
    if (job.grad) return (void)std::memcpy(to, job.grad + at, count * sizeof *to);
    for (size_t i = 0; i < count; ++i) {
        const uint32_t bits = (uint32_t)job.half[at + i] << 16;
        std::memcpy(to + i, &bits, sizeof bits);
    }
}

// Gradients of a band and of a row on both sides, of the output channels from `begin`; zeros for borders and no channel.
void take_tile(const Job& job, Band band, size_t begin, size_t tile, float* to) {
    const size_t count = std::min<size_t>(tile, job.outs - begin);
    std::fill_n(to, (band.end - band.begin + 2) * job.columns * tile, 0.0f);
    for (size_t row = std::max<size_t>(band.begin, 1) - 1; row < std::min(band.end + 1, job.rows); ++row) {
        if (job.is_border(row)) continue;
        const size_t y = row - 1 - row / (job.height + 2) * 2;  // without borders
        float* line = to + (row + 1 - band.begin) * job.columns * tile;
        for (size_t x = 0; x < (size_t)job.width; ++x) {
            take_place(job, (y * job.width + x) * job.outs + begin, count, line + (x + 1) * tile);
        }
    }
}

}  // namespace

Extent::Extent(const AgmmEvents& given) {
    const Job job(given);
    words = job.words, bands = (job.rows + job.band_rows - 1) / job.band_rows;
}

void weight_gradient(
    const Kernels& kernels, const AgmmEvents& given, size_t word, Range outs, Range bands, float* dweights
) {
    const Job job(given);
    const size_t tile = kernels.tile, of_channel = kTaps * tile, tiles = (outs.end - outs.begin + tile - 1) / tile;
    const size_t channels = std::min<size_t>(kWordBits, job.ins - word * kWordBits);
    Floats grads((job.band_rows + 2) * job.columns * tile), sums(tiles * channels * of_channel), all(of_channel);
    Places places(job.band_rows * job.columns);
    for (size_t index = bands.begin; index < bands.end; ++index) {
        const Band band = job.band(index);
        places.find(job, band, word);
        for (size_t i = 0; i < tiles; ++i) {
            take_tile(job, band, outs.begin + i * tile, tile, grads.data());
            const auto add = [&](const uint32_t* at, size_t count, const float* all, float* to) {
                kernels.add_taps(grads.data(), job.columns, at, count, all, to);
            };
            if (places.any_dense) {
                std::fill_n(all.data(), of_channel, 0.0f);
                add(places.inside.data(), places.inside.size(), nullptr, all.data());
            }
            for (size_t channel = 0; channel < channels; ++channel) {
                float* to = sums.data() + (i * channels + channel) * of_channel;
                const float* whole = places.dense[channel] ? all.data() : nullptr;
                add(places.of(channel), places.count[channel], whole, to);
            }
        }
    }
    for (size_t i = 0, out = outs.begin; out < outs.end; ++i, ++out) {
        const float* of_tile = sums.data() + i / tile * channels * of_channel + i % tile;
        for (size_t tap = 0; tap < kTaps; ++tap) {
            float* to = dweights + (out * kTaps + tap) * job.ins + word * kWordBits;
            for (size_t channel = 0; channel < channels; ++channel) {
                to[channel] = of_tile[channel * of_channel + tap * tile];
            }
        }
    }
}

}  // namespace agmm::fused
