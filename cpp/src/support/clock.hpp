// Time since a solve began, and whether its limit has passed.
#pragma once

#include <chrono>

namespace orbitsplit::planner {

class Clock {
  public:
    explicit Clock(double limit_s) : limit_s_(limit_s), start_(std::chrono::steady_clock::now()) {}

    double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    bool is_over() const { return seconds() > limit_s_; }

  private:
    double limit_s_;
    std::chrono::steady_clock::time_point start_;
};

}  // namespace orbitsplit::planner
