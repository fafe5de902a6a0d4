// A few threads that wait for work: spinning shortly, then asleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace agmm {

// Calls a function for each of `count` indices, in any order. Not to be used by two threads at once.
class Team {
  public:
    // Threads that the system refuses are done without.
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }
    // work(index, worker), 0 <= worker < size(); returns when all are done. `work` throws nothing.
    void each(int count, const std::function<void(int, int)>& work);

  private:
    void serve(int worker);
    void take(int worker);
    bool enter(uint64_t state);
    bool is_owner() const;

    int size_ = 1;
    long owner_;  // process: its children have no threads of it
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    // Number of the round, whether it is open, and how many threads are in it. A round that all indices are taken of is
    // closed: a thread that the system let sleep finds no way in, and nobody waits for it.
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int> next_{0};
    std::atomic<bool> ends_{false};
    int count_ = 0;
    const std::function<void(int, int)>* work_ = nullptr;
};

}  // namespace agmm
