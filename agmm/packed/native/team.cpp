#include "team.h"

#include <unistd.h>

#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace agmm {
namespace {

constexpr int kSpins = 4000;  // some tens of microseconds: longer than the steps between two layers
constexpr uint64_t kOpen = 1u << 31, kInside = kOpen - 1;

inline uint64_t round_of(uint64_t state) { return state >> 32; }

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int threads) : owner_((long)getpid()) {
    try {
        for (int worker = 1; worker < threads; ++worker) {
            threads_.emplace_back([this, worker] { serve(worker); });
            ++size_;
        }
    } catch (const std::system_error&) {
        return;
    }
}

Team::~Team() {
    if (!is_owner()) {
        for (std::thread& thread : threads_)
            new std::thread(std::move(thread));  // of the parent: neither joined nor ended
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ends_ = true;
        state_ = (round_of(state_) + 1) << 32;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

bool Team::is_owner() const { return (long)getpid() == owner_; }

void Team::each(int count, const std::function<void(int, int)>& work) {
    if (threads_.empty() || count < 2 || !is_owner()) {
        for (int index = 0; index < count; ++index) work(index, 0);
        return;
    }
    work_ = &work;
    count_ = count;
    next_ = 0;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        state_ = (round_of(state_) + 1) << 32 | kOpen;
    }
    wake_.notify_all();
    take(0);
    state_.fetch_and(~kOpen);
    for (int spin = 0; (state_.load(std::memory_order_acquire) & kInside) > 0; ++spin) {
        if (spin < kSpins)
            relax();
        else
            std::this_thread::yield();
    }
}

void Team::take(int worker) {
    for (int index; (index = next_.fetch_add(1)) < count_;) (*work_)(index, worker);
}

bool Team::enter(uint64_t state) {
    while (state & kOpen) {
        if (state_.compare_exchange_weak(state, state + 1)) return true;
    }
    return false;
}

void Team::serve(int worker) {
    uint64_t seen = 0;
    while (!ends_) {
        for (int spin = 0; spin < kSpins && round_of(state_.load(std::memory_order_acquire)) == seen; ++spin) relax();
        if (round_of(state_) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return round_of(state_) != seen; });
        }
        const uint64_t state = state_;
        seen = round_of(state);
        if (!enter(state)) continue;
        take(worker);
        state_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace agmm
