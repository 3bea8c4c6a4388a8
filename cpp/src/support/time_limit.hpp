// When to end a computation early: after a time limit, or because the caller requested a stop.
#pragma once

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

    // The same for inner loops, with the work since the last call: asks the caller about ten thousand times a second.
    bool is_stopped_after(std::size_t operations) const {
        operations_ += operations;
        return operations_ < operations_between_checks ? is_stopped_ : is_stopped();
    }

  private:
    static constexpr std::size_t operations_between_checks = 100'000;

    double limit_s_;
    std::function<bool()> stop_requested_;
    std::chrono::steady_clock::time_point start_;
    mutable std::size_t operations_ = 0;
    mutable bool is_stopped_ = false;
};

}  // namespace orbitsplit
