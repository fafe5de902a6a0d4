// One image through the network.
#pragma once

#include "plan.h"

namespace agmm {

class Inference {
  public:
    // `team` shares an image's work; null: the calling thread does it alone. The room is prepared for the plan.
    Inference(const Kernels& kernels, const Layers& layers, const Plan& plan, Room& room, Team* team)
        : kernels_(kernels), layers_(layers), plan_(plan), room_(room), team_(team) {}

    // counts: [blocks, 3], added to, or null.
    void run(const float* image, float* logits, int64_t* counts);

  private:
    // The real-valued maps between blocks; step 0: the same at all steps.
    struct Stream {
        float* data;
        size_t step;
    };

    template <typename Work>
    void each(int count, const Work& work) {
        if (team_) {
            team_->each(count, [&](int index, int worker) { work(index, room_.scratch[worker]); });
            return;
        }
        for (int index = 0; index < count; ++index) work(index, room_.scratch[0]);
    }
    int parts_of(int rows, int most) const;

    void make_stem(const float* image);
    void pad_image(const float* image);
    void stem_rows(int first, int last, Scratch& scratch, float* out);
    void stem_row(int row, Scratch& scratch, float* out);
    void convolve_block(size_t number);
    void fold(size_t number);
    void add_up(size_t number);
    double gate(const Block& block, int t, int64_t pixels, int o) const;
    void project(size_t number);
    void project_rows(size_t number, int t, int rows, float* out);
    void project_chunk(const Block& block, const BlockShape& shape, int t, int first, int last, Scratch& scratch,
                       float* out);
    void emit(size_t number);
    void fire(Fire job, size_t next, Shape shape);
    void fire_rows(const Fire& job, Shape shape, const BitMaps* maps);
    void pool(const uint64_t* from, const BitMaps& unpooled, const BitMaps& maps);
    void classify(float* logits);
    void take_means();
    void take_spikes();

    const Kernels& kernels_;
    const Layers& layers_;
    const Plan& plan_;
    Room& room_;
    Team* team_;
    Stream stream_{};
    int64_t* counts_ = nullptr;
};

}  // namespace agmm
