// One binary convolution by itself, of values given as bytes.
#pragma once

#include "convolution.h"
#include "team.h"

namespace agmm {

class Layer {
  public:
    // planes: 1 for values 0 and 1, 3 for 0 to 4.
    Layer(const Kernels& kernels, Signs signs, int planes, int threads);

    // x: [count, height, width, in]; out: [count, height', width', out]. False where a value is too large.
    bool run(const uint8_t* x, int count, int height, int width, int16_t* out);

  private:
    struct Scratch {
        Windows windows;
        Array<int16_t> results;
    };

    bool pack(const uint8_t* x, const BitMaps& maps);
    void prepare(const BitMaps& maps, int rows);

    const Kernels& kernels_;
    Signs signs_;
    int planes_;
    Team team_;
    Array<uint64_t> bits_;
    std::vector<Scratch> scratch_;
};

}  // namespace agmm
