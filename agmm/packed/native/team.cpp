#include "team.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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

// The threads beside the caller's, and what they share with it.
struct Team::Crew {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake;
    // Number of the round, whether it is open, and how many threads are in it. A round that all indices are taken of is
    // closed: a thread that the system let sleep finds no way in, and nobody waits for it.
    alignas(64) std::atomic<uint64_t> state{0};
    alignas(64) std::atomic<int> next{0};
    std::atomic<bool> ends{false};
    int count = 0;
    const std::function<void(int, int)>* work = nullptr;

    ~Crew() {
        ends = true;
        begin(0);
        for (std::thread& thread : threads) thread.join();
    }

    void begin(uint64_t open) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            state = (round_of(state) + 1) << 32 | open;
        }
        wake.notify_all();
    }

    void take(int worker) {
        for (int index; (index = next.fetch_add(1)) < count;) (*work)(index, worker);
    }

    bool enter(uint64_t seen) {
        while (seen & kOpen) {
            if (state.compare_exchange_weak(seen, seen + 1)) return true;
        }
        return false;
    }

    void serve(int worker) {
        uint64_t seen = 0;
        while (!ends) {
            for (int spin = 0; spin < kSpins && round_of(state.load(std::memory_order_acquire)) == seen; ++spin) relax();
            if (round_of(state) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return round_of(state) != seen; });
            }
            const uint64_t now = state;
            seen = round_of(now);
            if (!enter(now)) continue;
            take(worker);
            state.fetch_sub(1, std::memory_order_release);
        }
    }
};

Team::Team(int threads) : owner_((long)getpid()), crew_(threads > 1 ? new Crew : nullptr) {
    try {
        for (int worker = 1; worker < threads; ++worker) {
            crew_->threads.emplace_back([crew = crew_.get(), worker] { crew->serve(worker); });
            ++size_;
        }
    } catch (const std::system_error&) {
        return;
    }
}

// The threads are the parent's: to join them, or to destroy what they wait on, would wait for ever.
Team::~Team() {
    if (!is_owner()) (void)crew_.release();
}

bool Team::is_owner() const { return (long)getpid() == owner_; }

void Team::each(int count, const std::function<void(int, int)>& work) {
    if (size_ < 2 || count < 2 || !is_owner()) {
        for (int index = 0; index < count; ++index) work(index, 0);
        return;
    }
    crew_->work = &work;
    crew_->count = count;
    crew_->next = 0;
    crew_->begin(kOpen);
    crew_->take(0);
    crew_->state.fetch_and(~kOpen);
    for (int spin = 0; (crew_->state.load(std::memory_order_acquire) & kInside) > 0; ++spin) {
        if (spin < kSpins)
            relax();
        else
            std::this_thread::yield();
    }
}

}  // namespace agmm
