// When to end a computation early: after a time limit, or because the caller requested a stop.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <utility>

namespace orbitsplit {

// Used by one thread.
class TimeLimit {
  public:
    explicit TimeLimit(double limit_s, std::function<bool()> stop_requested = {})
        : limit_s_(limit_s),
          stop_requested_(std::move(stop_requested)),
          start_(std::chrono::steady_clock::now()) {}

    double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

    // The time limit has passed, or a stop was requested.
    bool is_reached() const { return is_stopped() || seconds() > limit_s_; }

    bool is_stopped() const {
        operations_ = 0;
        is_stopped_ = is_stopped_ || (stop_requested_ && stop_requested_());
        return is_stopped_;
    }

    // For inner loops, with the work since the last call: a stop was requested, or the time limit has passed by so much
    // that the step must be given up. Looks about ten thousand times a second.
    bool must_end_after(std::size_t operations) const {
        operations_ += operations;
        if (operations_ >= operations_between_checks)
            must_end_ = is_stopped() || seconds() > limit_s_ + grace_s;
        return must_end_;
    }

    double remaining_s() const { return std::max(0.0, limit_s_ - seconds()); }

  private:
    static constexpr std::size_t operations_between_checks = 100'000;
    // A step that is begun before the limit may end: most take a few milliseconds, and a result is worth more than none.
    static constexpr double grace_s = 0.05;

    double limit_s_;
    std::function<bool()> stop_requested_;
    std::chrono::steady_clock::time_point start_;
    mutable std::size_t operations_ = 0;
    mutable bool is_stopped_ = false;
    mutable bool must_end_ = false;
};

}  // namespace orbitsplit
