// Work that other Python threads may run beside.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>

// Without the interpreter's lock for arrays of so many bytes and more, some 30 us of work. For less, giving the
// lock up costs more than the work: getting it back from a busy thread takes up to 5 ms, its switch interval.
inline constexpr std::size_t unlocked_bytes = std::size_t{256} << 10;

class Unlocked {
  public:
    explicit Unlocked(std::size_t array_bytes) {
        if (array_bytes >= unlocked_bytes) release_.emplace();
    }

  private:
    std::optional<pybind11::gil_scoped_release> release_;
};
