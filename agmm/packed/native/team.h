// A few threads that wait for work: spinning shortly, then asleep.
#pragma once

#include <functional>
#include <memory>

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
    struct Crew;

    bool is_owner() const;

    int size_ = 1;
    long owner_;  // process: its children have no threads of it
    std::unique_ptr<Crew> crew_;
};

}  // namespace agmm
