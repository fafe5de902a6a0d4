// The sign bits of a file, 64 input channels a word.
#pragma once

#include <cstring>

#include "kernels.h"

namespace agmm {

inline uint64_t sign_word(const uint8_t* tap, size_t bytes, size_t word) {
    uint64_t bits = 0;
    for (size_t byte = word * 8; byte < bytes && byte < word * 8 + 8; ++byte) {
        bits |= (uint64_t)tap[byte] << (8 * (byte % 8));
    }
    return bits;
}

// take(output, k, word) for every word k of the 9 taps.
template <typename Take>
void each_sign_word(const uint8_t* signs, int out_channels, int in_channels, Take take) {
    const size_t words = words_of(in_channels), bytes = ((size_t)in_channels + 7) / 8, taps = 9;
    for (size_t o = 0; o < (size_t)out_channels; ++o) {
        for (size_t k = 0; k < taps * words; ++k) {
            take(o, k, sign_word(signs + (o * taps + k / words) * bytes, bytes, k % words));
        }
    }
}

// [out16 / 16, 9 * words, 16]: what the paths that count the bits of words read.
inline void pack_by_words(const uint8_t* signs, int out_channels, int in_channels, uint64_t* weights) {
    const size_t taps = 9 * words_of(in_channels);
    std::memset(weights, 0, round_up(out_channels, kGroup) * taps * sizeof(uint64_t));
    each_sign_word(signs, out_channels, in_channels, [&](size_t o, size_t k, uint64_t word) {
        weights[(o / kGroup * taps + k) * kGroup + o % kGroup] = word;
    });
}

}  // namespace agmm
