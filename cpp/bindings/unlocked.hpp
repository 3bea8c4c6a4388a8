// Work during which other Python threads may run.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>

// Arrays of at least this size, some 30 us of work, are processed without the interpreter's lock. For smaller ones
// releasing it costs more than the work: reacquiring it from a busy thread takes up to 5 ms, its switch interval.
inline constexpr std::size_t unlocked_bytes = std::size_t{256} << 10;

class Unlocked {
  public:
    explicit Unlocked(std::size_t array_bytes) {
        if (array_bytes >= unlocked_bytes) release_.emplace();
    }

  private:
    std::optional<pybind11::gil_scoped_release> release_;
};
